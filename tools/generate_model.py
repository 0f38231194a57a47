"""Writes a safetensors file shaped like an SDXL network: 409 F16 tensors, 2.7 GB, random bits."""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np

_WIDTH, _INNER = 1280, 5120
_LAYERS = 51
_STEP = 64 << 20


def shapes(layers: int = _LAYERS) -> dict[str, list[int]]:
    """Names and shapes; 53 MB a layer."""
    found = {"input_blocks.0.0.weight": [_WIDTH, _WIDTH, 3, 3]}
    for layer in range(layers):
        block = f"middle_block.1.transformer_blocks.{layer}"
        found[f"{block}.norm1.weight"] = [_WIDTH]
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            found[f"{block}.attn1.{part}.weight"] = [_WIDTH, _WIDTH]
        found[f"{block}.norm3.weight"] = [_WIDTH]
        found[f"{block}.ff.net.0.proj.weight"] = [2 * _INNER, _WIDTH]
        found[f"{block}.ff.net.2.weight"] = [_WIDTH, _INNER]
    return found


def layers_for(size: int) -> int:
    """How many layers make about `size` bytes; at least one, at most the whole."""
    one = 2 * (sum(int(np.prod(s)) for s in shapes(1).values()) - _WIDTH * _WIDTH * 9)
    return max(1, min(_LAYERS, size // one))


def write(path: Path, layers: int = _LAYERS, seed: int = 0) -> int:
    """Writes the file; returns its size in bytes."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes(layers).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, offset, _STEP):
            file.write(random.bytes(min(_STEP, offset - start)))
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=_LAYERS, help="53 MB each (default: 51)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size = write(arguments.path, arguments.layers, arguments.seed)
    print(f"{arguments.path}: {size / 1e9:.2f} GB, {8 * arguments.layers + 1} F16 tensors")


if __name__ == "__main__":
    main()
