"""Safetensors files that a benchmark wants besides the goals' own."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def write_header(path: Path, size: int, tensors: int) -> int:
    """A file of about `size` bytes in equal F16 tensors, all holes; its payload's start."""
    each = max(2, size // tensors // 2 * 2)
    entries = {
        f"layer.{i}.weight": {
            "dtype": "F16",
            "shape": [each // 2],
            "data_offsets": [i * each, (i + 1) * each],
        }
        for i in range(tensors)
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + each * tensors)
    return 8 + len(text)


def write_sparse(path: Path, size: int, tensors: int = 400) -> None:
    """All zeros, and nothing of it on the disk."""
    write_header(path, size, tensors)


def write_random(path: Path, size: int, tensors: int, seed: int) -> None:
    """Bytes that are on the disk."""
    start = write_header(path, size, tensors)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.random.default_rng(seed).bytes(path.stat().st_size - start))
