"""Memory: a block mapped into this process for as long as anything looks at it.

The address is a multiple of 2 MiB, where huge pages can be used as such. The mapping goes when the
last array over it has gone, never before, and never at the interpreter's exit. It outlives the
broker, the block's name and a fork. Threads: any.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Literal, TypeAlias

from ._errors import ResourceExhaustedError
from ._whole import for_each

Mode: TypeAlias = Literal["private", "readonly"]

_HUGE = 2 << 20
_UNMAP_STEP = (
    64 << 20
)  # one munmap of gigabytes of small pages would stop other threads' page faults
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    mapped = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if mapped is None or mapped == _FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise ResourceExhaustedError(
            f"cannot map {size} bytes ({reason}): look at 'ulimit -v' and vm.max_map_count"
        )
    return int(mapped)


def _unmap(address: int, size: int) -> None:
    whole, rest = divmod(size, _UNMAP_STEP)
    sizes = [_UNMAP_STEP] * whole + [rest] * (rest > 0)
    for_each(_libc.munmap, range(address, address + size, _UNMAP_STEP), sizes)


def _map_aligned(descriptor: int, size: int, mode: Mode) -> int:
    # More than is needed, so that a 2 MiB boundary lies in it; then the ends go back.
    whole = size + _HUGE
    nothing = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    area = _mmap(None, whole, _PROT_NONE, nothing, -1)
    address = -(-area // _HUGE) * _HUGE
    end = address + -(-size // 4096) * 4096
    if address > area:
        _libc.munmap(area, address - area)
    if area + whole > end:
        _libc.munmap(end, area + whole - end)
    if mode == "readonly":
        protection, flags = _PROT_READ, _MAP_SHARED
    else:
        # NORESERVE: nobody will write all of it, so nobody should account for all of it.
        protection, flags = _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_NORESERVE
    try:
        return _mmap(address, size, protection, flags | _MAP_FIXED, descriptor)
    except BaseException:
        _libc.munmap(address, end - address)
        raise


class Memory:
    """Bytes of a block. By its `__array_interface__` numpy takes it for an array and keeps it."""

    __slots__ = ("__weakref__", "_keeps", "address", "size", "writable")

    def __init__(self, descriptor: int, size: int, mode: Mode, keeps: object) -> None:
        """Maps the descriptor (which stays the caller's). `keeps` lives as long as the mapping."""
        self._keeps = keeps
        self.size = size
        self.writable = mode == "private"
        self.address = _map_aligned(descriptor, size, mode)
        # Not at exit: tensors may still be computing, and the kernel unmaps all the same.
        weakref.finalize(self, _unmap, self.address, size).atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "data": (self.address, not self.writable),
            "shape": (self.size,),
            "typestr": "|u1",
        }
