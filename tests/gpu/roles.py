"""What the other processes of the probes do; each takes its socket and its arguments as text."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from gpu.device import Device, answer, cuda, ok, recv_fd, said_code, send_fd, torch_view


def milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1e3


def exporter(s: socket.socket, size_text: str) -> None:
    """Makes, fills and exports one allocation; 'release' lets go of all but the descriptor."""
    size, g = int(size_text), Device()
    start = time.perf_counter()
    handle = g.create(size)
    created = milliseconds(start)
    fd = g.export(handle)
    va = g.map(handle, size, True)
    g.fill(va, size, 1)
    said = {
        "digest": g.digest(va, size),
        "create_ms": created,
        "fd_is": os.readlink(f"/proc/self/fd/{fd}"),
    }
    send_fd(s, fd, json.dumps(said))
    while question := s.recv(100).decode():
        if question == "digest":
            answer(s, digest=g.digest(va, size))
        elif question == "release":
            g.unmap(va, size)
            ok(g.d.cuMemRelease(handle))
            os.close(fd)
            answer(s, released=True)


def owner_without_context(s: socket.socket, size_text: str) -> None:
    """Makes and exports memory as a process that never has a context."""
    g = Device(context=False)
    handle = g.create(int(size_text))
    send_fd(s, g.export(handle), json.dumps({"pid": os.getpid()}))
    s.recv(100)


def reader(s: socket.socket, size_text: str) -> None:
    """Imports read-only and answers what is asked."""
    size = int(size_text)
    start = time.perf_counter()
    g = Device()
    context = milliseconds(start)
    fd, _ = recv_fd(s)
    start = time.perf_counter()
    handle = g.take(fd)
    imported = milliseconds(start)
    os.close(fd)
    start = time.perf_counter()
    va = g.map(handle, size, False)
    mapped = milliseconds(start)
    ok(g.d.cuMemRelease(handle))
    answer(s, context_ms=context, import_ms=imported, map_ms=mapped)
    questions: dict[str, Callable[[], dict[str, Any]]] = {
        "digest": lambda: {"digest": g.digest(va, size)},
        "access flags": lambda: {"access": access_flags(g, va)},
        "write-memset": lambda: write_memset(g, va),
        "write-copy": lambda: write_copy(g, va),
        "write-torch": lambda: write_torch(va, size),
        "become writer": lambda: become_writer(g, va, size),
        "sum": lambda: {"sum": torch_sum(va, size)},
    }
    while question := s.recv(100).decode():
        if question == "keep computing":
            keep_computing(s, va, size)
        else:
            answer(s, **questions[question]())


def access_flags(g: Device, va: int) -> object:
    attribute = g.d.CUpointer_attribute.CU_POINTER_ATTRIBUTE_ACCESS_FLAGS
    result = g.d.cuPointerGetAttribute(attribute, va)
    return str(result[1]) if int(result[0]) == 0 else said_code(result)


def write_memset(g: Device, va: int) -> dict[str, Any]:
    written, after = g.d.cuMemsetD8(va, 7, 4096), g.d.cuCtxSynchronize()
    return {"memset": said_code(written), "synchronize": said_code(after)}


def write_copy(g: Device, va: int) -> dict[str, Any]:
    block = ctypes.create_string_buffer(4096)
    written, after = (
        g.d.cuMemcpyHtoD(va, ctypes.addressof(block), 4096),
        g.d.cuCtxSynchronize(),
    )
    return {"copy": said_code(written), "synchronize": said_code(after)}


def write_torch(va: int, size: int) -> dict[str, Any]:
    import torch

    view = torch_view(va, size)
    try:
        view[:4096].add_(1)
        torch.cuda.synchronize()
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            torch.ones(1, device="cuda").sum().item()
        except Exception as later:
            return {"raised": first, "and afterwards": str(later).splitlines()[0]}
        return {"raised": first, "and afterwards": "works"}
    return {"raised": None}


def become_writer(g: Device, va: int, size: int) -> dict[str, Any]:
    """Whether an importer that asks for it can write: then read-only is voluntary."""
    allowed = g.d.cuMemSetAccess(va, size, [g.access(True)], 1)
    if int(allowed[0]):
        return {"set access": said_code(allowed)}
    byte = ctypes.create_string_buffer(1)
    ok(g.d.cuMemcpyDtoH(ctypes.addressof(byte), va, 1))
    written = g.d.cuMemsetD8(va, byte.raw[0] ^ 0xFF, 1)
    ok(g.d.cuCtxSynchronize())
    return {"set access": said_code(allowed), "memset": said_code(written)}


def torch_sum(va: int, size: int) -> int:
    import torch

    return int(torch_view(va, size).view(torch.int64).sum().item())


def keep_computing(s: socket.socket, va: int, size: int) -> None:
    """Sums all the bytes again and again until told to stop; says whether all sums were one."""
    import torch

    words = torch_view(va, size).view(torch.int64)
    first, rounds = int(words.sum().item()), 0
    answer(s, computing=True)
    s.setblocking(False)
    while True:
        if int(words.sum().item()) != first:
            rounds = -1
            break
        rounds += 1
        try:
            s.recv(100)
            break
        except BlockingIOError:
            pass
    s.setblocking(True)
    answer(s, rounds=rounds, always_equal=rounds > 0)


def uploader(s: socket.socket, size_text: str, seed_text: str) -> None:
    """Fills imported memory: half of it and then a fault that ends its context, or all."""
    size, seed, g = int(size_text), int(seed_text), Device()
    fd, how = recv_fd(s)
    handle = g.take(fd)
    va = g.map(handle, size, True)
    if how == "fail":
        g.fill(va, size // 2, seed)
        said = write_torch(g.map(handle, size, False), size)
        answer(s, fault=said, upload_then=said_code(g.d.cuMemsetD8(va, 0, 1)))
    else:
        g.fill(va, size, seed)
        answer(s, digest=g.digest(va, size))
    s.recv(100)


def multiplier(s: socket.socket) -> None:
    """Answers each work's name with the milliseconds that one round of it took, of many."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    wide = torch.ones(1 << 30, device="cuda", dtype=torch.float32)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "matmul": (lambda: a @ a, 1000),
        "sum": (lambda: wide.sum(), 1000),
    }
    while name := s.recv(100).decode():
        work, rounds = works[name]
        for _ in range(5):
            work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            work()
        torch.cuda.synchronize()
        answer(s, ms=milliseconds(start) / rounds)


def keeper(s: socket.socket) -> None:
    """Holds a descriptor without ever loading CUDA; hands it on when asked."""
    fd, _ = recv_fd(s)
    answer(s, kept=True)
    if s.recv(100):
        send_fd(s, fd, "here")
        s.recv(100)


def ipc_exporter(s: socket.socket, size_text: str) -> None:
    size, g = int(size_text), Device()
    pointer = int(ok(g.d.cuMemAlloc(size)))
    g.fill(pointer, size, 2)
    handle = ok(g.d.cuIpcGetMemHandle(pointer))
    answer(
        s,
        handle=ctypes.string_at(handle.getPtr(), 64).hex(),
        digest=g.digest(pointer, size),
        of_vmm_memory=said_code(g.d.cuIpcGetMemHandle(g.map(g.create(1 << 21), 1 << 21, True))),
    )
    if s.recv(100).decode() == "free":
        answer(s, freed=said_code(g.d.cuMemFree(pointer)))
        s.recv(100)


def ipc_reader(s: socket.socket, size_text: str, raw: str) -> None:
    size, g = int(size_text), Device()
    handle = g.d.CUipcMemHandle()
    ctypes.memmove(handle.getPtr(), bytes.fromhex(raw), 64)
    start = time.perf_counter()
    opened = g.d.cuIpcOpenMemHandle(handle, 1)
    took = milliseconds(start)
    if int(opened[0]):
        answer(s, open=said_code(opened))
        return
    pointer = int(opened[1])
    again = g.d.cuIpcOpenMemHandle(handle, 1)
    answer(
        s,
        open_ms=took,
        second_open=said_code(again),
        same_pointer=int(again[0]) == 0 and int(again[1]) == pointer,
    )
    while s.recv(100):
        try:
            answer(s, digest=g.digest(pointer, size))
        except Exception as error:
            answer(s, error=repr(error))


def context(s: socket.socket) -> None:
    start = time.perf_counter()
    g = Device()
    answer(s, free=g.free(), context_ms=milliseconds(start))
    s.recv(100)


def busy_importer(s: socket.socket, size_text: str) -> None:
    """Copies out of imported memory without end: killed in the middle of it."""
    size, g = int(size_text), Device()
    fd, _ = recv_fd(s)
    va = g.map(g.take(fd), size, False)
    own = int(ok(g.d.cuMemAlloc(size)))
    stream = ok(g.d.cuStreamCreate(1))
    for _ in range(64):
        ok(g.d.cuMemcpyDtoDAsync(own, va, size, stream))
    answer(s, busy=True)
    while True:
        ok(g.d.cuStreamSynchronize(stream))
        for _ in range(64):
            ok(g.d.cuMemcpyDtoDAsync(own, va, size, stream))


def pool_importer(s: socket.socket, size_text: str) -> None:
    """Imports a memory pool's pointer: reported to crash on some drivers above 5248 MiB."""
    d, g = cuda(), Device()
    fd, text = recv_fd(s)
    pool = ok(d.cuMemPoolImportFromShareableHandle(fd, g.fd_type, 0))
    data = d.CUmemPoolPtrExportData()
    raw = bytes.fromhex(text)
    ctypes.memmove(data.getPtr(), raw, len(raw))
    pointer = int(ok(d.cuMemPoolImportPointer(pool, data)))
    answer(s, digest=g.digest(pointer, int(size_text)))


def torch_ipc_importer(s: socket.socket, path: str) -> None:
    """Rebuilds tensors from torch's own per-tensor handles."""
    import pickle

    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]  # it has no types
    torch.zeros(1, device="cuda")
    with open(path, "rb") as file:
        handles = pickle.load(file)
    start = time.perf_counter()
    tensors = [make(*arguments) for make, arguments in handles]
    took = milliseconds(start)
    answer(s, tensors=len(tensors), rebuild_ms=took, sum=float(sum(t[0] for t in tensors).item()))
    s.recv(100)


ROLES: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        exporter,
        owner_without_context,
        reader,
        uploader,
        multiplier,
        keeper,
        ipc_exporter,
        ipc_reader,
        context,
        busy_importer,
        pool_importer,
        torch_ipc_importer,
    )
}
