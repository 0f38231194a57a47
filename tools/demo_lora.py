"""The demo's styles: the worker of examples/styles, switched while it paints, beside diffusers."""

from __future__ import annotations

import itertools
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo_broker import DemoBroker
from demo_parts import Claims, say
from demo_sharing import QUIET, Program
from line_worker import LineWorker

_TOOLS = Path(__file__).resolve().parent
_WORKER = _TOOLS.parent / "examples" / "styles" / "style_worker.py"
_STYLES = ("ink", "oil")
_STEPS = ("--steps", "4")
_SWITCHES = 20
_PAUSE = 0.02  # seconds between switches
_VERBS = {
    "add": ("added", "load_lora_weights"),
    "switch": ("switched", "set_adapters"),
    "remove": ("removed", "delete_adapters"),
}


class _Act:
    """One worker over a pipeline of the broker's, with two styles."""

    def __init__(self, broker: DemoBroker, folder: Path, pipeline: Path, claims: Claims) -> None:
        self._folder, self._pipeline, self._claims = folder, pipeline, claims
        self._environment = {**broker.environment, **QUIET, "OMP_NUM_THREADS": "1"}
        self._files = [folder / f"{style}.safetensors" for style in _STYLES]
        self._worker: LineWorker | None = None
        self._making: Program | None = None

    def start(self) -> LineWorker:
        """With both styles added, and none active."""
        making = (_TOOLS / "make_adapters.py", self._pipeline, *self._files)
        self._making = Program(self._environment, *making)  # meanwhile: imports take long
        command = [sys.executable, str(_WORKER), str(self._pipeline), *_STEPS]
        self._worker = worker = LineWorker(command, self._environment)
        worker.hear()
        self._making.end()
        added = [worker.ask(shlex.join(["add", file.stem, str(file)])) for file in self._files]
        self._claims.check(
            sum(style["private_bytes"] for style in added) == 0,
            f"{len(added)} styles beside {min(style['layers'] for style in added)} layers each: "
            "no byte of them is the worker's own",
        )
        return worker

    def switch(self, worker: LineWorker) -> None:
        """Pictures and the weights' hash before and after."""
        before = worker.ask("check")
        first = {style: self._painted(worker, style) for style in ("", *_STYLES)}
        switches = self._switch_while_painting(worker)
        steps = len({switch["step"] for switch in switches})
        self._claims.check(
            steps > 1 and len(set(first.values())) == len(first),
            f"{len(switches)} switches between ink and oil while it paints, "
            f"after {steps} different steps",
        )
        again = {style: self._painted(worker, style) for style in first}
        self._claims.check(
            again == first,
            "the pictures with each style and with none are the first ones, bit for bit",
        )
        after = worker.ask("check")
        say(f"       weights before  sha256 {before['sha256']}")
        say(f"       and after       sha256 {after['sha256']}")
        self._claims.check(
            before["sha256"] == after["sha256"] and after["written_bytes"] == 0,
            f"{after['shared_bytes'] / 1e6:.0f} MB of shared weights are what they were: "
            f"{after['written_bytes']} bytes written",
        )

    def _paint(self, picture: str) -> str:
        return shlex.join(["paint", str(self._folder / picture)])

    def _painted(self, worker: LineWorker, style: str) -> str:
        worker.ask(f"style {style}")
        painted: str = worker.ask(self._paint("out.png"))["sha256"]
        return painted

    def _switch_while_painting(self, worker: LineWorker) -> list[dict[str, Any]]:
        styles = itertools.cycle(_STYLES)
        done: list[dict[str, Any]] = []
        while len(done) < _SWITCHES:
            worker.prompt(self._paint("switched.png"))
            while "painted" not in (heard := worker.ask(f"style {next(styles)}")):
                if heard["step"]:  # of the picture: the worker is painting it
                    done.append(heard)
                time.sleep(_PAUSE)
            worker.hear()  # of the switch that came too late
        return done

    def compare(self, worker: LineWorker, quick: bool) -> None:
        """By turns, in the same process."""
        times = worker.ask("compare")
        for verb, (done, theirs) in _VERBS.items():
            ours, other = (times[way][f"{verb}_ms"] for way in ("modelbroker", "diffusers"))
            text = f"a style is {done} in {ours:.3f} ms; diffusers' {theirs}: {other:.1f} ms"
            if quick:
                say(f"  [--] {text}")
            else:
                self._claims.check(ours < other, f"{text}, {other / ours:.0f} times as long")
        own = [times[way]["private_bytes"] for way in ("modelbroker", "diffusers")]
        self._claims.check(
            own[0] == 0 < own[1],
            f"two styles cost {own[0]:.0f} bytes of the worker's own, "
            f"by diffusers {own[1] / 1e6:.1f} MB in each worker",
        )

    def end(self) -> None:
        if self._making is not None:
            self._making.kill()
        if self._worker is not None:
            self._worker.kill()


def show(binary: str, folder: Path, pipeline: Path, claims: Claims, quick: bool) -> None:
    """All of it, in a folder below this one. `quick`: no claim about speed."""
    own = Path(tempfile.mkdtemp(prefix="l-", dir=folder))
    broker = DemoBroker(binary, own, "-lora")
    act = _Act(broker, own, pipeline, claims)
    try:
        broker.start()
        worker = act.start()
        act.switch(worker)
        act.compare(worker, quick)
        worker.end()
    finally:
        act.end()
        broker.stop()
