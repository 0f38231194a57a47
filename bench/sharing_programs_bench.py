"""P13: unmodified programs over one file, by `python` and by `python -m modelbroker.run`.

A language model of transformers, one program and four at once: from the call that loads it to the
first output, imports in no figure, and the PSS of the mappings in which its weights lie. Stock
safetensors shares the page cache already. Then what the first reader waits for, where the broker
has to load the file; and what modelbroker.run adds to a small program, from its start to its end.
"""

from __future__ import annotations

import functools
import math
import shutil
import sys
from pathlib import Path

import harness
import host
import loads
import programs
import sources
from figures import at_most_more, within_times

_PROGRAMS = 4
_MOST_RUNS = 3  # of what imports transformers
_SMALL = 4_000_000
_LIGHT_ROUNDS = 10  # for each of --runs: 20 ms each


class Programs:
    """Language models over one file."""

    def __init__(self, run: harness.Run, broker: harness.Broker, folder: Path) -> None:
        self._run, self._broker, self._folder = run, broker, folder
        self._value: float | None = None

    def at_once(self, way: str, count: int) -> tuple[float, int]:
        """The slowest one's seconds to its first output, and the PSS of all weights.

        RuntimeError where one computes something else than the first of all did.
        """
        workers = [
            programs.start(self._run, self._broker, way, "unmodified_program.py", self._folder)
            for _ in range(count)
        ]
        for worker in workers:
            worker.hear()
        for worker in workers:
            worker.prompt("go")
        answers = [worker.hear() for worker in workers]
        memory = sum(int(worker.ask("memory")["memory"]) for worker in workers)
        for worker in workers:
            worker.end()
        for answer in answers:
            value = float(answer["value"])
            self._value = self._value or value
            if not math.isclose(value, self._value, rel_tol=1e-4):
                raise RuntimeError(f"{way}: {value} instead of {self._value}")
        return max(float(answer["seconds"]) for answer in answers), memory

    def best(self, runs: int, count: int) -> dict[str, tuple[float, int]]:
        """The least of each over some rounds, in turns."""
        best = dict.fromkeys(programs.EITHER, (math.inf, sys.maxsize))
        for _ in range(runs):
            for way, (seconds, memory) in best.items():
                took, had = self.at_once(way, count)
                best[way] = min(seconds, took), min(memory, had)
        return best

    def first(self, way: str) -> float:
        """Seconds to the first output of one program."""
        return self.at_once(way, 1)[0]


def first_readers(run: harness.Run, broker: harness.Broker, model: Programs, path: Path) -> None:
    """Where the broker does not have the file: its first program waits for the load."""

    def first(way: str, cached: bool) -> float:
        for resident in broker.cli("ps") if way == "shared" else ():
            broker.unload(resident["name"])
        if cached:
            harness.read_through(path)
        else:
            host.forget_cached(path)
        return model.first(way)

    runs, memory = min(run.runs, 2), loads.memory_of(path)
    for words, cached in (("cold", False), ("cached", True)):
        ways = {way: functools.partial(first, way, cached) for way in programs.EITHER}
        best = loads.best_of(runs, ways, memory)
        run.figures.add(
            f"program_first_reader_{words}",
            best["shared"],
            "stock, first reader too" if not cached else "stock, file cached",
            best["stock"],
            runs=runs,
        )


def many_readers(run: harness.Run, model: Programs) -> None:
    """The block is there, and the file is in the page cache, as stock programs' faults fill it."""
    runs = min(run.runs, _MOST_RUNS)
    one, four = model.best(runs, 1), model.best(runs, _PROGRAMS)
    add, stock = run.figures.add, "stock, page cache"
    add("program_one", one["shared"][0], stock, one["stock"][0], runs=runs)
    add("program_four_slowest", four["shared"][0], stock, four["stock"][0], runs=runs)
    add(
        "program_four_pss",
        four["shared"][1],
        "one file",
        run.size,
        runs=runs,
        unit="bytes",
        goal=within_times(1.02),
        applies=run.whole,
    )
    memory = four["stock"][1]
    add("program_four_pss", four["shared"][1], stock, memory, runs=runs, unit="bytes")


def starts(run: harness.Run, broker: harness.Broker) -> None:
    """What modelbroker.run adds to a whole program, with a file of 4 MB that is resident."""
    folder = run.folder / "programs"
    folder.mkdir(exist_ok=True)
    small = folder / "small.safetensors"
    sources.write_random(small, _SMALL, 4, seed=1)
    broker.load(small, "small")
    (folder / "light.py").write_text("print('done')\n")
    (folder / "loading.py").write_text(
        "import safetensors.torch\n"
        f"tensors = safetensors.torch.load_file({small.name!r})\n"
        "print(sum(float(tensor[0]) for tensor in tensors.values()))\n"
    )

    def best(runs: int, **commands: tuple[str, ...]) -> dict[str, float]:
        ways = {
            way: functools.partial(programs.seconds, broker, command, folder)
            for way, command in commands.items()
        }
        for start in ways.values():
            start()  # compiles what is not compiled yet
        return loads.best_of(runs, ways)

    run.say_size(small)
    for name, rounds, goal in (
        ("light", _LIGHT_ROUNDS * run.runs, at_most_more(0.010, "<= baseline + 10 ms")),
        ("loading", 2 * run.runs, at_most_more(0.100, "<= baseline + 100 ms")),
    ):
        script = f"{name}.py"
        ways = {"shared": (*programs.SHARED, script), "stock": (*programs.STOCK, script)}
        if name == "light":
            ways["module"] = (*programs.STOCK, "-m", name)
        found = best(rounds, **ways)
        add = run.figures.add
        add(f"run_{name}", found["shared"], "python", found["stock"], runs=rounds, goal=goal)
        if name == "light":
            add(f"run_{name}", found["shared"], "python -m", found["module"], runs=rounds)
    shutil.rmtree(folder)


def measure(run: harness.Run) -> None:
    # Its block, its page cache, and room.
    size = min(run.wanted_size(copies=3), 2_700_000_000)
    folder = run.folder / "language-model"
    path = sources.language_model(folder, size)
    broker = run.broker()
    run.say_size(path)
    loaded = broker.load(path)
    run.figures.say_of_all(page_kind=loaded["page_kind"])
    model = Programs(run, broker, folder)
    model.first("stock")
    many_readers(run, model)
    first_readers(run, broker, model, path)
    starts(run, broker)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(harness.main("sharing_programs", "P13", __doc__, measure))
