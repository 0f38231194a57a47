"""Safetensors files made by hand, good and bad."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensors = Mapping[str, tuple[str, list[int], bytes]]  # name -> dtype, shape, bytes


def encode(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of a header (JSON-able, str or bytes) and data; `length` may lie."""
    if isinstance(header, str):
        text = header.encode()
    elif isinstance(header, bytes):
        text = header
    else:
        text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """An honest file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = entry(dtype, shape, offset, offset + len(data))
        offset += len(data)
    path.write_bytes(encode(header, b"".join(data for _, _, data in tensors.values())))
    return path


def write_random(
    path: Path, megabytes: float = 1.0, seed: int = 0, tensors: int = 4, *, suffix: str = ""
) -> Path:
    """F16 tensors of random bytes, `megabytes` in all. `suffix`: of their names."""
    source = np.random.SFC64(seed)  # several times faster than random.Random
    each = max(1, int(megabytes * 1e6 / 2 / tensors))
    words = -(-2 * each // 8)
    return write(
        path,
        {
            f"t{index}{suffix}": ("F16", [each], source.random_raw(words).tobytes()[: 2 * each])
            for index in range(tensors)
        },
        {"seed": str(seed)},
    )


def sum_of_bytes(path: Path) -> int:
    """Of all tensors, as unsigned bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return sum(raw[8 + length :])


def write_shard(folder: Path, number: int, megabytes: float = 0.5, seed: int = 0) -> Path:
    """A part of write_set(); one of another seed has other bytes."""
    source = np.random.SFC64(1000 * seed + number)
    each = max(1, int(megabytes * 1e6 / 4))
    data = source.random_raw(-(-each // 4)).tobytes()[: 2 * each]
    tensors = {f"layer.{number}.{part}": ("F16", [each], data) for part in ("a", "b")}
    fresh = write(folder / f"new-{number}", tensors, {"seed": str(seed)})
    return fresh.rename(folder / f"model-{number:05}.safetensors")


def write_set(
    folder: Path, shards: int = 4, megabytes: float = 0.5, *, stem: str = "model"
) -> Path:
    """A model in several files, of two tensors each; its index."""
    folder.mkdir(exist_ok=True)
    where: dict[str, str] = {}
    for number in range(shards):
        name = write_shard(folder, number, megabytes).name
        where |= {f"layer.{number}.{part}": name for part in ("a", "b")}
    return write_index(folder / f"{stem}.safetensors.index.json", where)


def write_index(path: Path, weight_map: Mapping[str, str]) -> Path:
    """What says in which file each tensor of a set is."""
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path
