"""What this process has written over a mapping of a block, and the block's own bytes again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ._block import Entry
from ._dtypes import Bytes
from ._errors import ModelBrokerError
from ._intervals import PAGE, Range, intersected, merged, pages_of, size, subtracted
from ._memory import Memory
from ._pages import own_ranges, written_bytes, written_ranges

_BROKER_SECONDS = 5.0  # where the block cannot be opened by its path
_AT_ONCE = 64 << 20
_MOST_THREADS = 4
_MADV_DONTNEED, _MADV_DONTNEED_LOCKED = 4, 24

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def tensor_ranges(memory: Memory, entries: Mapping[str, Entry]) -> dict[str, Range]:
    """The addresses of a block's tensors, by name."""
    if memory.header is None:
        return {}
    payload = memory.address + memory.header.payload
    return {
        name: (payload + offset, payload + offset + nbytes)
        for name, _, _, offset, nbytes in entries.values()
    }


def written_names(memory: Memory, named: Mapping[str, Range]) -> list[str]:
    """Which of these ranges were written: one of their whole pages is this process's own.

    Of a page that holds other bytes too, the range's bytes must differ from the block's.
    """
    if not memory.writable or not named:
        return []
    own = written_ranges(memory.address, memory.size)
    pristine = _Pristine(memory)
    return [name for name, wanted in named.items() if _is_written(wanted, own, pristine)]


def _is_written(wanted: Range, own: list[Range], pristine: _Pristine) -> bool:
    touched = intersected([wanted], own)
    whole = (-(-wanted[0] // PAGE) * PAGE, wanted[1] // PAGE * PAGE)
    if any(max(start, whole[0]) < min(end, whole[1]) for start, end in touched):
        return True
    return any(pristine.differs(part) for part in touched)


def written_bytes_under(memory: Memory, ranges: Iterable[Range]) -> int:
    """Bytes of this process's own pages, whole, on which the ranges lie."""
    pages = pages_of(ranges)
    if not memory.writable or not pages:
        return 0
    first, last = pages[0][0], pages[-1][1]
    if pages == pages_of([(memory.address, memory.address + memory.size)]):
        return written_bytes(memory.address, memory.size)  # without pagemap this is cheaper
    return size(intersected(written_ranges(first, last - first), pages))


def restore_all(memory: Memory) -> int:
    """Gives every own page back; how many bytes."""
    if not memory.writable:
        return 0
    ((start, end),) = pages_of([(memory.address, memory.address + memory.size)])
    try:
        own = own_ranges(start, end)
    except OSError:  # then all pages go; those of the block come again when they are read
        given = written_bytes(memory.address, memory.size)
        if _let_go(start, end):
            return given
        own = written_ranges(memory.address, memory.size)
    return _give_back(own, _Pristine(memory))


def restore(memory: Memory, ranges: Iterable[Range], others: Iterable[Range]) -> int:
    """The block's bytes again in these ranges alone; how many bytes of pages were given back.

    A page on which bytes of `others` lie too is not given back: the ranges' bytes are written.
    """
    wanted = merged(ranges)
    if not memory.writable or not wanted:
        return 0
    pages = pages_of(wanted)
    own = written_ranges(pages[0][0], pages[-1][1] - pages[0][0])
    own = intersected(own, pages)
    edges = intersected(own, pages_of(subtracted(merged(others), wanted)))
    pristine = _Pristine(memory)
    for part in intersected(wanted, edges):
        pristine.write_back(part)
    return _give_back(subtracted(own, edges), pristine)


def _give_back(pages: list[Range], pristine: _Pristine) -> int:
    given = 0
    pieces = [
        (start, min(start + _AT_ONCE, end))
        for first, end in pages
        for start in range(first, end, _AT_ONCE)
    ]
    for (start, end), gone in zip(pieces, _all_let_go(pieces), strict=True):
        if gone:
            given += end - start
        else:
            pristine.write_back((start, end))
    return given


def _all_let_go(pieces: list[Range]) -> list[bool]:
    """Of each whether it went. To free a page takes the kernel long: several threads help."""
    if size(pieces) > 2 * _AT_ONCE:
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        try:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(_let_go, *zip(*pieces, strict=True)))
        except RuntimeError:  # no thread is left; what went before is no harm
            pass
    return [_let_go(start, end) for start, end in pieces]


def _let_go(start: int, end: int) -> bool:
    """False for pages that are locked, where the kernel is older than Linux 5.18."""
    return any(
        _libc.madvise(start, end - start, advice) == 0
        for advice in (_MADV_DONTNEED, _MADV_DONTNEED_LOCKED)
    )


class _Pristine:
    """The block's own bytes, mapped when first asked for."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._both: tuple[Bytes, Bytes] | None = None
        self._refused: tuple[type[ModelBrokerError], str] | None = None

    def _of(self, part: Range) -> tuple[Bytes, Bytes]:
        """Our bytes and the block's. ModelBrokerError where that cannot be opened again."""
        if self._refused is not None:
            kind, message = self._refused
            raise kind(message)
        if self._both is None:
            try:
                again = self._memory.again(_BROKER_SECONDS)
            except ModelBrokerError as error:
                self._refused = type(error), str(error)  # the wait for a broker is paid once
                raise
            self._both = np.asarray(self._memory), np.asarray(again)
        start, end = (address - self._memory.address for address in part)
        ours, theirs = self._both
        return ours[start:end], theirs[start:end]

    def write_back(self, part: Range) -> None:
        ours, theirs = self._of(part)
        ours[:] = theirs

    def differs(self, part: Range) -> bool:
        """Whether our bytes are other ones. True also where the block cannot be opened again."""
        try:
            ours, theirs = self._of(part)
        except ModelBrokerError:
            return True
        return not np.array_equal(ours, theirs)
