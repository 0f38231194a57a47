"""The machine that something is measured on: for the demo and the benchmarks."""

from __future__ import annotations

import mmap
import os
import platform
from pathlib import Path


def meminfo(word: str) -> int:
    """Bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{word}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/meminfo has no {word}")


def machine() -> str:
    """What a figure was measured on."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = meminfo("MemTotal") / (1 << 30)
    return f"{os.cpu_count()} x {cpu}, {memory:.0f} GiB, Linux {platform.release()}"


class StolenTime:
    """What the host of a virtual machine took of its CPU time, from now on: 0 on a real one."""

    def __init__(self) -> None:
        self._before = self._ticks()

    def share(self) -> float:
        """0 to 1."""
        stolen, passed = (now - was for now, was in zip(self._ticks(), self._before, strict=True))
        return stolen / passed if passed else 0.0

    @staticmethod
    def _ticks() -> tuple[int, int]:
        """Stolen and all; the first eight fields of proc_stat(5), the others are parts of them."""
        with open("/proc/stat", encoding="ascii") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:9]]
        return ticks[7], sum(ticks)


def forget_cached(path: Path) -> None:
    """Drops a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_memory(size: int) -> None:
    """Makes the machine have so many bytes free: a virtual one gives what is free back to its host.

    It does within seconds, and whoever uses that memory next waits for the host.
    """
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, 1 << 21):
            memory[at] = 1
