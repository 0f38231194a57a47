"""Probes: who may share device memory with whom, and what deaths do to it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any
from uuid import UUID

from gpu.device import GIB, MIB, Child, Device, ok, said_code, torch_view

Result = dict[str, Any]


def wait_until_free(g: Device, least: int, seconds: float = 5) -> float | None:
    """Milliseconds until `least` bytes are free; None: not within `seconds`."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        if g.free() >= least:
            return (time.perf_counter() - start) * 1e3
        time.sleep(0.001)
    return None


def descriptors(gib: int) -> Result:
    """T1 to T4: export by descriptor, import read-only elsewhere, writes, deaths."""
    size = gib * GIB
    out: Result = {}
    g = Device()
    free = g.free()
    exporter = Child("exporter", size)
    fd, text = exporter.recv_fd()
    out["exporter"] = first = json.loads(text)
    readers = [Child("reader", size) for _ in range(3)]
    for reader in readers:
        reader.send_fd(fd)
    steady, writer, torch_writer = readers
    out["bytes"] = size
    out["readers"] = [reader.hear() for reader in readers]
    out["reader equal, every byte"] = steady.ask("digest").get("digest") == first["digest"]
    out["access flags of the map"] = steady.ask("access flags")
    out["bytes used by 1 exporter and 3 readers"] = free - g.free()
    keeper = Child("keeper")
    keeper.send_fd(fd)
    keeper.hear()
    os.close(fd)
    out["driver's memset through a read-only map"] = writer.ask("write-memset")
    out["driver's copy through a read-only map"] = writer.ask("write-copy")
    out["that reader's context afterwards"] = (
        "works" if "digest" in writer.ask("digest") else "gone"
    )
    steady.ask("keep computing")
    out["torch kernel's write through a read-only map"] = torch_writer.ask("write-torch")
    out["exporter unchanged"] = exporter.ask("digest").get("digest") == first["digest"]
    exporter.kill()
    time.sleep(1)
    out["other reader computing through the fault and the exporter's SIGKILL"] = steady.ask("stop")
    out["reader after the exporter's death, every byte"] = (
        steady.ask("digest").get("digest") == first["digest"]
    )
    for reader in readers:
        reader.kill()
    out["ms until contexts were free"] = wait_until_free(g, free - size - 64 * MIB)
    time.sleep(0.5)
    out["bytes used with only a descriptor left"] = free - g.free()
    out["nvidia-smi's processes then"] = compute_processes()
    keeper.say("give")
    kept, _ = keeper.recv_fd()
    late = Child("reader", size)
    late.send_fd(kept)
    late.hear()
    out["import from the kept descriptor, every byte"] = (
        late.ask("digest").get("digest") == first["digest"]
    )
    out["an importer that asks for write access"] = late.ask("become writer")
    late.kill()
    keeper.kill()
    os.close(kept)
    out["ms until all was free"] = wait_until_free(g, free - 64 * MIB)
    out["bytes used after all closed"] = free - g.free()
    return out


def compute_processes() -> list[str]:
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return [repr(error)]


def releases(_: int) -> Result:
    """T5, T6, K: release under an importer, importers killed, an owner without context."""
    size, g = 1 * GIB, Device()
    out: Result = {}
    free = g.free()
    exporter = Child("exporter", size)
    fd, text = exporter.recv_fd()
    reader = Child("reader", size)
    reader.send_fd(fd)
    reader.hear()
    os.close(fd)
    out["exporter releases"] = exporter.ask("release")
    out["reader after the release"] = (
        reader.ask("digest").get("digest") == json.loads(text)["digest"]
    )
    exporter.kill()
    reader.kill()
    out["ms until free after the reader's SIGKILL"] = wait_until_free(g, free - 64 * MIB)

    handle = g.create(size)
    fd = g.export(handle)
    before, lost, waits = g.free(), 0, []
    for _ in range(8):
        busy = Child("busy_importer", size)
        busy.send_fd(fd)
        busy.hear()
        busy.kill()
        waits.append(wait_until_free(g, before - 64 * MIB))
        lost = before - g.free()
    out["importers SIGKILLed while they copy"] = {"ms until free": waits, "bytes lost": lost}
    os.close(fd)
    ok(g.d.cuMemRelease(handle))

    before = g.free()
    owner = Child("owner_without_context", size)
    fd, text = owner.recv_fd()
    out["owner without a context"] = {
        "bytes used": before - g.free(),
        "pid": json.loads(text)["pid"],
        "nvidia-smi's processes": compute_processes(),
        "of this probe": os.getpid(),
    }
    os.close(fd)
    owner.kill()
    return out


def second_uploader(_: int) -> Result:
    """T19: an uploader's context is lost in the middle; another begins anew, in the same memory."""
    size = 1 * GIB
    owner = Child("owner_without_context", size)
    fd, _text = owner.recv_fd()
    other, steady = Child("exporter", size), Child("reader", size)
    others_fd, _text = other.recv_fd()
    steady.send_fd(others_fd)
    steady.hear()
    steady.ask("keep computing")
    first = Child("uploader", size, 5)
    first.send_fd(fd, "fail")
    out: Result = {"first uploader": first.hear()}
    first.kill()
    second = Child("uploader", size, 6)
    second.send_fd(fd, "whole")
    digest = second.hear().get("digest")
    reader = Child("reader", size)
    reader.send_fd(fd)
    reader.hear()
    out["reader sees what the second one uploaded, every byte"] = (
        digest is not None and reader.ask("digest").get("digest") == digest
    )
    out["the owner lives"] = owner.process.poll() is None
    out["a reader of other memory meanwhile"] = steady.ask("stop")
    for child in (second, reader, steady, other, owner):
        child.kill()
    os.close(fd)
    os.close(others_fd)
    return out


def isolation(_: int) -> Result:
    """T10, T21: readers that see the device by another name, or sit in namespaces of their own."""
    size, g = 256 * MIB, Device()
    uuid = "GPU-" + str(UUID(bytes=bytes(ok(g.d.cuDeviceGetUuid(g.dev)).bytes)))
    exporter = Child("exporter", size)
    fd, text = exporter.recv_fd()
    own_shm = ("sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh")
    namespaces = {
        "a /dev/shm of its own": ("--mount",),
        "and IPC": ("--mount", "--ipc"),
        "and network": ("--mount", "--ipc", "--net"),
        "and processes, with their /proc": (
            *("--mount", "--ipc", "--net"),
            *("--pid", "--fork", "--kill-child", "--mount-proc"),
        ),
        "processes without their /proc": ("--pid", "--fork", "--kill-child"),
    }
    ways: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        "CUDA_VISIBLE_DEVICES=0": ((), {"CUDA_VISIBLE_DEVICES": "0"}),
        "CUDA_VISIBLE_DEVICES by UUID": ((), {"CUDA_VISIBLE_DEVICES": uuid}),
    }
    for name, flags in namespaces.items():
        shm = own_shm if "--mount" in flags else ()
        ways[f"namespaces: {name}"] = (("unshare", *flags, *shm), {})
    out: Result = {"uuid": uuid}
    for name, (within, environment) in ways.items():
        reader = Child("reader", size, within=within, environment=environment)
        reader.send_fd(fd)
        heard = reader.hear()
        if "died" not in heard:
            digest = reader.ask("digest").get("digest")
            heard["equal, every byte"] = digest == json.loads(text)["digest"]
        out[name] = heard
        reader.kill()
    exporter.kill()
    os.close(fd)
    return out


def legacy(gib: int) -> Result:
    """T17: the 64-byte handles: opens, the exporter's death, its free while open."""
    size = gib * GIB
    out: Result = {}
    exporter = Child("ipc_exporter", size)
    first = exporter.hear()
    reader = Child("ipc_reader", size, first["handle"])
    out["bytes"], out["reader"] = size, reader.hear()
    out["a handle of vmm memory"] = first["of_vmm_memory"]
    out["equal, every byte"] = reader.ask("digest").get("digest") == first["digest"]
    exporter.kill()
    late = reader.ask("digest")
    out["reader after the exporter's SIGKILL"] = late.get("digest") == first["digest"]
    second = Child("ipc_reader", size, first["handle"])
    out["opening after the exporter's death, while a reader has it"] = second.hear()
    second.kill()
    reader.kill()

    exporter = Child("ipc_exporter", 64 * MIB)
    first = exporter.hear()
    reader = Child("ipc_reader", 64 * MIB, first["handle"])
    reader.hear()
    out["freed by the exporter while open"] = exporter.ask("free")
    late = reader.ask("digest")
    out["reader after that (documented as undefined)"] = (
        late if "digest" not in late else late["digest"] == first["digest"]
    )
    reader.kill()
    exporter.kill()
    return out


def other_handles(_: int) -> Result:
    """T18 and more: imports through a pool, fabric handles, pinned host memory."""
    size, g = 6 * GIB, Device()
    out: Result = {}
    d = g.d
    pool_properties = d.CUmemPoolProps()
    pool_properties.allocType = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    pool_properties.handleTypes = g.fd_type
    pool_properties.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    pool_properties.location.id = 0
    stream = ok(d.cuStreamCreate(1))
    pool = ok(d.cuMemPoolCreate(pool_properties))
    import ctypes

    for mib in (4096, 6144):
        pointer = int(ok(d.cuMemAllocFromPoolAsync(mib * MIB, pool, stream)))
        ok(d.cuStreamSynchronize(stream))
        g.fill(pointer, mib * MIB, 3)
        fd = int(ok(d.cuMemPoolExportToShareableHandle(pool, g.fd_type, 0)))
        data = ok(d.cuMemPoolExportPointer(pointer))
        child = Child("pool_importer", mib * MIB)
        child.send_fd(fd, ctypes.string_at(data.getPtr(), 64).hex())
        heard = child.hear()
        child.process.wait(timeout=60)
        out[f"pool import of {mib} MiB"] = {
            "right": heard.get("digest") == g.digest(pointer, mib * MIB),
            "exit": child.process.returncode,
            **({} if "digest" in heard else heard),
        }
        os.close(fd)
        ok(d.cuMemFreeAsync(pointer, stream))
        ok(d.cuStreamSynchronize(stream))
    ok(d.cuMemPoolDestroy(pool))
    location = d.CUmemLocationType
    fabric = g.property_of(location.CU_MEM_LOCATION_TYPE_DEVICE, g.fabric_type)
    out["fabric handle"] = said_code(d.cuMemCreate(2 * MIB, fabric, 0))
    numa = g.property_of(location.CU_MEM_LOCATION_TYPE_HOST_NUMA)
    created = d.cuMemCreate(size, numa, 0)
    out["6 GiB of pinned host memory by cuMemCreate(HOST_NUMA)"] = said_code(created)
    if int(created[0]) == 0:
        va = ok(d.cuMemAddressReserve(size, 0, 0, 0))
        ok(d.cuMemMap(va, size, 0, created[1], 0))
        host = g.access(True, location.CU_MEM_LOCATION_TYPE_HOST_NUMA)
        access = d.cuMemSetAccess(va, size, [host, g.access(True)], 2)
        out["... mapped for the host and the device"] = said_code(access)
        if int(access[0]) == 0:
            ctypes.memset(int(va), 1, size)
            own = int(ok(d.cuMemAlloc(size)))
            start = time.perf_counter()
            ok(d.cuMemcpyHtoDAsync(own, int(va), size, stream))
            ok(d.cuStreamSynchronize(stream))
            out["... uploaded at GB/s"] = size / (time.perf_counter() - start) / 1e9
        out["... exported"] = said_code(d.cuMemExportToShareableHandle(created[1], g.fd_type, 0))
    return out


def swap(_: int) -> Result:
    """T11 in small: other memory at the same address, under a torch tensor that stays."""
    import torch

    g, size = Device(), 64 * MIB
    torch.cuda.init()  # type: ignore[no-untyped-call]
    first, second = g.create(size), g.create(size)
    for handle, seed in ((first, 1), (second, 2)):
        va = g.map(handle, size, True)
        g.fill(va, size, seed)
        g.unmap(va, size)
    va = g.map(first, size, False)
    words = torch_view(va, size).view(torch.int64)
    before = int(words.sum().item())
    torch.cuda.synchronize()
    start = time.perf_counter()
    ok(g.d.cuMemUnmap(va, size))
    ok(g.d.cuMemMap(va, size, 0, second, 0))
    ok(g.d.cuMemSetAccess(va, size, [g.access(False)], 1))
    took = (time.perf_counter() - start) * 1e3
    after = int(words.sum().item())
    torch.cuda.synchronize()
    ok(g.d.cuMemUnmap(va, size))
    ok(g.d.cuMemMap(va, size, 0, first, 0))
    ok(g.d.cuMemSetAccess(va, size, [g.access(False)], 1))
    back = int(words.sum().item())
    return {
        "swap_ms": took,
        "sees the other": after != before,
        "and the first again": back == before,
    }


def contexts(_: int) -> Result:
    """T7: what each more process costs."""
    g, used, made = Device(), [], []
    free = g.free()
    heard = []
    for _step in range(4):
        made.append(Child("context"))
        heard.append(made[-1].hear())
        used.append(free - g.free())
    for child in made:
        child.kill()
    return {
        "bytes used after 1, 2, 3, 4 more contexts": used,
        "ms to make one": [round(h["context_ms"]) for h in heard],
    }
