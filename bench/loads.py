"""Loads of one file beside the floors and the libraries: what P1, P2 and the peers share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import host
from harness import Broker, Run

LIBRARIES = {
    "safetensors": "safetensors mmap, touched",
    "torch_mmap": "torch.load(mmap), touched",
    "torch": "torch.load",
}


def target() -> str:
    """A name for the floor's file in shared memory."""
    return f"/dev/shm/modelbroker-bench.{os.getpid()}"


def memory_of(path: Path) -> int:
    """What a load of it takes, generously."""
    return path.stat().st_size * 5 // 4


def floor(run: Run, path: Path, how: str) -> float:
    """Seconds of one pass of the bare loop."""
    file = Path(target())
    try:
        return float(run.tool("load_floor_bench", str(path), str(file), how, "1"))
    finally:
        file.unlink(missing_ok=True)  # of a loop that was interrupted


def load(run: Run, broker: Broker, path: Path) -> float:
    """Seconds of one load, as the broker answers them; what was loaded is gone again."""
    loaded = broker.load(path)
    run.figures.say_of_all(page_kind=loaded["page_kind"])
    broker.unload()
    return float(loaded["seconds"])


def best_of(
    runs: int, ways: Mapping[str, Callable[[], float]], memory: int = 0
) -> dict[str, float]:
    """The least seconds of each, in turns, so that a slow spell of the machine meets all.

    Each finds `memory` bytes that the machine has just touched.
    """
    best = {name: float("inf") for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            if memory > 0:
                host.touch_memory(memory)
            best[name] = min(best[name], way())
    return best
