"""The driver calls that the probes share, and the other processes that they talk to.

Facts about the calls: cuda.h of CUDA 13.0. Where cuda-bindings' versions differ, the way that works
in all of them was taken (handles as bytes, results compared with 0).
"""

from __future__ import annotations

import array
import ctypes
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROBE = Path(__file__).resolve().with_name("probe.py")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GB = 1e9

# A child that is alive and silent for so long has a bug of ours.
TALK_SECONDS = 90


def cuda() -> Any:
    from cuda.bindings import driver

    return driver


def ok(result: Any) -> Any:
    """The result of a driver call without its code; RuntimeError with the code's name otherwise."""
    if int(result[0]):
        raise RuntimeError(f"CUDA {int(result[0])} {name_of(result[0])}")
    return result[1] if len(result) == 2 else result[1:] or None


def name_of(code: Any) -> str:
    name = cuda().cuGetErrorName(code)[1]
    return name.decode() if isinstance(name, bytes) else str(name)


def said_code(result: Any) -> str:
    """What a call that may fail answered: the code's number and name."""
    return f"{int(result[0])} {name_of(result[0])}"


class Device:
    """Device 0 with its primary context (unless `context` is false), and memory on it."""

    def __init__(self, context: bool = True) -> None:
        d = self.d = cuda()
        ok(d.cuInit(0))
        self.dev = ok(d.cuDeviceGet(0))
        if context:
            self.ctx = ok(d.cuDevicePrimaryCtxRetain(self.dev))
            ok(d.cuCtxSetCurrent(self.ctx))
        types = d.CUmemAllocationHandleType
        self.fd_type = types.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self.fabric_type = types.CU_MEM_HANDLE_TYPE_FABRIC
        self.prop = self.property_of(d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE)

    def property_of(self, location: Any, handle_type: Any = None) -> Any:
        prop = self.d.CUmemAllocationProp()
        prop.type = self.d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        prop.location.type = location
        prop.location.id = 0
        prop.requestedHandleTypes = handle_type or self.fd_type
        return prop

    def granularity(self) -> dict[str, int]:
        flags = self.d.CUmemAllocationGranularity_flags
        wanted = {
            "minimum": flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM,
            "recommended": flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
        }
        ask = self.d.cuMemGetAllocationGranularity
        return {name: int(ok(ask(self.prop, flag))) for name, flag in wanted.items()}

    def create(self, size: int, prop: Any = None) -> Any:
        return ok(self.d.cuMemCreate(size, prop or self.prop, 0))

    def export(self, handle: Any) -> int:
        return int(ok(self.d.cuMemExportToShareableHandle(handle, self.fd_type, 0)))

    def take(self, fd: int) -> Any:
        return ok(self.d.cuMemImportFromShareableHandle(fd, self.fd_type))

    def access(self, writable: bool, location: Any = None) -> Any:
        d = self.d
        a = d.CUmemAccessDesc()
        a.location.type = location or d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        a.location.id = 0
        flags = d.CUmemAccess_flags
        a.flags = (
            flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            if writable
            else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        )
        return a

    def map(self, handle: Any, size: int, writable: bool) -> int:
        va = ok(self.d.cuMemAddressReserve(size, 0, 0, 0))
        ok(self.d.cuMemMap(va, size, 0, handle, 0))
        ok(self.d.cuMemSetAccess(va, size, [self.access(writable)], 1))
        return int(va)

    def unmap(self, va: int, size: int) -> None:
        ok(self.d.cuMemUnmap(va, size))
        ok(self.d.cuMemAddressFree(va, size))

    def fill(self, va: int, size: int, seed: int) -> None:
        block = np.random.default_rng(seed).integers(0, 256, min(size, 64 * MIB), dtype=np.uint8)
        for offset in range(0, size, len(block)):
            n = min(len(block), size - offset)
            ok(self.d.cuMemcpyHtoD(va + offset, block.ctypes.data, n))
        ok(self.d.cuCtxSynchronize())

    def digest(self, va: int, size: int) -> str:
        """Of every byte, copied back to the host."""
        total, buffer = hashlib.sha1(), np.empty(min(size, 64 * MIB), np.uint8)
        for offset in range(0, size, len(buffer)):
            n = min(len(buffer), size - offset)
            ok(self.d.cuMemcpyDtoH(buffer.ctypes.data, va + offset, n))
            total.update(buffer[:n].data)
        return total.hexdigest()

    def free(self) -> int:
        return int(ok(self.d.cuMemGetInfo())[0])


def torch_view(va: int, size: int) -> Any:
    """A torch tensor of bytes over device memory; nobody but the caller keeps the memory alive."""
    import torch

    class Memory:
        __cuda_array_interface__ = {  # noqa: RUF012  its readers want an attribute
            "shape": (size,),
            "typestr": "|u1",
            "data": (va, False),
            "version": 3,
            "strides": None,
        }

    return torch.as_tensor(Memory(), device="cuda")


class Child:
    """Another process of the probe, with one end of a socket pair as its standard input."""

    def __init__(
        self,
        role: str,
        *args: object,
        within: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*within, sys.executable, str(PROBE), "--role", role, *map(str, args)]
        self.process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=sys.stderr,
            env={**os.environ, **(environment or {})},
        )
        theirs.close()
        self.socket.settimeout(TALK_SECONDS)

    def say(self, text: str) -> None:
        self.socket.send(text.encode())

    def hear(self) -> dict[str, Any]:
        try:
            text = self.socket.recv(65536).decode()
        except OSError as error:
            return {"died": repr(error)}
        if not text:
            return {"died": True}
        heard: dict[str, Any] = json.loads(text)
        return heard

    def ask(self, text: str) -> dict[str, Any]:
        self.say(text)
        return self.hear()

    def send_fd(self, fd: int, text: str = "fd") -> None:
        send_fd(self.socket, fd, text)

    def recv_fd(self) -> tuple[int, str]:
        return recv_fd(self.socket)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()


def send_fd(s: socket.socket, fd: int, text: str) -> None:
    s.sendmsg(
        [text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
    )


def recv_fd(s: socket.socket) -> tuple[int, str]:
    message, ancillary, _, _ = s.recvmsg(65536, socket.CMSG_SPACE(4))
    if not ancillary:
        raise RuntimeError(f"no descriptor came with {message[:200]!r}")
    return array.array("i", ancillary[0][2])[0], message.decode()


def answer(s: socket.socket, **values: object) -> None:
    s.send(json.dumps(values).encode())


def libc() -> ctypes.CDLL:
    """With mmap and madvise as this file's users call them."""
    lib = ctypes.CDLL(None, use_errno=True)
    lib.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    lib.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    lib.mmap.restype = ctypes.c_void_p
    lib.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return lib
