"""P10: the broker is killed with 100 blocks resident and held, and started again.

From exec to the word that it is ready, as a service manager hears it, and to the first attach that
it answers; bytes that it read from the disk meanwhile, the files' page cache dropped before. Beside
loading the files again, and a start with nothing to adopt.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import host
import modelbroker
import sources
from figures import at_most

_BLOCKS = 100


@contextlib.contextmanager
def manager() -> Iterator[tuple[str, socket.socket]]:
    """A socket on which a broker says that it is ready."""
    name = f"@modelbroker-bench-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:])
        listener.settimeout(60)
        yield name, listener


def start(broker: harness.Broker) -> float:
    """Seconds until it said that it is ready."""
    with manager() as (name, listener):
        began = time.perf_counter()
        broker.spawn(NOTIFY_SOCKET=name)
        while b"READY=1" not in listener.recv(4096):
            pass
        return time.perf_counter() - began


def read_from_disk(pid: int) -> int:
    """Bytes that a process made the kernel fetch."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/io has no read_bytes")


def load_all(broker: modelbroker.Broker, paths: list[Path]) -> tuple[float, str]:
    """Seconds to load them one after another, and the kind of their pages."""
    began = time.perf_counter()
    for path in paths:
        loaded = broker.load(path)
    return time.perf_counter() - began, loaded.page_kind


def measure(run: harness.Run) -> None:
    size = run.arguments.size
    if size is None:
        size = min(27 * 10**8, host.meminfo("MemAvailable") // 4)
    paths = [run.folder / f"part-{i:03}.safetensors" for i in range(_BLOCKS)]
    for i, path in enumerate(paths):
        sources.write_random(path, size // _BLOCKS, 8, i)
    whole = sum(path.stat().st_size for path in paths)

    broker = run.broker()
    client = modelbroker.connect(broker.endpoint)
    run.stack.callback(client.close)
    seconds, page_kind = load_all(client, paths)
    run.figures.say_of_all(page_kind=page_kind, size=whole)
    for path in paths:
        client.unload(path.stem, wait=True)
    loads = [seconds]
    for path in paths:
        harness.read_through(path)
    loads.append(load_all(client, paths)[0])
    held = [client.attach(path.stem) for path in paths]

    ready = attached = float("inf")
    read = 0
    for _ in range(run.runs):
        for path in paths:
            host.forget_cached(path)
        broker.kill()
        began = time.perf_counter()
        ready = min(ready, start(broker))
        with modelbroker.connect(broker.endpoint, timeout=30) as other:
            other.attach(paths[0].stem).release()
            attached = min(attached, time.perf_counter() - began)
            models = other.list()
        if len(models) != _BLOCKS or sum(len(model.leases) for model in models) < _BLOCKS:
            raise RuntimeError(f"{len(models)} blocks were adopted, of {_BLOCKS}")
        read = max(read, read_from_disk(broker.pid))
    del held
    empty = run.new_broker()
    nothing = min(_start_and_stop(empty) for _ in range(run.runs))
    for path in paths:
        path.unlink()

    add, runs = run.figures.add, run.runs
    goal = at_most(0.1, "<= 100 ms")
    again = f"loading {_BLOCKS} files again"
    add("restart_ready", ready, again, min(loads), runs=runs, goal=goal)
    add("restart_ready", ready, "start with nothing", nothing, runs=runs)
    add("restart_first_attach", attached, again, min(loads), runs=runs)
    add(
        "restart_read_from_disk",
        read,
        again,
        whole,
        runs=runs,
        unit="bytes",
        goal=at_most(1e6, "no model: <= 1 MB (program, state database)"),
    )


def _start_and_stop(broker: harness.Broker) -> float:
    seconds = start(broker)
    broker.kill()
    return seconds


if __name__ == "__main__":
    sys.exit(harness.main("restart", "P10", __doc__, measure))
