"""Why a tensor is a copy of what a file holds, as far as that can be known from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._block import Entry
from .._dtypes import DTYPES
from .._memory import Memory
from .headers import entries_of
from .ledger import ledger

_UNKNOWN = "in no attached file under this name"
_COPIED = "copied by the program"


class Reasons:
    """Compares tensors with those of the same name in the files that are attached.

    And in those that were opened inside sharing: where the program converted or copied all that it
    read of a file, no mapping of it is left.
    """

    def __init__(self, memories: Iterable[Memory]) -> None:
        self._by_suffix: dict[str, list[Entry]] = {}
        self._stock: dict[int, str] = {}  # by the id of an entry: why its file is not shared
        blocks = {m.header.block: m for m in memories if m.header is not None}
        for memory in blocks.values():
            for entry in memory.entries().values():
                self._add(entry)
        for record in ledger.records():
            if record.is_mapped or not record.was_read:
                continue
            for entry in entries_of(record.path, record.size):
                self._add(entry)
                if not record.shared:
                    self._stock[id(entry)] = record.why

    def _add(self, entry: Entry) -> None:
        for suffix in _suffixes(entry[0]):
            self._by_suffix.setdefault(suffix, []).append(entry)

    def of(self, name: str, tensor: Any) -> str:
        """The reason for a strided CPU tensor in memory that no broker keeps."""
        import torch

        with torch._C.DisableTorchFunctionSubclass():  # as in placed.py
            entries = self._entries_of(name, tensor)
            if not entries:
                return _UNKNOWN
            stock = [self._stock[id(entry)] for entry in entries if id(entry) in self._stock]
            shared = [entry for entry in entries if id(entry) not in self._stock]
            if not stock:
                return _difference(tensor, shared[0])
            alone = f"its file is not shared: {stock[0]}"
            return f"{alone}; or {_difference(tensor, shared[0])}" if shared else alone

    def _entries_of(self, name: str, tensor: Any) -> list[Entry]:
        """The tensors of files whose name and this one end alike, one wholly in the other."""
        count = tensor.numel()
        for suffix in _suffixes(name):  # the longest first
            alike = [
                entry
                for entry in self._by_suffix.get(suffix, ())
                if _elements(entry) == count and (suffix == name or suffix == entry[0])
            ]
            if alike:
                same = [entry for entry in alike if entry[1] == _word_of(tensor)]
                return same or alike
        return []


def _suffixes(name: str) -> list[str]:
    """ "a.b.c", "b.c", "c"."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _elements(entry: Entry) -> int:
    count = 1
    for length in entry[2]:
        count *= length
    return count


def _torch_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _word_of(tensor: Any) -> str:
    name = _torch_name(tensor)
    return next((word for word, dtype in DTYPES.items() if dtype.torch == name), name)


def _difference(tensor: Any, entry: Entry) -> str:
    _, dtype, shape, _, _ = entry
    if dtype != _word_of(tensor):
        known = DTYPES.get(dtype)
        in_file = known.torch if known is not None and known.torch else dtype
        return f"{_torch_name(tensor)} here, {in_file} in the file"
    here = tuple(tensor.shape)
    if here != tuple(shape):
        what = "transposed" if sorted(here) == sorted(shape) else "reshaped"
        return f"{what} and copied: {list(here)} here, {list(shape)} in the file"
    return _layout(tensor)


def _layout(tensor: Any) -> str:
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim())
    # Of a 1 x 1 convolution either layout is contiguous; its strides still tell.
    told_apart = tensor.stride() != torch.empty(tensor.shape, device="meta").stride()
    if wanted is not None and told_apart and tensor.is_contiguous(memory_format=wanted):
        return str(wanted).removeprefix("torch.")
    return _COPIED if tensor.is_contiguous() else "transposed"
