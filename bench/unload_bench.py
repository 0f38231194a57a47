"""P12: a model is unloaded while others ask: how long it takes, and what the others notice.

Round trips of the C++ client within the unloads, beside those just before them. With 2 MiB pages
and with 4 KiB pages, where freeing takes the kernel far longer. Beside a bare munmap and unlink.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import harness
import loads
import modelbroker
from figures import within_times

_ROUNDS = 4  # for each of --runs: an unload is short, and a p99 wants many requests
_SETTLE_S = 0.1


def once(
    run: harness.Run, broker: harness.Broker, path: Path
) -> tuple[float, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Seconds of an unload; the round trips before it and within it, in seconds."""
    with modelbroker.connect(broker.endpoint) as client:
        run.figures.say_of_all(page_kind=client.load(path, "model").page_kind)
        asking = run.start("client_bench", "ping", broker.endpoint, "1.5s")
        time.sleep(0.6)
        began = time.monotonic_ns()
        client.unload("model", wait=True)
        ended = time.monotonic_ns()
    assert asking.stdout is not None
    taken = np.frombuffer(asking.stdout.read(), np.int64).reshape(-1, 2)
    asking.wait()
    starts, lengths = taken[:, 0], taken[:, 1] / 1e9
    before = (starts < began - 10**6) & (starts > taken[0, 0] + _SETTLE_S * 1e9)
    # By their start: by their end, the long ones would be over-represented.
    within = (starts >= began) & (starts < ended)
    return (ended - began) / 1e9, lengths[before], lengths[within]


def measure_pages(run: harness.Run, path: Path, suffix: str, free: str, *flags: str) -> None:
    """All figures of one kind of pages."""
    broker = run.broker(*flags)
    rounds = [once(run, broker, path) for _ in range(_ROUNDS * run.runs)]
    broker.stop()
    floor = loads.best_of(run.runs, {"free": lambda: loads.floor(run, path, free)})["free"]
    seconds = min(took for took, _, _ in rounds)
    add, runs = run.figures.add, len(rounds)
    add(f"unload{suffix}", seconds, "bare munmap, unlink", floor, runs=runs)

    before = np.concatenate([lengths for _, lengths, _ in rounds])
    within = np.concatenate([lengths for _, _, lengths in rounds])
    if len(within) == 0:
        run.figures.leave_out(f"round trips within unloads{suffix}", "no request fell into one")
        return
    add(
        f"round_trip_p99_beside_unload{suffix}",
        harness.quantile(within, 0.99),
        f"before it ({len(within)} requests within)",
        harness.quantile(before, 0.99),
        runs=runs,
        goal=within_times(1.2),
        applies=run.whole,
    )
    longest = float(np.max(within))
    add(f"round_trip_longest_beside_unload{suffix}", longest, "the unload", seconds, runs=runs)


def measure(run: harness.Run) -> None:
    path = run.source()
    harness.read_through(path)
    measure_pages(run, path, "", "free")
    measure_pages(run, path, "_4KiB", "free-small", "--huge-pages", "off")


if __name__ == "__main__":
    sys.exit(harness.main("unload", "P12", __doc__, measure))
