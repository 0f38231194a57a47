"""P3: a fresh worker attaches a resident model and reads a byte of every page.

Beside safetensors' mmap of the same file, its page cache as its own page faults fill it and as
reads fill it (then the kernel may use larger folios), and torch.load. Once more with a block of
4 KiB pages.
"""

from __future__ import annotations

import sys

import harness
import host
import loads
from figures import at_most, times_better, within_times


def measure(run: harness.Run) -> None:
    path = run.source(copies=3)
    broker = run.broker()
    broker.load(path)
    small = run.new_broker("--huge-pages", "off")
    small.start()
    small.load(path)
    page_kind = broker.cli("ps")[0]["page_kind"]
    run.figures.say_of_all(page_kind=page_kind)

    host.forget_cached(path)
    run.fresh("safetensors", path)  # fills the cache by faults
    best = loads.best_of(
        run.runs,
        {
            "ours": lambda: run.fresh("broker", "model", broker.endpoint),
            "small": lambda: run.fresh("broker", "model", small.endpoint),
            "faults": lambda: run.fresh("safetensors", path),
        },
    )
    host.forget_cached(path)
    harness.read_through(path)
    best |= loads.best_of(run.runs, {"reads": lambda: run.fresh("safetensors", path)})
    zipped = run.zipped(path)
    slow = min(run.runs, 3)
    best |= loads.best_of(slow, {"torch": lambda: run.fresh("torch", zipped)})

    add, ours, faults = run.figures.add, best["ours"], "safetensors, cache from faults"
    huge = run.whole and page_kind == "2MiB"
    goal = at_most(0.015, "<= 15 ms")
    add(
        "attach_touch",
        ours,
        faults,
        best["faults"],
        runs=run.runs,
        goal=times_better(5),
        applies=huge,
    )
    add(
        "attach_touch",
        ours,
        "safetensors, cache from reads",
        best["reads"],
        runs=run.runs,
        goal=goal,
        applies=huge,
    )
    add("attach_touch", ours, "torch.load", best["torch"], runs=slow)
    add(
        "attach_touch_4KiB",
        best["small"],
        faults,
        best["faults"],
        runs=run.runs,
        page_kind="4KiB",
        goal=within_times(1.1),
        applies=run.whole,
    )


if __name__ == "__main__":
    sys.exit(harness.main("attach_touch", "P3", __doc__, measure))
