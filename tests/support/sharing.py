"""What tests of sharing have in common: files opened stock and shared, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch

from modelbroker._memory import find
from modelbroker._sharing.ledger import FileRecord, ledger

safe_open: Any = safetensors.safe_open  # half of it has types


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether it lies over a mapping of a block."""
    return find(tensor.data_ptr()) is not None


def record_of(path: Path) -> FileRecord:
    """What this process has noted of a file."""
    (found,) = (record for record in ledger.records() if record.path == str(path))
    return found


def outcome_of(action: Callable[[], Any]) -> Any:
    """What it gives, or the type and text of what it raises."""
    try:
        return action()
    except Exception as error:
        return type(error), str(error)


def bits(value: Any) -> Any:
    """Tensors as what compares: dtype, shape and bytes, NaNs and all."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return value.dtype, tuple(value.shape), value.stride(), bytes(raw.tolist())
    return value
