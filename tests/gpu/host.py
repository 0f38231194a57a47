"""Probes: the device, and which kernel features of the RAM tier this host has."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.metadata
import os
import platform
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from gpu.device import GIB, MIB, Device, cuda, ok
from gpu.shm_file import ShmFile

Result = dict[str, Any]
SYS_RENAMEAT2, SYS_IO_URING_SETUP, SYS_OPENAT2 = 316, 425, 437  # x86-64
SO_PEERPIDFD = 77
F_ADD_SEALS, SEAL_SHRINK_AND_FUTURE_WRITE = 1033, 0x12
ATTRIBUTES = (
    "POSIX_FILE",
    "VIRTUAL_MEMORY",
    "FABRIC",
    "READ_ONLY_HOST",
    "HOST_REGISTER",
    "IPC_EVENT",
    "PAGEABLE_MEMORY",
    "COMPUTE_CAPABILITY",
    "HOST_NUMA",
    "INTEGRATED",
)


def device(_: int) -> Result:
    d, g = cuda(), Device()
    names = [n for n in dir(d.CUdevice_attribute) if any(w in n for w in ATTRIBUTES)]
    attributes = {
        n.replace("CU_DEVICE_ATTRIBUTE_", ""): int(
            d.cuDeviceGetAttribute(getattr(d.CUdevice_attribute, n), g.dev)[1] or 0
        )
        for n in names
    }
    out: Result = {
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "name": bytes(ok(d.cuDeviceGetName(128, g.dev))).split(b"\0")[0].decode(),
        "cuda": ok(d.cuDriverGetVersion()),
        "memory_gib": ok(d.cuDeviceTotalMem(g.dev)) / GIB,
        "free_gib": g.free() / GIB,
        "granularity": g.granularity(),
        "attributes": attributes,
    }
    try:
        with open("/proc/driver/nvidia/version") as file:
            out["driver"] = file.readline().strip()
    except OSError as error:
        out["driver"] = repr(error)
    for package in ("cuda-bindings", "torch"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = None
    return out


def kernel(_: int) -> Result:
    out: Result = {"release": platform.release()}
    for name, ask in FEATURES.items():
        try:
            out[name] = ask()
        except Exception as error:
            out[name] = repr(error)[:120]
    return out


def shm_gib() -> float:
    found = os.statvfs("/dev/shm")
    return found.f_blocks * found.f_frsize / GIB


def huge_pages() -> Result:
    start = time.perf_counter()
    file = ShmFile(512 * MIB, True)
    took = time.perf_counter() - start
    with open("/proc/self/smaps_rollup") as rollup:
        mapped = [line.split()[1] for line in rollup if line.startswith("ShmemPmdMapped")]
    out = {"refused": file.collapse_refused, "seconds": took, "ShmemPmdMapped kB": mapped}
    file.close()
    return out


def write_lease() -> Result:
    """Refused while another description is open, granted when it is closed."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    path, out = f"/dev/shm/gpu-probe-lease.{os.getpid()}", {}
    writer = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    reader = os.open(path, os.O_RDONLY)
    for state in ("with another description", "alone"):
        try:
            fcntl.fcntl(writer, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(writer, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            out[state] = "granted"
        except OSError as error:
            out[state] = os.strerror(error.errno or 0)
        if reader >= 0:
            os.close(reader)
            reader = -1
    os.close(writer)
    os.unlink(path)
    return out


def system_call(number: int, *arguments: Any) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *arguments)
    return "ok" if result >= 0 else os.strerror(ctypes.get_errno())


def rename_without_replace() -> str:
    path = f"/dev/shm/gpu-probe-rename.{os.getpid()}"
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    said = system_call(SYS_RENAMEAT2, -100, path.encode(), -100, (path + ".b").encode(), 1)
    for left in (path, path + ".b"):
        if os.path.exists(left):
            os.unlink(left)
    return said


def openat2() -> str:
    how = struct.pack("QQQ", os.O_RDONLY, 0, 0x08)  # RESOLVE_BENEATH
    here = os.open("/", os.O_RDONLY)
    try:
        return system_call(SYS_OPENAT2, here, b"dev", how, len(how))
    finally:
        os.close(here)


def peer(option: int, form: str) -> bool:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        raw = a.getsockopt(socket.SOL_SOCKET, option, struct.calcsize(form))
        return int(struct.unpack(form, raw)[0]) >= 0


FEATURES: dict[str, Callable[[], Any]] = {
    "dev_shm_gib": shm_gib,
    "huge_pages_512_MiB": huge_pages,
    "write_lease": write_lease,
    "renameat2_noreplace": rename_without_replace,
    "openat2": openat2,
    "pidfd_open": lambda: os.pidfd_open(os.getpid()) >= 0,
    "memfd_seals": lambda: fcntl.fcntl(
        os.memfd_create("p", 3), F_ADD_SEALS, SEAL_SHRINK_AND_FUTURE_WRITE
    ),
    "inotify": lambda: ctypes.CDLL(None).inotify_init1(0) >= 0,
    "io_uring": lambda: system_call(SYS_IO_URING_SETUP, 4, ctypes.create_string_buffer(256)),
    "so_peerpidfd": lambda: peer(SO_PEERPIDFD, "i"),
    "so_peercred": lambda: peer(socket.SO_PEERCRED, "3i"),
}
