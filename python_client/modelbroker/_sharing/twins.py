"""Twins: tensors with the bytes of others, each over another private mapping of the same block.

What a copy is for, writes of its own, a twin has too, and it costs no memory until it is written.
Imports torch.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import _memory
from .._dtypes import DTYPES, Bytes, torch_maker
from .._errors import ModelBrokerError
from .._intervals import PAGE
from .._pages import ENTRY, OWN, open_pagemap, written_ranges
from .ledger import ledger

PLAIN = (torch.Tensor, torch.nn.Parameter)  # no other subclass

_WORDS = {
    getattr(torch, known.torch): word
    for word, known in DTYPES.items()
    if known.bits >= 8 and hasattr(torch, known.torch or "-")
}
_BROKER_WAIT_S = 2.0  # where the block has no path any more


class _Mapping:
    """Another mapping of a block, and which of its bytes have been given to a twin."""

    def __init__(self, block: Bytes) -> None:
        self.bytes = block
        self._starts: list[int] = []
        self._ends: list[int] = []

    def give(self, start: int, end: int) -> bool:
        """False where some of these bytes have been given."""
        at = bisect_left(self._ends, start + 1)
        if at < len(self._starts) and self._starts[at] < end:
            return False
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        return True


class Twins:
    """Those of one call: a block is mapped once for all of them, twice for bytes wanted twice."""

    def __init__(self) -> None:
        self._mappings: dict[_memory.Memory, list[_Mapping]] = {}
        self._refused: set[_memory.Memory] = set()
        try:
            self._pagemap: int | None = open_pagemap()
        except OSError:
            self._pagemap = None

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pagemap is not None:
            os.close(self._pagemap)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """None where there cannot be one: it is not over a block, or not the block's bytes."""
        if not is_dense(tensor):
            return None
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        memory = over(address, nbytes)
        if memory is None or address % tensor.itemsize or self.is_written(address, nbytes):
            return None
        start = address - memory.address
        block = self._block(memory, start, start + nbytes)
        if block is None:
            return None
        twin = torch_maker(_WORDS[tensor.dtype])(tuple(tensor.shape), start, block)
        record = ledger.by_mapping.get(memory)
        if record is not None:
            record.count(twin.untyped_storage())
        return twin

    def is_written(self, address: int, nbytes: int) -> bool:
        """Whether a page under these bytes is this process's own, or it cannot be told."""
        if self._pagemap is None:
            try:
                return bool(written_ranges(address, nbytes))
            except ModelBrokerError:
                return True
        first, last = address // PAGE, (address + nbytes - 1) // PAGE
        wanted = (last - first + 1) * ENTRY
        entries = os.pread(self._pagemap, wanted, first * ENTRY)
        return len(entries) != wanted or 1 in entries[ENTRY - 1 :: ENTRY].translate(OWN)

    def _block(self, memory: _memory.Memory, start: int, end: int) -> Bytes | None:
        """Another mapping of it, of which no twin has these bytes."""
        mappings = self._mappings.setdefault(memory, [])
        for mapping in mappings:
            if mapping.give(start, end):
                return mapping.bytes
        if memory in self._refused:
            return None
        try:
            other = memory.again(_BROKER_WAIT_S)
        except ModelBrokerError:  # the block's path leads elsewhere, and its broker has gone
            self._refused.add(memory)
            return None
        record = ledger.by_mapping.get(memory)
        if record is not None:
            record.mapped(other)
        mapping = _Mapping(np.asarray(other))
        mapping.give(start, end)
        mappings.append(mapping)
        return mapping.bytes


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but bytes of the CPU's memory, in row-major order."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype in _WORDS
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.is_contiguous()
        and tensor.numel() > 0
    )


def over(address: int, nbytes: int) -> _memory.Memory | None:
    """The mapping of ours in which all of these bytes are."""
    memory = _memory.find(address)
    if memory is None or address + nbytes > memory.address + memory.size:
        return None
    return memory


def is_watched() -> bool:
    """Whether a mode of torch's sees each call: it would miss the copies that are not made."""
    from torch.utils._device import DeviceContext  # of `with torch.device(...)`, which may

    stack: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
    others = [mode for mode in stack() if not isinstance(mode, DeviceContext)]
    return bool(others) or torch.compiler.is_compiling() or is_watched_below()


def is_watched_below() -> bool:
    """The same of those that see the operators: fake tensors, vmap, forward mode."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
