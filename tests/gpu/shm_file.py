"""A file in /dev/shm mapped at a 2 MiB boundary, as a block's payload is."""

from __future__ import annotations

import ctypes
import os

from gpu.device import MIB, libc

PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_FIXED, MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x01, 0x10, 0x4022
MADV_POPULATE_WRITE, MADV_COLLAPSE = 23, 25
PAGE, HUGE = 4096, 2 * MIB


class ShmFile:
    """Bytes in shared memory; `collapse_refused` counts huge pages that the kernel did not give."""

    def __init__(self, size: int, huge: bool) -> None:
        self.libc, self.size = libc(), size
        path = f"/dev/shm/gpu-probe.{os.getpid()}"
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.reader = os.open(path, os.O_RDONLY)
        os.unlink(path)
        os.ftruncate(self.fd, size)
        self.address = self.map(self.fd, PROT_READ | PROT_WRITE)
        self.collapse_refused = 0
        if huge:
            for offset in range(0, size, HUGE):
                self.libc.madvise(self.address + offset, PAGE, MADV_POPULATE_WRITE)
                collapsed = self.libc.madvise(self.address + offset, HUGE, MADV_COLLAPSE)
                self.collapse_refused += bool(collapsed)
        ctypes.memset(self.address, 1, size)

    def map(self, fd: int, protection: int) -> int:
        base = self.libc.mmap(None, self.size + HUGE, 0, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
        at = (base + HUGE - 1) & ~(HUGE - 1)
        self.libc.mmap(at, self.size, protection, MAP_SHARED | MAP_FIXED, fd, 0)
        return int(at)

    def map_read_only(self) -> int:
        """Another mapping through a description that cannot write: what a worker has of a block."""
        return self.map(self.reader, PROT_READ)

    def unmap(self, address: int) -> None:
        self.libc.munmap(address, self.size)

    def close(self) -> None:
        self.unmap(self.address)
        os.close(self.fd)
        os.close(self.reader)
