"""The code blocks of a page, and two shells that run them in order, as a reader would.

A page's blocks share one folder, one bash and one Python. A block of `text` right after one that
runs is what that one prints: digits may differ, words may not. A block that builds, installs, or
needs what a test machine lacks is marked above it, and does not run:

    <!-- not run: it needs systemd -->
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RUN = ("bash", "python")  # languages of blocks that run
SHOWN = ("text", "toml", "cmake", "cpp", "json")  # of blocks that are only read

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*")
_FENCE = re.compile(r"```(\w*)\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the first of its own."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""  # why
    prints: str | None = None  # as the block of `text` after it says

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """In order. ValueError for a block in no language, or in one that is neither run nor read."""
    found: list[Block] = []
    lines = text.splitlines()
    reason, follows = "", False  # follows: nothing but empty lines since a block that runs
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if marked := _NOT_RUN.fullmatch(line):
            reason = marked[1]
        fence = _FENCE.fullmatch(line)
        if not fence:
            follows = follows and not line.strip()
            continue
        first = at
        while at < len(lines) and lines[at].rstrip() != "```":
            at += 1
        body = "".join(f"{inner}\n" for inner in lines[first:at])
        at += 1
        if fence[1] not in RUN + SHOWN:
            raise ValueError(f"{page}:{first}: a block in {fence[1] or 'no language'!r}")
        block = Block(page, first + 1, fence[1], body, reason)
        if fence[1] == "text" and follows:
            found[-1] = dataclasses.replace(found[-1], prints=body)
        else:
            found.append(block)
        follows = fence[1] in RUN and not reason
        reason = ""
    return found


def same_words(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: white space and numbers may differ.

    A line of "..." stands for any lines.
    """
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(f"{line}\n") for line in _plain(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _plain(printed))) is not None


def _plain(text: str) -> list[str]:
    words = re.compile(r"\b(?:[0-9][0-9a-f.,]*|[0-9a-f]{8,}\b)")
    return [words.sub("#", " ".join(line.split())) for line in text.strip().splitlines()]


# Reads a block a line, as JSON, and runs it; where one fails, the traceback is what it prints.
_PYTHON = """
import json, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    where, text, end = json.loads(line)
    exec(compile(text, where, "exec"), names)
    print(end, flush=True)
"""


class _Shell:
    """A bash or a Python that goes on from block to block."""

    def __init__(self, language: str, folder: Path, environment: dict[str, str]) -> None:
        self._is_bash = language == "bash"
        command = ["bash", "-eo", "pipefail"] if self._is_bash else [sys.executable, "-c", _PYTHON]
        self._errors = (folder / f".{language}-errors").open("w+")
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # with all that its blocks leave running
        )

    def run(self, block: Block, seconds: float) -> str:
        """What it prints; AssertionError where it fails or does not end."""
        end = f"end of {block}"
        text = f"{block.text}\necho '{end}'\n"
        if not self._is_bash:
            text = json.dumps([str(block), block.text, end]) + "\n"
        process = self._process
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.flush()
        printed = self._until(f"{end}\n".encode(), time.monotonic() + seconds)
        if printed is None:
            raise AssertionError(f"{block} failed:\n{block.text}\n{self._said()}")
        return printed.removesuffix(f"{end}\n")

    def _until(self, end: bytes, by: float) -> str | None:
        assert self._process.stdout is not None
        out, read = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while not read.endswith(end):
                if not selector.select(max(0.0, by - time.monotonic())):
                    return None
                more = os.read(out, 1 << 16)
                if not more:
                    return None
                read += more
        return read.decode(errors="replace")

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:]

    def stop(self) -> None:
        """Ends it and all that it started."""
        for how, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.communicate()
        self._errors.close()


class Reader:
    """Follows a page to the letter, in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._shells: dict[str, _Shell] = {}

    def follow(self, block: Block, seconds: float = 120) -> None:
        """Runs a block and compares what it prints with what the page shows."""
        if block.language not in self._shells:
            self._shells[block.language] = _Shell(block.language, self._folder, self._environment)
        printed = self._shells[block.language].run(block, seconds)
        if block.prints is not None and not same_words(block.prints, printed):
            raise AssertionError(f"{block} shows\n{block.prints}\nand prints\n{printed}")

    def stop(self) -> None:
        """Ends what its blocks started: workers first, then brokers."""
        for language in sorted(self._shells, reverse=True):
            self._shells[language].stop()


@contextmanager
def reader(folder: Path, environment: dict[str, str]) -> Iterator[Reader]:
    """A reader whose processes end with the body."""
    reading = Reader(folder, environment)
    try:
        yield reading
    finally:
        reading.stop()
