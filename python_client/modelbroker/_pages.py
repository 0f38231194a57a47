"""Which pages of a private mapping are this process's own, because it wrote there.

/proc/self/pagemap tells it of each page. Where that cannot be opened (another owner after a change
of rights, gVisor), smaps tells how many bytes of a mapping are own, and a comparison with another
mapping of the block tells which pages: those that differ. Threads: any; a page that is written
meanwhile may be in the answer or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _memory
from ._intervals import PAGE, Range, intersected, merged, pages_of, size

ENTRY = 8  # bytes of pagemap for a page
_AT_ONCE = 1 << 16  # entries: they stay in the CPU's cache from the read to the last look
_PRESENT, _SWAPPED, _OF_A_FILE = 0x80, 0x40, 0x20  # bits 63, 62 and 61, in an entry's last byte
# By the last byte of an entry: whether the page is the process's own.
OWN = bytes(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _OF_A_FILE for byte in range(256))
_IS_OWN = np.frombuffer(OWN, dtype=bool)
_COMPARED_AT_ONCE = 1 << 20


def open_pagemap() -> int:
    """A descriptor of this process's; OSError where it may not."""
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def read_smaps() -> str:
    """This process's mappings; OSError where it may not."""
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        return smaps.read()


def written_ranges(address: int, nbytes: int) -> list[Range]:
    """The pages of a range, whole, of which this process has a copy of its own.

    Without pagemap: those that differ from the block, for which the range must lie in one mapping
    of ours, and ModelBrokerError may be raised where the block cannot be opened again.
    """
    pages = pages_of([(address, address + nbytes)])
    if not pages:
        return []
    try:
        return own_ranges(*pages[0])
    except OSError:
        return _by_comparison(*pages[0])


def written_bytes(address: int, nbytes: int) -> int:
    """How many bytes such pages take."""
    pages = pages_of([(address, address + nbytes)])
    if not pages:
        return 0
    try:
        return size(own_ranges(*pages[0]))
    except OSError:
        areas = _areas_over(pages[0])
        if areas and all(intersected([area.range], pages) == [area.range] for area in areas):
            return sum(area.own for area in areas)
        return size(_by_comparison(*pages[0]))


# ---- by pagemap


def own_ranges(start: int, end: int) -> list[Range]:
    """The own pages among these, of which `end` ends the last; OSError without pagemap."""
    descriptor = open_pagemap()
    try:
        return merged(
            (start + first * PAGE, start + last * PAGE)
            for first, last in _own_runs(descriptor, start // PAGE, (end - start) // PAGE)
        )
    finally:
        os.close(descriptor)


def _own_runs(descriptor: int, first: int, count: int) -> Iterator[Range]:
    """Runs of own pages, counted from the first."""
    entries = np.empty(min(count, _AT_ONCE) * ENTRY, np.uint8)
    for done in range(0, count, _AT_ONCE):
        wanted = min(count - done, _AT_ONCE)
        view = entries[: wanted * ENTRY]
        if os.preadv(descriptor, [view.data], (first + done) * ENTRY) != len(view):
            raise OSError(f"pagemap ends before page {first + done + wanted}")
        own = _IS_OWN[view[ENTRY - 1 :: ENTRY]]
        if own.any():
            yield from ((done + begin, done + end) for begin, end in _runs(own))


def _runs(flags: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Range]:
    """Where flags are set: [first, behind the last) of each run."""
    padded = np.zeros(len(flags) + 2, np.int8)
    padded[1:-1] = flags
    steps = np.diff(padded)
    firsts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return list(zip(firsts.tolist(), ends.tolist(), strict=True))


# ---- without it


class _Area(NamedTuple):
    """A mapping, as smaps describes it."""

    range: Range
    own: int  # bytes: of pages in memory and in swap


def _areas_over(pages: Range) -> list[_Area]:
    """Those that overlap the range; none where smaps cannot be read or does not say it."""
    try:
        lines = read_smaps().splitlines()
    except OSError:
        return []
    areas: list[_Area] = []
    inside = told = False
    for line in lines:
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            start, _, end = word.partition("-")
            area = int(start, 16), int(end, 16)
            inside = area[0] < pages[1] and pages[0] < area[1]
            if inside:
                areas.append(_Area(area, 0))
        elif inside and word in ("Anonymous:", "Swap:"):
            told = told or word == "Anonymous:"
            areas[-1] = _Area(areas[-1].range, areas[-1].own + int(rest.split()[0]) * 1024)
    return areas if told else []


def _by_comparison(start: int, end: int) -> list[Range]:
    areas = _areas_over((start, end))
    if areas and not any(area.own for area in areas):
        return []
    memory = _memory.find(start)
    if memory is None or not memory.writable:
        return []  # not ours, or nobody can write there
    end = min(end, memory.address + memory.size)
    mine, block = np.asarray(memory), np.asarray(memory.again())
    differing: list[Range] = []
    for begin in range(start - memory.address, end - memory.address, _COMPARED_AT_ONCE):
        behind = min(begin + _COMPARED_AT_ONCE, end - memory.address)
        differs = mine[begin:behind] != block[begin:behind]
        if differs.any():
            by_page = np.logical_or.reduceat(differs, range(0, len(differs), PAGE))
            differing += (
                (memory.address + begin + first * PAGE, memory.address + begin + last * PAGE)
                for first, last in _runs(by_page)
            )
    return merged(differing)
