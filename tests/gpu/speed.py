"""Probes: what sharing, uploading and wrapping cost."""

from __future__ import annotations

import ctypes
import functools
import os
import pickle
import select
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpu.device import GB, GIB, MIB, Child, Device, ok, said_code, torch_view
from gpu.shm_file import ShmFile

Result = dict[str, Any]
REGISTER_READ_ONLY = 8
TENSORS = 2600
TENSOR_BYTES = 400384  # 1 GiB in 2,600, a multiple of 256


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """The best of a few runs."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def extents(_: int) -> Result:
    """T8: create, export, import and map 2 GiB side by side, by size of one allocation."""
    g, rows, whole = Device(), [], 2 * GIB
    for extent in (16 * MIB, 64 * MIB, 256 * MIB, GIB, 2 * GIB):
        count, marks = whole // extent, [time.perf_counter()]
        handles = [g.create(extent) for _ in range(count)]
        marks.append(time.perf_counter())
        fds = [g.export(handle) for handle in handles]
        marks.append(time.perf_counter())
        imported = [g.take(fd) for fd in fds]
        marks.append(time.perf_counter())
        va = int(ok(g.d.cuMemAddressReserve(whole, 0, 0, 0)))
        for i, handle in enumerate(imported):
            ok(g.d.cuMemMap(va + i * extent, extent, 0, handle, 0))
        marks.append(time.perf_counter())
        ok(g.d.cuMemSetAccess(va, whole, [g.access(False)], 1))
        marks.append(time.perf_counter())
        steps = ("create_ms", "export_ms", "import_ms", "map_ms", "one_set_access_ms")
        took = {step: (b - a) * 1e3 for step, a, b in zip(steps, marks, marks[1:], strict=False)}
        rows.append({"extent_mib": extent // MIB, "count": count, **took})
        for i in range(count):
            ok(g.d.cuMemUnmap(va + i * extent, extent))
        ok(g.d.cuMemAddressFree(va, whole))
        for handle in handles + imported:
            ok(g.d.cuMemRelease(handle))
        for fd in fds:
            os.close(fd)
    return {"rows": rows}


def upload(_: int) -> Result:
    """T14: host to device from pageable, pinned and registered memory, small and huge pages."""
    g, size, rows = Device(), 2 * GIB, []
    target = int(ok(g.d.cuMemAlloc(size)))
    stream = ok(g.d.cuStreamCreate(1))

    def rate(name: str, pointer: int, **more: object) -> None:
        def copy() -> None:
            ok(g.d.cuMemcpyHtoDAsync(target, pointer, size, stream))
            ok(g.d.cuStreamSynchronize(stream))

        rows.append({"source": name, "gb_s": size / seconds(copy, 4) / GB, **more})

    def registered(name: str, pointer: int, flags: int, **more: object) -> None:
        start = time.perf_counter()
        result = g.d.cuMemHostRegister(pointer, size, flags)
        took = time.perf_counter() - start
        if int(result[0]):
            rows.append({"source": name, "register": said_code(result)})
            return
        rate(name, pointer, register_ms_per_gb=took * 1e3 / (size / GB), **more)
        start = time.perf_counter()
        ok(g.d.cuMemHostUnregister(pointer))
        took = time.perf_counter() - start
        rows[-1]["unregister_ms_per_gb"] = took * 1e3 / (size / GB)

    pageable = np.ones(size, np.uint8)
    rate("pageable", pageable.ctypes.data)
    del pageable
    pinned = int(ok(g.d.cuMemHostAlloc(size, 0)))
    ctypes.memset(pinned, 1, size)
    rate("pinned", pinned)
    ok(g.d.cuMemFreeHost(pinned))
    for huge in (False, True):
        file, pages = ShmFile(size, huge), "huge pages" if huge else "4 KiB pages"
        more = {"collapse_refused": file.collapse_refused}
        registered(f"shm, {pages}, writable map", file.address, 0, **more)
        reader = file.map_read_only()
        registered(f"shm, {pages}, read-only map, no flag", reader, 0)
        registered(f"shm, {pages}, read-only map, READ_ONLY", reader, REGISTER_READ_ONLY)
        rate(f"shm, {pages}, not registered", reader)
        file.unmap(reader)
        file.close()
    return {"rows": rows}


def registration(_: int) -> Result:
    """Registration of 4 GiB in chunks by several threads: what a first upload would wait for."""
    g, size, rows = Device(), 4 * GIB, []
    for huge in (False, True):
        file = ShmFile(size, huge)
        at = file.map_read_only()
        for threads in (1, 2, 4, 8):
            chunk = size // threads

            def work(i: int, chunk: int = chunk, at: int = at) -> None:
                ok(g.d.cuCtxSetCurrent(g.ctx))
                ok(g.d.cuMemHostRegister(at + i * chunk, chunk, REGISTER_READ_ONLY))

            start = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))
            took = time.perf_counter() - start
            for i in range(threads):
                ok(g.d.cuMemHostUnregister(at + i * chunk))
            rows.append(
                {"huge_pages": huge, "threads": threads, "ms_per_gb": took * 1e3 / (size / GB)}
            )
        file.unmap(at)
        file.close()
    return {"rows": rows}


def streams(_: int) -> Result:
    """T14: chunk sizes and streams from registered huge pages; a pinned ring fed by threads."""
    g, size, rows = Device(), 2 * GIB, []
    target = int(ok(g.d.cuMemAlloc(size)))
    made = [ok(g.d.cuStreamCreate(1)) for _ in range(4)]
    file = ShmFile(size, True)
    source = file.map_read_only()
    ok(g.d.cuMemHostRegister(source, size, REGISTER_READ_ONLY))
    for count in (1, 2, 4):
        for chunk in (4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB):

            def copy(chunk: int = chunk, count: int = count) -> None:
                for i, offset in enumerate(range(0, size, chunk)):
                    ok(
                        g.d.cuMemcpyHtoDAsync(
                            target + offset, source + offset, chunk, made[i % count]
                        )
                    )
                for stream in made[:count]:
                    ok(g.d.cuStreamSynchronize(stream))

            rows.append(
                {"streams": count, "chunk_mib": chunk // MIB, "gb_s": size / seconds(copy) / GB}
            )
    ok(g.d.cuMemHostUnregister(source))
    rings = []
    for threads in (1, 2, 4, 8, 12):
        for chunk in (4 * MIB, 16 * MIB):
            best = seconds(functools.partial(ring, g, source, target, size, chunk, threads))
            rings.append({"threads": threads, "chunk_mib": chunk // MIB, "gb_s": size / best / GB})
    file.unmap(source)
    file.close()
    return {"registered": rows, "ring of pinned chunks": rings}


def ring(g: Device, source: int, target: int, size: int, chunk: int, threads: int) -> None:
    """Each thread copies its share into two pinned slots of its own and uploads from them."""
    slots = RINGS.setdefault((chunk, threads), int(ok(g.d.cuMemHostAlloc(2 * chunk * threads, 0))))

    def work(thread: int) -> None:
        ok(g.d.cuCtxSetCurrent(g.ctx))
        stream = ok(g.d.cuStreamCreate(1))
        events = [ok(g.d.cuEventCreate(2)) for _ in range(2)]
        for n, offset in enumerate(range(thread * chunk, size, threads * chunk)):
            slot, event = slots + (2 * thread + n % 2) * chunk, events[n % 2]
            if n >= 2:
                ok(g.d.cuEventSynchronize(event))
            ctypes.memmove(slot, source + offset, chunk)
            ok(g.d.cuMemcpyHtoDAsync(target + offset, slot, chunk, stream))
            ok(g.d.cuEventRecord(event, stream))
        ok(g.d.cuStreamSynchronize(stream))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


RINGS: dict[tuple[int, int], int] = {}


def beside_compute(_: int) -> Result:
    """T15: what an upload from registered memory does to kernels of another process."""
    g, size = Device(), 2 * GIB
    target = int(ok(g.d.cuMemAlloc(size)))
    stream = ok(g.d.cuStreamCreate(1))
    file = ShmFile(size, True)
    source = file.map_read_only()
    ok(g.d.cuMemHostRegister(source, size, REGISTER_READ_ONLY))

    def copy() -> None:
        ok(g.d.cuMemcpyHtoDAsync(target, source, size, stream))
        ok(g.d.cuStreamSynchronize(stream))

    out: Result = {"upload alone, GB/s": size / seconds(copy) / GB}
    child = Child("multiplier")
    for work in ("matmul", "sum"):
        alone = min(child.ask(work)["ms"] for _ in range(3))
        child.say(work)
        start, copies = time.perf_counter(), 0
        while not select.select([child.socket], [], [], 0)[0]:
            copy()
            copies += 1
        took, beside = time.perf_counter() - start, child.hear()["ms"]
        out[work] = {
            "alone_ms": alone,
            "beside_ms": beside,
            "slower": beside / alone - 1,
            "upload gb_s": copies * size / took / GB,
        }
    child.kill()
    ok(g.d.cuMemHostUnregister(source))
    file.unmap(source)
    file.close()
    return out


def wrapping(_: int) -> Result:
    """T9: torch tensors over imported memory: cost of 2,600 by each way, dtypes, a clean exit."""
    import torch

    size = GIB
    exporter = Child("exporter", size)
    fd, _text = exporter.recv_fd()
    g = Device()
    torch.cuda.init()  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    va = g.map(g.take(fd), size, False)
    out: Result = {"import_and_map_ms": (time.perf_counter() - start) * 1e3}
    start = time.perf_counter()
    whole = torch_view(va, size)
    out["as_tensor_ms"] = (time.perf_counter() - start) * 1e3
    halves = whole.view(torch.bfloat16)
    storage = halves.untyped_storage()
    width = 128
    height = TENSOR_BYTES // 2 // width

    def slices() -> list[Any]:
        return [
            whole[i * TENSOR_BYTES : (i + 1) * TENSOR_BYTES].view(torch.bfloat16).view(-1, width)
            for i in range(TENSORS)
        ]

    def strided() -> list[Any]:
        return [
            halves.as_strided((height, width), (width, 1), i * TENSOR_BYTES // 2)
            for i in range(TENSORS)
        ]

    def set_storage() -> list[Any]:
        empty = torch.empty(0, dtype=torch.bfloat16, device="cuda")
        return [
            empty.new_empty(0).set_(storage, i * TENSOR_BYTES // 2, (height, width), (width, 1))
            for i in range(TENSORS)
        ]

    def one_each() -> list[Any]:
        return [torch_view(va + i * TENSOR_BYTES, TENSOR_BYTES) for i in range(TENSORS)]

    ways = {
        "slice and view": slices,
        "as_strided": strided,
        "set_ of one storage": set_storage,
        "__cuda_array_interface__ each": one_each,
    }
    out["ms for 2,600"] = {name: seconds(way) * 1e3 for name, way in ways.items()}
    out["dtypes"] = {}
    names = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")
    for name in names:
        try:
            some = whole[:4096].view(getattr(torch, name)).to(torch.float32)
            out["dtypes"][name] = float(some.nan_to_num(0, 0, 0).abs().sum().item()) >= 0
        except Exception as error:
            out["dtypes"][name] = repr(error)[:100]
    words = whole.view(torch.int64)
    words.sum()
    torch.cuda.synchronize()

    def total() -> None:
        words.sum()
        torch.cuda.synchronize()

    out["sum of every byte, TB/s"] = size / seconds(total) / 1e12
    exporter.kill()
    return out  # with live tensors: the exit code says whether that is clean


def torch_ipc(_: int) -> Result:
    """The baseline: torch's own handles, one a tensor, rebuilt in another process."""
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    tensors = [torch.ones(TENSOR_BYTES, dtype=torch.uint8, device="cuda") for _ in range(TENSORS)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    handles = [reduce_tensor(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    made = (time.perf_counter() - start) * 1e3
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump(handles, file)
        file.flush()
        child = Child("torch_ipc_importer", file.name)
        heard = child.hear()
    child.kill()
    return {"tensors": TENSORS, "reduce_ms": made, "importer": heard}
