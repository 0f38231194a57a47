"""What the demo is made of: claims, and workers that answer by JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORKER = str(Path(__file__).with_name("demo_worker.py"))


def say(text: str = "") -> None:
    print(text, flush=True)


class Claims:
    """What the demo says is so, each looked at when it is made."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, holds: bool, text: str) -> None:
        say(f"  [{'ok' if holds else 'FAILED'}] {text}")
        self.failed += not holds


class Worker:
    """A process that answers by JSON lines."""

    def __init__(self, *arguments: str, command: Sequence[str] = (sys.executable, _WORKER)) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            env=environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"},
        )

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker died: {self.process.args!r}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, **wanted: object) -> dict[str, Any]:
        self.prompt(**wanted)
        return self.hear()

    def prompt(self, **wanted: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(wanted) if wanted else "") + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=60)
