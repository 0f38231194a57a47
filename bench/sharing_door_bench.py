"""P13: what a program that reads safetensors files pays when modelbroker.run shares them.

One program in two processes, by `python` and by `python -m modelbroker.run`, asked in turns: open
and first tensor of a resident file, get_tensor, get_slice, the headers of 1,000 files,
load_state_dict of 2,600 tensors, and undoing writes over 1 GB. Each file is cached and resident.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import harness
import programs
import sources
from figures import at_most, within_times

_FULL = 2_700_000_000
_TENSORS = 2600
_CALLS = 100
_FILES, _TENSORS_OF_EACH = 1000, 50
_WRITTEN = 10**9

Found = dict[str, dict[str, float]]


class Pair:
    """The program, stock and shared."""

    def __init__(self, run: harness.Run, broker: harness.Broker) -> None:
        self._runs = run.runs
        self._workers = {
            way: programs.start(run, broker, way, "reading_program.py") for way in programs.EITHER
        }
        for worker in self._workers.values():
            worker.hear()

    def ask(self, who: str, way: str, *arguments: object) -> dict[str, Any]:
        return self._workers[who].ask(json.dumps([way, *map(str, arguments)]))

    def least(self, *questions: tuple[object, ...]) -> Found:
        """Of all that the answers to some questions say, in turns; by who says it."""
        best: Found = {who: {} for who in self._workers}
        for _ in range(self._runs):
            for who, found in best.items():
                for way, *arguments in questions:
                    for word, value in self.ask(who, str(way), *arguments).items():
                        word = f"{way}_{word}"
                        found[word] = min(found.get(word, float("inf")), float(value))
        return best

    def end(self) -> None:
        for worker in self._workers.values():
            worker.end()


def read_tensors(run: harness.Run, pair: Pair, path: Path, many: Path) -> None:
    """Opening, and each tensor once it is open."""
    best = pair.least(("first", path, _CALLS), ("tensors", many))
    shared, stock = best["shared"], best["stock"]
    add, runs = run.figures.add, run.runs
    goal = at_most(2e-3, "<= 2 ms")
    add(
        "door_open_first_tensor",
        shared["first_p50"],
        "stock safe_open",
        stock["first_p50"],
        runs=runs,
        goal=goal,
    )
    for word in ("tensor", "slice"):
        add(
            f"door_get_{word}",
            shared[f"tensors_{word}"],
            "stock safe_open",
            stock[f"tensors_{word}"],
            runs=runs,
            goal=within_times(1.3),
        )


def scan_headers(run: harness.Run, broker: harness.Broker, pair: Pair) -> None:
    """Keys, shapes and dtypes of many files; RuntimeError where one of them was loaded for that."""
    folder = run.folder / "headers"
    folder.mkdir(exist_ok=True)
    for i in range(_FILES):
        sources.write_sparse(folder / f"{i}.safetensors", 4 << 20, _TENSORS_OF_EACH)
    before = len(broker.cli("ps"))
    best = pair.least(("headers", folder))
    if len(broker.cli("ps")) != before:
        raise RuntimeError("a program that looked at headers had files loaded")
    shared, stock = (best[who]["headers_seconds"] for who in ("shared", "stock"))
    run.figures.add(f"door_{_FILES}_headers", shared, "stock safe_open", stock, runs=run.runs)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def load_state_dicts(run: harness.Run, pair: Pair, path: Path, words: str) -> None:
    """Without assign, which copies where nothing is shared; beside it stock with assign."""
    run.say_size(path)
    copied = pair.least(("load_state_dict", path, "copy"))
    assigned = pair.least(("load_state_dict", path, "assign"))
    word = "load_state_dict_seconds"
    for baseline, against in (
        ("stock, copied", copied["stock"][word]),
        ("stock, assign=True", assigned["stock"][word]),
    ):
        run.figures.add(
            f"load_state_dict_2600{words}",
            copied["shared"][word],
            baseline,
            against,
            runs=run.runs,
        )


def undo_writes(run: harness.Run, pair: Pair, path: Path) -> None:
    """restore() beside copying the file's bytes over what was written."""
    run.say_size(path)
    best = pair.least(("write", path, min(_WRITTEN, run.size)), ("undo",), ("touch",))
    if any(found["undo_left"] for found in best.values()):
        raise RuntimeError("writes were not undone")
    shared, stock = best["shared"], best["stock"]
    add, runs = run.figures.add, run.runs
    goal = within_times(0.5)
    whole = shared["write_written"] >= _WRITTEN
    add(
        "restore_1GB",
        shared["undo_seconds"],
        "reading it again",
        stock["undo_seconds"],
        runs=runs,
        goal=goal,
        applies=whole,
    )
    add(
        "restore_1GB_and_touch",
        shared["undo_seconds"] + shared["touch_seconds"],
        "the same",
        stock["undo_seconds"] + stock["touch_seconds"],
        runs=runs,
    )


def measure(run: harness.Run) -> None:
    words = ("one", "many", "large")
    one, many, large = (run.folder / f"sharing-{word}.safetensors" for word in words)
    sources.write_sparse(one, 26 * 10**6)
    sources.write_sparse(many, 26 * 10**6, _TENSORS)
    # The file, its page cache, a stock copy, and what is written.
    sources.write_sparse(large, min(_FULL, run.wanted_size(copies=4)), _TENSORS)
    broker = run.broker()
    for path in (one, many, large):
        harness.read_through(path)
        run.figures.say_of_all(page_kind=broker.load(path, path.stem)["page_kind"])
    pair = Pair(run, broker)
    run.say_size(many)
    read_tensors(run, pair, one, many)
    scan_headers(run, broker, pair)
    load_state_dicts(run, pair, many, "")
    load_state_dicts(run, pair, large, "_large")
    undo_writes(run, pair, large)
    pair.end()
    for path in (one, many, large):
        path.unlink()


if __name__ == "__main__":
    sys.exit(harness.main("sharing_door", "P13", __doc__, measure))
