"""P1: a file that is not in the page cache, from disk into a published block, every byte hashed.

Beside the best bare read of the same file into memory that is there, the bare loop that also makes
pages and hashes, and the libraries in fresh processes with every page touched. All cold, in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import host
import loads
from figures import FASTER, times_better


def measure(run: harness.Run) -> None:
    path = run.source(copies=3)
    files = {"torch": run.zipped(path), "torch_mmap": run.zipped(path)}
    broker = run.broker()

    def cold(way: Callable[[], float], file: Path = path) -> Callable[[], float]:
        def once() -> float:
            host.forget_cached(file)
            return way()

        return once

    # The first load may meet memory that the machine never touched: told apart, and in no minimum.
    first = cold(lambda: loads.load(run, broker, path))()
    ways = {
        "ours": cold(lambda: loads.load(run, broker, path)),
        "read": lambda: loads.floor(run, path, "read"),
        "floor": lambda: loads.floor(run, path, "cold"),
    }
    memory = loads.memory_of(path)
    best = loads.best_of(run.runs, ways, memory)
    slow = min(run.runs, 3)
    for which in loads.LIBRARIES:
        file = files.get(which, path)
        best |= loads.best_of(slow, {which: cold(partial(run.fresh, which, file), file)}, memory)

    add, ours = run.figures.add, best["ours"]
    add(
        "cold_load",
        ours,
        "best bare read",
        best["read"],
        runs=run.runs,
        goal=times_better(0.95),
        applies=run.whole,
    )
    add("cold_load", ours, "bare read, pages and hashes", best["floor"], runs=run.runs)
    for which, words in loads.LIBRARIES.items():
        add("cold_load", ours, words, best[which], runs=slow, goal=FASTER, applies=run.whole)
    add("cold_load_first_of_the_run", first, "best bare read", best["read"], runs=1)


if __name__ == "__main__":
    sys.exit(harness.main("cold_load", "P1", __doc__, measure))
