"""Tensors over a mapping of the client's, without a broker: of a plain file in place of a block."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelbroker import _memory
from modelbroker._block import Header
from modelbroker._dtypes import DTYPES, torch_maker

_FIRST = 4096 + 64
_WORDS = {getattr(torch, known.torch, None): word for word, known in DTYPES.items()}


def mapped(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors over a private mapping of a new file."""
    content, starts = bytearray(_FIRST), {}
    for name, tensor in tensors.items():
        starts[name] = len(content)
        content += tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        content += bytes(-len(content) % 8)
    path.write_bytes(content)
    return again(path, tensors, starts)


def again(
    path: Path, tensors: dict[str, torch.Tensor], starts: dict[str, int]
) -> dict[str, torch.Tensor]:
    descriptor, size = os.open(path, os.O_RDONLY), path.stat().st_size
    try:
        header = Header("block", size, _FIRST, size - _FIRST, 0, 0)
        memory = _memory.Memory(
            descriptor, size, "private", None, header=header, path=os.fspath(path)
        )
    finally:
        os.close(descriptor)
    whole: Any = np.asarray(memory)
    return {
        name: torch_maker(_WORDS[tensor.dtype])(tuple(tensor.shape), starts[name], whole)
        for name, tensor in tensors.items()
    }


def is_over_block(tensor: torch.Tensor) -> bool:
    return _memory.find(tensor.data_ptr()) is not None
