"""The demo's unmodified programs: those of examples/unmodified, stock and under modelbroker.run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import compiled_model
import weight_memory
from demo_broker import DemoBroker
from demo_parts import Claims, say

_TOOLS = Path(__file__).resolve().parent
_PROGRAMS = _TOOLS.parent / "examples" / "unmodified"
_RUN = ("-m", "modelbroker.run", "--report")
_WIDE = "3"  # of the pipeline: 280 MB
_STEPS, _QUICK_STEPS = ("--steps", "10"), ("--steps", "3")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


class Program:
    """A Python program that runs."""

    def __init__(self, environment: Mapping[str, str], *command: str | Path) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `end`
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid

    def hold_at(self, line: str) -> None:
        """Returns when it has printed this line and stands still."""
        assert self._process.stdout is not None
        while (heard := self._process.stdout.readline()) != f"{line}\n":
            if not heard:
                self.end()
                raise RuntimeError(f"it did not print {line!r}: {self._process.args!r}")
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> tuple[str, str]:
        """What it (still) printed, and its errors, which are shown where it failed."""
        printed, _ = self._process.communicate()
        with self._errors as errors:
            errors.seek(0)
            told = errors.read()
        if self._process.returncode != 0:
            sys.stderr.write(told)
        return printed, told

    def kill(self) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _peak(programs: Sequence[Program], word: str) -> int:
    """Until they end: the most that their mappings of files with this word cost together."""
    most = 0

    def read() -> list[int]:
        return [weight_memory.of_files(word, program.pid) for program in programs]

    while any(program.is_running() for program in programs):
        with contextlib.suppress(OSError):  # one has just ended
            now = read()
            if now == read():  # none let go meanwhile, by which the others' shares would grow
                most = max(most, sum(now))
        time.sleep(0.02)
    return most


class _Acts:
    """What is shown, with a broker of its own."""

    def __init__(self, broker: DemoBroker, folder: Path, claims: Claims, quick: bool) -> None:
        self._broker, self._folder, self._claims = broker, folder, claims
        self._steps = _QUICK_STEPS if quick else _STEPS
        self._environment = {**broker.environment, **QUIET, "OMP_NUM_THREADS": "1"}
        self.pipeline = folder / "pipeline"
        self.programs: list[Program] = []

    def start(self, *command: str | Path) -> Program:
        self.programs.append(Program(self._environment, *command))
        return self.programs[-1]

    def _start_painting(self, name: str, *launcher: str) -> Program:
        picture = self._folder / name
        return self.start(*launcher, _PROGRAMS / "paint.py", self.pipeline, picture, *self._steps)

    def _picture(self, name: str) -> bytes:
        path = self._folder / name
        return path.read_bytes() if path.exists() else b""

    def _blocks(self) -> list[tuple[str, int]]:
        return [(model["block"], model["generation"]) for model in self._broker.cli("ps")]

    def one_after_another(self) -> None:
        """Both programs stock, and the first one shared. Two run at a time: imports take long."""
        model = compiled_model.demo_model()
        embed = (_PROGRAMS / "embed.py", model)
        making = self.start(_TOOLS / "small_models.py", self._folder, "pipeline", "--wide", _WIDE)
        expected, _ = self.start(*embed).end()
        making.end()
        embedding = self.start(*_RUN, *embed)
        painting = self._start_painting("stock.png")
        painting.hold_at("painting")
        printed, report = embedding.end()
        say("  python -m modelbroker.run --report examples/unmodified/embed.py MODEL")
        for line in report[max(0, report.find("modelbroker:")) :].splitlines():
            say(f"    {line}")
        same = printed == expected != ""
        self._claims.check(same, "embed.py prints what it prints without modelbroker")
        self._claims.check("1 of 1 files shared" in report, "and its model is shared")
        painting.go_on()
        self._stock = _peak([painting], str(self.pipeline))
        painting.end()

    def two_at_once(self) -> None:
        """The broker is killed while both paint."""
        say("  python -m modelbroker.run --report examples/unmodified/paint.py PIPELINE out.png")
        names = ("one.png", "two.png")
        both = [self._start_painting(name, *_RUN) for name in names]
        for program in both:
            program.hold_at("painting")  # for the other one
        before = self._blocks()
        for program in both:
            program.go_on()
        self._broker.kill()
        killed_in_time = not any(self._picture(name) for name in names)
        most = _peak(both, f".{self._broker.instance}.")
        reports = [program.end()[1] for program in both]
        self._compare(most, all("4 of 4 files shared" in report for report in reports))
        alike = all(self._picture(name) == self._picture("stock.png") != b"" for name in names)
        self._claims.check(
            killed_in_time and alike,
            "broker SIGKILLed while both paint: both finish, with the picture of a stock program",
        )
        self._broker.start()
        same = self._blocks() == before
        self._claims.check(same, f"the next broker has the same {len(before)} blocks")

    def _compare(self, most: int, all_shared: bool) -> None:
        size = sum(file.stat().st_size for file in self.pipeline.rglob("*.safetensors"))
        self._claims.check(
            all_shared and 0.95 * size < most < 1.06 * size,
            f"two at once hold {most / size:.2f} copies of {size / 1e6:.0f} MB (PSS of the blocks)",
        )
        say(f"  Stock: {self._stock / 1e6:.0f} MB, for all programs too: pages of the files in the")
        say("  page cache, for as long as the kernel keeps them.")


def show(binary: str, folder: Path, claims: Claims, quick: bool) -> Path:
    """All of it, in a folder below this one. Returns the pipeline that it made there."""
    own = Path(tempfile.mkdtemp(prefix="s-", dir=folder))
    broker = DemoBroker(binary, own, "-sharing")
    acts = _Acts(broker, own, claims, quick)
    try:
        broker.start()
        acts.one_after_another()
        acts.two_at_once()
    finally:
        for program in acts.programs:
            program.kill()
        broker.stop()
    return acts.pipeline
