"""P4: four workers start at once on a resident model, touch every page and hold it.

The slowest of the four counts. Memory is the sum of their PSS less what it was before they had the
weights. Beside four workers with safetensors' mmap and four with torch.load.
"""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import host
from figures import at_most, within_times

_WORKERS = 4


def four(run: harness.Run, which: str, path: Path | str, endpoint: str = "") -> tuple[float, int]:
    """Seconds of the slowest, and bytes that the four have more than before."""
    workers = [run.worker("measure", which, str(path), endpoint) for _ in range(_WORKERS)]
    for worker in workers:
        worker.hear()
    before = sum(int(worker.ask("memory")["memory"]) for worker in workers)
    for worker in workers:
        worker.prompt("go")
    slowest = max(float(worker.hear()["seconds"]) for worker in workers)
    after = sum(int(worker.ask("memory")["memory"]) for worker in workers)
    for worker in workers:
        worker.end()
    return slowest, after - before


def best(
    run: harness.Run, runs: int, which: str, path: Path | str, endpoint: str = ""
) -> tuple[float, int]:
    """The least of each over some rounds."""
    rounds = [four(run, which, path, endpoint) for _ in range(runs)]
    return min(seconds for seconds, _ in rounds), min(memory for _, memory in rounds)


def measure(run: harness.Run) -> None:
    path = run.source(copies=3)
    size = path.stat().st_size
    broker = run.broker()
    run.figures.say_of_all(page_kind=broker.load(path)["page_kind"])
    host.forget_cached(path)
    run.fresh("safetensors", path)  # fills the cache by faults, as its users meet it
    ours = best(run, run.runs, "broker", "model", broker.endpoint)
    mapped = best(run, run.runs, "safetensors", path)

    def add(baseline: str, theirs: tuple[float, int], runs: int, first: bool) -> None:
        run.figures.add(
            "four_workers_slowest",
            ours[0],
            baseline,
            theirs[0],
            runs=runs,
            goal=at_most(0.06, "<= 60 ms") if first else None,
            applies=run.whole,
        )
        run.figures.add("four_workers_pss", ours[1], baseline, theirs[1], runs=runs, unit="bytes")

    rounded = -(-size // harness.HUGE) * harness.HUGE
    run.figures.add(
        "four_workers_pss",
        ours[1],
        "one file",
        rounded,
        runs=run.runs,
        unit="bytes",
        goal=within_times(1.02),
        applies=run.whole,
    )
    add("four safetensors mmap", mapped, run.runs, True)
    zipped = run.zipped(path)
    has, needs = host.meminfo("MemAvailable"), (_WORKERS + 0.7) * size
    if has < needs:
        run.figures.leave_out("four torch.load", f"needs {needs / 1e9:.1f} GB, has {has / 1e9:.1f}")
        return
    slow = min(run.runs, 2)
    add("four torch.load", best(run, slow, "torch", zipped), slow, False)


if __name__ == "__main__":
    sys.exit(harness.main("four_workers", "P4", __doc__, measure))
