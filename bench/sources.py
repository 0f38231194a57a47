"""Safetensors files that a benchmark wants besides the goals' own."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def write_header(path: Path, size: int, tensors: int, first: int = 0) -> int:
    """A file of about `size` bytes in equal F16 tensors, all holes; its payload's start.

    `first`: the number in the first one's name.
    """
    each = max(2, size // tensors // 2 * 2)
    entries = {
        f"layer.{first + i}.weight": {
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


def write_sparse_set(folder: Path, size: int, files: int, tensors: int) -> Path:
    """The same in several files; their index."""
    folder.mkdir()
    where: dict[str, str] = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        first, end = (each * tensors // files for each in (number, number + 1))
        write_header(folder / name, size // files, end - first, first)
        where |= {f"layer.{i}.weight": name for i in range(first, end)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


def write_random(path: Path, size: int, tensors: int, seed: int) -> None:
    """Bytes that are on the disk."""
    start = write_header(path, size, tensors)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.random.default_rng(seed).bytes(path.stat().st_size - start))


# ---- a language model

_WIDTH, _INNER, _WORDS = 1024, 4096, 1000
_AT_ONCE = 1 << 24  # values


def language_model(folder: Path, size: int, seed: int = 0) -> Path:
    """A Llama of transformers in F32, about `size` bytes in layers of 67 MB; its weights' file."""
    one = 4 * sum(int(np.prod(shape)) for shape in _layer().values())
    layers = max(1, round(size / one))
    shapes = {"embed_tokens.weight": [_WORDS, _WIDTH], "norm.weight": [_WIDTH]}
    for layer in range(layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _layer().items()}
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": _WORDS,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    _write_values(path, shapes, seed)
    return path


def _layer() -> dict[str, list[int]]:
    attention = {f"self_attn.{word}_proj.weight": [_WIDTH, _WIDTH] for word in "qkvo"}
    return {
        **attention,
        "mlp.gate_proj.weight": [_INNER, _WIDTH],
        "mlp.up_proj.weight": [_INNER, _WIDTH],
        "mlp.down_proj.weight": [_WIDTH, _INNER],
        "input_layernorm.weight": [_WIDTH],
        "post_attention_layernorm.weight": [_WIDTH],
    }


def _write_values(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, offset // 4, _AT_ONCE):
            values = random.random(min(_AT_ONCE, offset // 4 - start), np.float32)
            file.write(((values - 0.5) / 16).tobytes())
