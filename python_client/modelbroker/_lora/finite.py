"""Whether the numbers of an adapter are numbers: one NaN in it makes every picture black."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .source import AdapterFile

_GAP = 64  # bytes between tensors that are looked at together: alignment, of zeros


def first_bad(file: AdapterFile, tensors: Mapping[str, Any]) -> str | None:
    """The name of one of these tensors of the file that holds NaN or Inf.

    Neighbours in a block are looked at in one call: it is the number of calls that costs.
    """
    own: list[str] = []
    shared: list[str] = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            (shared if file.is_shared(tensor) else own).append(name)
    for run in _runs(shared, tensors):
        if len(run) == 1:
            own += run
        elif not _is_finite(_over(tensors[run[0]], tensors[run[-1]])):
            own += run  # one of them, or what lies between them
    return next((name for name in own if not _is_finite(tensors[name])), None)


def _is_finite(tensor: Any) -> bool:
    try:
        # Passes a NaN on, and takes a tenth of the time of isfinite().
        low, high = torch.aminmax(tensor)
    except (RuntimeError, NotImplementedError):  # of 8 bits
        low, high = torch.aminmax(tensor.to(torch.float32))
    return math.isfinite(low) and math.isfinite(high)


def _runs(names: list[str], tensors: Mapping[str, Any]) -> Iterator[list[str]]:
    """Those of one dtype that lie one behind the other."""
    run: list[str] = []
    end, dtype = 0, None
    for name in sorted(names, key=lambda name: tensors[name].data_ptr()):
        tensor = tensors[name]
        address = tensor.data_ptr()
        if run and (dtype is not tensor.dtype or not 0 <= address - end <= _GAP):
            yield run
            run = []
        run.append(name)
        end, dtype = address + tensor.nbytes, tensor.dtype
    if run:
        yield run


def _over(first: Any, last: Any) -> Any:
    """One tensor over all of the memory from the first to the last, in a block that both keep."""
    start = first.data_ptr()
    size = last.data_ptr() + last.nbytes - start
    words = size // first.itemsize
    memory = (ctypes.c_char * (words * first.itemsize)).from_address(start)
    return torch.frombuffer(memory, dtype=first.dtype)
