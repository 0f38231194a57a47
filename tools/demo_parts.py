"""What the demo is made of: claims, and workers that answer by JSON lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from line_worker import LineWorker

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


class Worker(LineWorker):
    """A process of demo_worker.py, or one that speaks alike."""

    def __init__(self, *arguments: str, command: Sequence[str] = (sys.executable, _WORKER)) -> None:
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **quiet}
        super().__init__([*command, *arguments], environment)
