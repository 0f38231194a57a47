"""P2: a file that is in the page cache, from there into a published block, every byte hashed.

Beside the bare loop that makes the same pages, reads and hashes on all cores, and the libraries in
fresh processes with every page touched. The cache is filled by reads before.
"""

from __future__ import annotations

import sys
from functools import partial

import harness
import host
import loads
from figures import within_times


def measure(run: harness.Run) -> None:
    path = run.source(copies=3)
    files = {"torch": run.zipped(path), "torch_mmap": run.zipped(path)}
    broker = run.broker()
    host.forget_cached(path)
    harness.read_through(path)
    memory = loads.memory_of(path)
    ways = {
        "ours": lambda: loads.load(run, broker, path),
        "floor": lambda: loads.floor(run, path, "warm"),
    }
    best = loads.best_of(run.runs, ways, memory)
    slow = min(run.runs, 3)
    for which in loads.LIBRARIES:
        file = files.get(which, path)
        harness.read_through(file)
        best |= loads.best_of(slow, {which: partial(run.fresh, which, file)}, memory)

    ours = best["ours"]
    run.figures.add(
        "warm_load",
        ours,
        "bare pages, read and hash",
        best["floor"],
        runs=run.runs,
        goal=within_times(1.15),
        applies=run.whole,
    )
    for which, words in loads.LIBRARIES.items():
        run.figures.add("warm_load", ours, words, best[which], runs=slow)


if __name__ == "__main__":
    sys.exit(harness.main("warm_load", "P2", __doc__, measure))
