"""What the weights of a process cost: PSS, by which memory that n processes map counts 1/n in each.

Of this process or, by /proc, of another one of the same user.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Mapping(NamedTuple):
    """A line of /proc/PID/smaps, and what it costs."""

    start: int
    end: int
    path: str  # "" where there is no file
    rss: int
    pss: int


def mappings(pid: int | str = "self") -> Iterator[Mapping]:
    """In the order of their addresses."""
    start = end = rss = 0
    path = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0] and not words[0].endswith(":"):
            start, end = (int(part, 16) for part in words[0].split("-"))
            path = words[5] if len(words) > 5 else ""
        elif words[0] == "Rss:":
            rss = int(words[1]) * 1024
        elif words[0] == "Pss:":
            yield Mapping(start, end, path, rss, int(words[1]) * 1024)


def at(addresses: Iterable[int], pid: int | str = "self") -> int:
    """Bytes of the mappings in which these addresses lie, whatever they map."""
    wanted = sorted(addresses)

    def counts(mapping: Mapping) -> bool:
        first = bisect.bisect_left(wanted, mapping.start)
        return first < len(wanted) and wanted[first] < mapping.end

    return sum(mapping.pss for mapping in mappings(pid) if counts(mapping))


def of_ranges(ranges: Sequence[tuple[int, int]], pid: int | str = "self") -> int:
    """Bytes of these (address, size), all of which were read or written.

    Where other memory lies in the same mapping, as in a heap, this is their part of its cost.
    """

    def within(mapping: Mapping) -> int:
        return sum(
            max(0, min(mapping.end, start + size) - max(mapping.start, start))
            for start, size in ranges
        )

    return sum(
        min(within(mapping), mapping.rss) * mapping.pss // mapping.rss
        for mapping in mappings(pid)
        if mapping.rss
    )


def of_files(word: str, pid: int | str = "self") -> int:
    """Bytes of the mappings of files whose path has this word in it."""
    return sum(mapping.pss for mapping in mappings(pid) if word in mapping.path)
