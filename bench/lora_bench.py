"""P9: adapters of a full-size SDXL UNet, by modelbroker.lora and by PEFT through diffusers.

Attached and applied, another weight, another file in its place, removed, at rank 16 and 64 and in
kohya's and diffusers' names; a stack of four; DoRA; the memory of this process. The UNet is in
float16, and but for DoRA its weights are whatever memory holds: nothing reads them. Then, on a
small UNet in float32, what a step costs with 1 and 4 adapters, where both must give the same bits;
and how long a program that changes styles waits while three others generate. Files are resident in
the broker and in the page cache. One process for each way, one thread each, asked in turns.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import harness
import host
import programs
from figures import Goal, at_most, within_times

_FULL = 5_134_000_000  # bytes of the UNet's weights in float16
_ROOM = 12_000_000_000  # two of them, and the adapters twice
_WAYS = ("ours", "peft")
_PEFT = "PEFT through diffusers"
_RANKS, _NAMES = (16, 64), ("kohya", "diffusers")
_STYLES = ("a", "b", "c", "d")
_WEIGHS = 5  # for each of --runs: of PEFT's 50 ms each
_ROUNDS, _STEPS = 5, 2  # for each of --runs
_SWITCHES = 20
_BUSY_SWITCHES = 4  # for each of --runs: of PEFT's half a second each
_GENERATING = 3
_SETTLE_S = 0.5  # until the generating programs are at it
_GOALS = {
    "attach": at_most(0.050, "<= 50 ms"),
    "weight": at_most(0.001, "<= 1 ms"),
    "remove": at_most(0.010, "<= 10 ms"),
}

Answers = dict[str, dict[str, Any]]


class Pair:
    """Two programs with the same UNet: ours and PEFT's."""

    def __init__(self, run: harness.Run, broker: harness.Broker) -> None:
        self._run, self._broker = run, broker
        self._workers = {
            way: programs.start(run, broker, "stock", "adapter_program.py", way) for way in _WAYS
        }
        for worker in self._workers.values():
            worker.hear()

    def one(self, way: str, what: str, *arguments: object) -> dict[str, Any]:
        return self._workers[way].ask(json.dumps([what, *arguments]))

    def ask(self, what: str, *arguments: object) -> Answers:
        """Both, one after the other."""
        return {way: self.one(way, what, *arguments) for way in _WAYS}

    def files(self, count: int, rank: int, names: str, dora: bool = False) -> list[str]:
        """Adapters for the present UNet, resident and in the page cache."""
        paths = []
        for seed in range(1, count + 1):
            path = self._run.folder / f"{names}-{rank}-{seed}{'-dora' if dora else ''}.safetensors"
            self.one("ours", "make", str(path), rank, names, seed, dora)
            self._run.say_size(path)
            loaded = self._broker.load(path, path.stem)
            self._run.figures.say_of_all(page_kind=loaded["page_kind"])
            harness.read_through(path)
            paths.append(str(path))
        return paths

    def forget(self, files: list[str]) -> None:
        for path in map(Path, files):
            self._broker.unload(path.stem)
            path.unlink()

    def end(self) -> None:
        for worker in self._workers.values():
            worker.end()


class Least:
    """The least of what was measured, by word and way."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {}

    def take(self, word: str, answers: Answers, of: str = "seconds") -> None:
        found = self._found.setdefault(word, {})
        for way, answer in answers.items():
            found[way] = min(found.get(way, float("inf")), float(answer[of]))

    def items(self) -> list[tuple[str, float, float]]:
        return [(word, found["ours"], found["peft"]) for word, found in self._found.items()]


def attach(run: harness.Run, pair: Pair, rank: int, names: str, full: bool) -> None:
    """One adapter: attached, weighted, another one in its place, removed."""
    files = pair.files(2, rank, names)
    least = Least()
    for _ in range(run.runs):
        least.take("attach", pair.ask("add", files[:1], ["a"]))
        least.take("weight", pair.ask("weigh", {"a": 0.8}, _WEIGHS))
        least.take("replace", pair.ask("replace", files[1], "a"))
        least.take("remove", pair.ask("remove", ["a"]))
    for word, ours, theirs in least.items():
        goal = None if word == "attach" and rank > _RANKS[0] else _GOALS.get(word)
        metric = f"lora_{word}_r{rank}_{names}"
        run.figures.add(metric, ours, _PEFT, theirs, runs=run.runs, goal=goal, applies=full)
    pair.forget(files)


def memory(run: harness.Run, pair: Pair) -> None:
    """What the first adapter adds to a process: tensors that lie in no file, and all of it."""
    files = pair.files(1, _RANKS[0], _NAMES[0])
    before = pair.ask("memory")
    pair.ask("add", files, ["a"])
    after = pair.ask("memory")
    pair.ask("remove", ["a"])
    goals: dict[str, Goal] = {"private": at_most(0, "0 bytes")}
    for word in ("private", "anonymous"):
        ours, theirs = (max(0, after[way][word] - before[way][word]) for way in _WAYS)
        metric, goal = f"lora_{word}_bytes_r{_RANKS[0]}", goals.get(word)
        run.figures.add(metric, ours, _PEFT, theirs, runs=1, unit="bytes", goal=goal)
    pair.forget(files)


def stack(run: harness.Run, pair: Pair) -> None:
    """Four at once."""
    files, names = pair.files(len(_STYLES), _RANKS[0], _NAMES[0]), list(_STYLES)
    least = Least()
    for _ in range(min(run.runs, 3)):
        least.take("attach", pair.ask("add", files, names))
        least.take("weight", pair.ask("weigh", dict.fromkeys(names, 0.25), _WEIGHS))
        least.take("remove", pair.ask("remove", names))
    for word, ours, theirs in least.items():
        run.figures.add(f"lora_4_{word}", ours, _PEFT, theirs, runs=min(run.runs, 3))
    pair.forget(files)


def dora(run: harness.Run, pair: Pair, full: bool) -> None:
    """The first time the layers' weights are read, so they are real; of each way one at a time."""
    pair.ask("unet", "shapes")
    runs = min(run.runs, 2)
    least = Least()
    files: list[str] = []
    for _ in range(runs):
        for way in _WAYS:
            pair.one(way, "unet", "filled" if full else "filled-small")
            files = files or pair.files(1, _RANKS[0], _NAMES[1], dora=True)
            for word in ("first", "again"):
                least.take(f"attach_{word}", {way: pair.one(way, "add", files, ["a"])})
                pair.one(way, "remove", ["a"])
            pair.one(way, "unet", "shapes")
    for word, ours, theirs in least.items():
        run.figures.add(f"lora_dora_{word}", ours, _PEFT, theirs, runs=runs)
    pair.forget(files)


def steps(run: harness.Run, pair: Pair) -> None:
    """RuntimeError where both ways do not give the same bits, or a style does not come back."""
    pair.ask("unet", "small")
    files, names = pair.files(len(_STYLES), _RANKS[0], _NAMES[0]), list(_STYLES)
    plain = [pair.ask("step", 1)["ours"]["digest"]]
    least, rounds = Least(), _ROUNDS * run.runs
    for count in (1, len(_STYLES)):
        pair.ask("add", files[:count], names[:count])
        weights = {name: 0.1 + number / 10 for number, name in enumerate(names[:count])}
        pair.ask("weigh", weights, 1)
        for _ in range(rounds):
            least.take(str(count), _same(pair.ask("step", _STEPS)))
        if count > 1:
            _switch(pair, names)
        pair.ask("remove", names[:count])
        for _ in range(rounds):
            least.take("plain", pair.ask("step", _STEPS))
        plain += [pair.one(way, "step", 1)["digest"] for way in _WAYS]
    if len(set(plain)) > 1:
        raise RuntimeError("a step without adapters gives something else after they were there")
    (*counts, (_, bare, _)) = sorted(least.items())
    for word, ours, theirs in counts:
        add, metric = run.figures.add, f"lora_step_with_{word}"
        add(metric, ours, _PEFT, theirs, runs=rounds, goal=within_times(1))
        add(metric, ours, "a step without", bare, runs=rounds)
    pair.forget(files)


def _same(answers: Answers) -> Answers:
    if answers["ours"]["digest"] != answers["peft"]["digest"]:
        raise RuntimeError("a step with adapters gives other bits than with PEFT's")
    return answers


def _switch(pair: Pair, names: list[str]) -> None:
    first = None
    for number in range(_SWITCHES + 1):
        pair.one("ours", "weigh", {names[number % 2]: 1.0}, 1)
        if number % 2 == 0:
            digest = pair.one("ours", "step", 1)["digest"]
            first = first or digest
            if digest != first:
                raise RuntimeError(f"after {number} switches a style gives something else")


def among_others(run: harness.Run, broker: harness.Broker, pair: Pair, full: bool) -> None:
    """One program changes styles on the large UNet while others generate on small ones."""
    small = pair.files(1, _RANKS[0], _NAMES[0])
    others = [
        programs.start(run, broker, "stock", "adapter_program.py", "ours")
        for _ in range(_GENERATING)
    ]
    for other in others:
        other.hear()
        other.ask(json.dumps(["unet", "small"]))
        other.ask(json.dumps(["add", small, ["a"]]))
    pair.ask("unet", "full" if full else "shapes")
    files = pair.files(2, _RANKS[0], _NAMES[1])
    pair.ask("add", files, ["a", "b"])
    for other in others:
        other.prompt(json.dumps(["generate"]))
    time.sleep(_SETTLE_S)
    answers = pair.ask("weigh", {"a": 1.0}, _BUSY_SWITCHES * run.runs)
    for other in others:
        if other.ask()["steps"] == 0:
            raise RuntimeError("a program that was to generate did not")
        other.end()
    run.figures.add(
        f"lora_switch_while_{_GENERATING}_generate_p50",
        answers["ours"]["p50"],
        _PEFT,
        answers["peft"]["p50"],
        runs=_BUSY_SWITCHES * run.runs,
        goal=_GOALS["weight"],
        applies=full,
    )
    pair.ask("remove", ["a", "b"])
    pair.forget([*small, *files])


def is_full(run: harness.Run) -> bool:
    """Whether there is to be, and room for, the UNet that the goals are about."""
    if run.arguments.size is not None:
        return bool(run.arguments.size >= _FULL)
    room = host.meminfo("MemAvailable")
    if room < _ROOM:
        words = f"it takes {_ROOM / 1e9:.0f} GB of memory, {room / 1e9:.1f} GB are available"
        run.figures.leave_out("the UNet of full size (a small one instead)", words)
    return room >= _ROOM


def measure(run: harness.Run) -> None:
    full = is_full(run)
    broker = run.broker()
    pair = Pair(run, broker)
    pair.ask("unet", "full" if full else "shapes")
    memory(run, pair)
    for rank in _RANKS:
        for names in _NAMES:
            attach(run, pair, rank, names, full)
    stack(run, pair)
    dora(run, pair, full)
    steps(run, pair)
    among_others(run, broker, pair, full)
    pair.end()


if __name__ == "__main__":
    sys.exit(harness.main("lora", "P9", __doc__, measure))
