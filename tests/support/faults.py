"""`modelbroker_faulty`: a broker that dies at a named point, or whose k-th system call fails.

The page is tests/support/fault_page.h, word for word.
"""

from __future__ import annotations

import errno
import mmap
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.broker import BINARY, BrokerProcess

FAULTY = str(Path(BINARY).with_name("modelbroker_faulty"))

_BYTES = 8192
_WORDS = struct.Struct("8Q64s448s")  # armed, 5 wishes and counts, crash_point, only
_FAILED, _POINTS = slice(576, 640), slice(640, 640 + 4096)
_CLOCK = 640 + 4096


@dataclass(frozen=True)
class Told:
    """What the broker counted since it was armed."""

    calls: int
    failed: int
    passed: int
    first_failed: str


class FaultPage:
    """The page of one broker; a new broker on the same page is armed as the old one was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(_BYTES))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _BYTES)

    def fail_at(
        self, call: int, error_number: int, *, for_ever: bool = False, only: tuple[str, ...] = ()
    ) -> None:
        """From now on the `call`-th call (of those named) fails; 0 counts and fails none."""
        self._arm(call, error_number, int(for_ever), 0, "", f",{','.join(only)}," if only else "")

    def crash_at(self, point: str, passing: int = 1, *, for_ever: bool = False) -> None:
        """From now on the broker kills itself when it passes that point; each next one, too."""
        self._arm(0, 0, int(for_ever), passing, point, "")

    def set_clock(self, seconds: float) -> None:
        """The broker's time from now on: since the machine's start; 0: the real one."""
        struct.pack_into("Q", self._page, _CLOCK, int(seconds * 1e9))

    def disarm(self) -> Told:
        self._page[:8] = bytes(8)
        words = _WORDS.unpack_from(self._page)
        return Told(words[5], words[6], words[7], _text(self._page[_FAILED]))

    def points(self) -> list[str]:
        """The names that a broker on this page told when it started."""
        return _text(self._page[_POINTS]).split()

    def _arm(
        self, fail_at: int, error: int, for_ever: int, crash_at: int, point: str, only: str
    ) -> None:
        self._page[:8] = bytes(8)
        self._page[_FAILED] = bytes(64)
        assert len(point) < 64
        assert len(only) < 448
        wishes = (0, fail_at, error, for_ever, crash_at, 0, 0, 0, point.encode(), only.encode())
        _WORDS.pack_into(self._page, 0, *wishes)
        self._page[:8] = struct.pack("Q", 1)  # last


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode()


class FaultyBroker(BrokerProcess):
    """A broker of `modelbroker_faulty`, or of the real program after `real()`."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.faults = FaultPage(self.folder / "faults")
        self.environment["MODELBROKER_FAULTS"] = str(self.faults.path)
        self.binary = FAULTY

    def serve_command(self) -> list[str]:
        return [self.binary, *super().serve_command()[1:]]

    def real(self) -> FaultyBroker:
        """The next start is the shipped program's."""
        self.binary = BINARY
        return self

    def dies_and_is_followed(self) -> None:
        """Waits for its SIGKILL; the next one is the shipped program's, and no call of it fails."""
        assert self.wait() == -signal.SIGKILL
        self.faults.disarm()
        self.real().start()

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts it and does not wait until it answers: it may die before."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.serve_command(),
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self.process

    def wait(self) -> int:
        """Waits for its death; the exit status."""
        assert self.process is not None
        status = self.process.wait(60)
        self.process = None
        return status


def error_name(number: int) -> str:
    return errno.errorcode[number]
