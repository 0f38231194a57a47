"""Memory: a block mapped into this process for as long as anything looks at it.

The address is a multiple of 2 MiB, where huge pages can be used as such. The mapping goes when the
last array over it has gone, never before, and never at the interpreter's exit. It outlives the
broker, the block's name and a fork. All live mappings of the process are listed here: live(),
find(). Threads: any.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from ._block import Entry, Header, decode_manifest
from ._deadline import Deadline
from ._errors import DataLossError, FailedPreconditionError, ResourceExhaustedError
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

    __slots__ = (
        "__weakref__",
        "_entries",
        "_inode",
        "_keeps",
        "_path",
        "_reopen",
        "address",
        "header",
        "size",
        "writable",
    )

    def __init__(
        self,
        descriptor: int,
        size: int,
        mode: Mode,
        keeps: object,
        *,
        header: Header | None = None,
        path: str = "",
        reopen: Callable[[str, Deadline], int] | None = None,
    ) -> None:
        """Maps the descriptor (which stays the caller's). `keeps` lives as long as the mapping.

        `header`, `path` and `reopen` (block name, deadline -> descriptor) say which block it is
        and how to open it again.
        """
        self._keeps = keeps
        self._path = path
        self._reopen = reopen
        self._entries: dict[str, Entry] | None = None
        found = os.fstat(descriptor)
        self._inode = found.st_dev, found.st_ino
        self.header = header
        self.size = size
        self.writable = mode == "private"
        self.address = _map_aligned(descriptor, size, mode)
        # Not at exit: tensors may still be computing, and the kernel unmaps all the same.
        weakref.finalize(self, _unmap, self.address, size).atexit = False
        _enter(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "data": (self.address, not self.writable),
            "shape": (self.size,),
            "typestr": "|u1",
        }

    def entries(self) -> dict[str, Entry]:
        """The block's tensors by name, decoded when first asked for. Not to be changed."""
        if self._entries is None:
            header = self._known_header()
            start = self.address + header.manifest
            raw = (ctypes.c_ubyte * header.manifest_size).from_address(start)
            self._entries = decode_manifest(memoryview(raw), header)[1]
        return self._entries

    def again(self, timeout: float | None = 5.0) -> Memory:
        """Another private mapping of this block, kept by the same lease: the block's own bytes.

        Opened by the block's path, or by the broker where that leads elsewhere, which is waited for
        up to `timeout` seconds; ModelBrokerError where neither works.
        """
        header = self._known_header()
        descriptor = self._open_again(header.block, Deadline(timeout))
        try:
            return Memory(
                descriptor,
                self.size,
                "private",
                self._keeps,
                header=header,
                path=self._path,
                reopen=self._reopen,
            )
        finally:
            os.close(descriptor)

    def _known_header(self) -> Header:
        if self.header is None:
            raise FailedPreconditionError("this mapping was made without the header of its block")
        return self.header

    def _open_again(self, name: str, deadline: Deadline) -> int:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            pass  # another mount namespace, another user, or renamed since
        else:
            # While it is mapped no other file can get its inode.
            if self._is_of(descriptor):
                return descriptor
            os.close(descriptor)
        if self._reopen is None:
            raise FailedPreconditionError(f"block {name} cannot be opened by its path any more")
        descriptor = self._reopen(name, deadline)
        if os.fstat(descriptor).st_size == self.size:
            return descriptor
        os.close(descriptor)
        raise DataLossError(f"block {name} does not have the size that it was mapped with")

    def _is_of(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == self._inode


# ---- all of them
#
# Mappings end in finalizers, which run anywhere, so there are no locks here: a C function notes the
# end, and the table by address is made again by the next caller who finds that it is not the
# newest. For the same reason a forked child finds all as it was.


class _MemoryRef(weakref.ref[Memory]):
    __slots__ = ("address",)
    address: int


class _Table(NamedTuple):
    """Sorted by address; `stamp` says after which mapping it was made."""

    stamp: object
    addresses: list[int]
    refs: list[_MemoryRef]


_refs: dict[int, _MemoryRef] = {}
_ended: deque[_MemoryRef] = deque()
_stamp = object()  # another one after each new mapping
_table = _Table(_stamp, [], [])


def _enter(memory: Memory) -> None:
    global _stamp
    _forget_ended()
    ref = _MemoryRef(memory, _ended.append)
    ref.address = memory.address
    _refs[id(ref)] = ref
    _stamp = object()  # after the entry: whoever reads it sees the entry too


def _forget_ended() -> None:
    while _ended:
        try:
            ref = _ended.popleft()
        except IndexError:  # another thread took it
            return
        _refs.pop(id(ref), None)


def live() -> list[Memory]:
    """Every mapping that exists now. Those in the list stay until the list goes."""
    memories = (ref() for ref in list(_refs.values()))
    return [memory for memory in memories if memory is not None]


def find(address: int) -> Memory | None:
    """The mapping in which an address of this process lies."""
    table = _table if _table.stamp is _stamp else _sorted_table()
    at = bisect_right(table.addresses, address) - 1
    memory = table.refs[at]() if at >= 0 else None
    return memory if memory is not None and address < memory.address + memory.size else None


def _sorted_table() -> _Table:
    global _table
    stamp = _stamp  # before the entries: one that comes later has another stamp
    _forget_ended()
    # One that has ended may lie where a newer one is.
    alive = [ref for ref in list(_refs.values()) if ref() is not None]
    refs = sorted(alive, key=lambda ref: ref.address)
    _table = table = _Table(stamp, [ref.address for ref in refs], refs)
    return table
