"""P5: a handle on a resident model, nothing touched, from 1 MB to 8 GiB; then 2,600 torch tensors.

Medians. C++: leased, opened and mapped, beside a bare ZeroMQ echo, open and mmap. Python: attach(),
beside safetensors' safe_open; attach() and state_dict() beside load_file, also in 160 files.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import harness
import host
import loads
import sources
from figures import Goal, at_most, within_times

_SIZES = (("1MB", 10**6), ("100MB", 10**8), ("2.7GB", 27 * 10**8), ("8GiB", 8 << 30))
_CALLS = 500
_DICTS = "10"
_REQUEST = "150"  # bytes, about ours


def sizes(run: harness.Run) -> list[tuple[str, int]]:
    """Up to --size, and what memory has room for."""
    has = min(host.meminfo("MemAvailable") - (2 << 30), shutil.disk_usage("/dev/shm").free)
    fitting = []
    for words, size in _SIZES:
        if run.arguments.size is not None and size > max(run.arguments.size, 10**8):
            continue
        if size > has:
            run.figures.leave_out(words, f"needs {size / 1e9:.1f} GB, has {has / 1e9:.1f}")
            continue
        fitting.append((words, size))
    return fitting


def attach(run: harness.Run, broker: harness.Broker, words: str, path: Path, echo: str) -> None:
    """The figures of one size, beside those of the smallest, which stays."""
    if words != "1MB":
        run.figures.say_of_all(page_kind=broker.load(path, words)["page_kind"])

    def cpp(name: str) -> float:
        taken = run.samples("client_bench", "attach", broker.endpoint, name, str(_CALLS))
        return harness.quantile(taken[:, 1], 0.5) / 1e9

    def floor() -> float:
        command = ("zmq_echo_bench", "attach", echo, _REQUEST, str(path), str(_CALLS))
        return harness.quantile(run.samples(*command)[:, 1], 0.5) / 1e9

    best = loads.best_of(
        run.runs,
        {
            "cpp": lambda: cpp(words),
            "smallest": lambda: cpp("1MB"),
            "floor": floor,
            "python": lambda: run.said("attach", words, broker.endpoint, str(_CALLS))["p50"],
            "open": lambda: run.said("open", str(path), str(_CALLS))["p50"],
        },
    )
    if words != "1MB":
        broker.unload(words)
    run.say_size(path)
    add, runs = run.figures.add, run.runs
    goal = at_most(5e-4, "<= 0.5 ms")
    add(f"attach_cpp_{words}", best["cpp"], "echo, open, mmap", best["floor"], runs=runs, goal=goal)
    goal = at_most(1e-3, "<= 1 ms")
    add(f"attach_python_{words}", best["python"], "safe_open", best["open"], runs=runs, goal=goal)
    if words != "1MB":
        goal = within_times(1.2)
        against = best["smallest"]
        add(f"attach_cpp_{words}", best["cpp"], "ours of 1 MB", against, runs=runs, goal=goal)


def measure(run: harness.Run) -> None:
    broker = run.broker()
    echo = run.echo()
    for words, size in sizes(run):
        path = run.folder / f"sparse-{words}.safetensors"
        sources.write_sparse(path, size)
        if words == "1MB":
            run.figures.say_of_all(page_kind=broker.load(path, words)["page_kind"])
        attach(run, broker, words, path, echo)
        path.unlink()

    path = run.folder / "tensors-2600.safetensors"
    sources.write_sparse(path, 26 * 10**6, 2600)
    run.figures.say_of_all(page_kind=broker.load(path, "many")["page_kind"])
    dicts(run, broker, "attach_dict_of_2600", path, at_most(0.01, "<= 10 ms"))
    path.unlink()

    folder = run.folder / "shards"
    index = sources.write_sparse_set(folder, 26 * 10**6, 160, 2600)
    broker.load(index, "many")
    dicts(run, broker, "attach_dict_of_2600_in_160_files", folder, at_most(0.04, "<= 40 ms"))
    shutil.rmtree(folder)


def dicts(run: harness.Run, broker: harness.Broker, words: str, path: Path, goal: Goal) -> None:
    """Attach and state_dict() of the model "many", beside load_file of its files."""
    best = loads.best_of(
        run.runs,
        {
            "ours": lambda: run.said("dict", "many", broker.endpoint, _DICTS)["p50"],
            "theirs": lambda: run.said("load", str(path), _DICTS)["p50"],
        },
    )
    broker.unload("many")
    theirs = best["theirs"]
    run.figures.add(words, best["ours"], "safetensors load_file", theirs, runs=run.runs, goal=goal)


if __name__ == "__main__":
    sys.exit(harness.main("attach_latency", "P5", __doc__, measure))
