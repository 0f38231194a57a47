"""A worker that is asked by lines and answers by JSON lines: for the demo and the benchmarks."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class LineWorker:
    """Asked on its standard input, heard on its standard output; its errors go where ours go."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def hear(self) -> dict[str, Any]:
        """Its next answer; RuntimeError where it died instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker died: {self.process.args!r}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def prompt(self, line: str = "") -> None:
        """Asks, and does not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: str = "") -> dict[str, Any]:
        self.prompt(line)
        return self.hear()

    def end(self) -> None:
        """It ends by itself at the end of its input."""
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=120)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
