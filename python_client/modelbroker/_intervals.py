"""Ranges of addresses, [start, end), and sets of them: sorted lists without overlaps."""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import TypeAlias

Range: TypeAlias = "tuple[int, int]"

PAGE = mmap.PAGESIZE


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The set of all; empty ranges are left out."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def intersected(one: list[Range], other: list[Range]) -> list[Range]:
    """What is in both sets."""
    found: list[Range] = []
    at = 0
    for start, end in one:
        while at < len(other) and other[at][1] <= start:
            at += 1
        beyond = at
        while beyond < len(other) and other[beyond][0] < end:
            found.append((max(start, other[beyond][0]), min(end, other[beyond][1])))
            beyond += 1
        at = max(at, beyond - 1)  # the last of them may go on into the next range
    return found


def subtracted(one: list[Range], other: list[Range]) -> list[Range]:
    """What is in the first set only."""
    found: list[Range] = []
    at = 0
    for start, end in one:
        while at < len(other) and other[at][1] <= start:
            at += 1
        beyond = at
        while beyond < len(other) and other[beyond][0] < end:
            if start < other[beyond][0]:
                found.append((start, other[beyond][0]))
            start = max(start, other[beyond][1])
            beyond += 1
        if start < end:
            found.append((start, end))
    return found


def pages_of(ranges: Iterable[Range]) -> list[Range]:
    """The set of whole pages on which any byte of the ranges lies."""
    return merged(
        (start // PAGE * PAGE, -(-end // PAGE) * PAGE) for start, end in ranges if start < end
    )


def size(ranges: Iterable[Range]) -> int:
    """Bytes of a set."""
    return sum(end - start for start, end in ranges)


class Covered:
    """A set that grows, and says of each range how much of it is new."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> int:
        """Bytes that were not covered before."""
        if start >= end:
            return 0
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        known = [*zip(self._starts[first:last], self._ends[first:last], strict=True)]
        new = size(subtracted([(start, end)], known))
        if known:
            start, end = min(start, known[0][0]), max(end, known[-1][1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return new
