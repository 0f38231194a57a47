"""A real broker process on folders of its own, as every Python test uses it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modelbroker

BINARY = os.environ.get("MODELBROKER_TEST_BROKER") or shutil.which("modelbroker") or "modelbroker"

# For a broker whose memory is counted: the address sanitizer keeps 256 MB of what was freed.
COUNTED = {"ASAN_OPTIONS": "quarantine_size_mb=1:thread_local_quarantine_size_kb=64"}


class BrokerProcess:
    """`modelbroker serve` with its own run folder, RAM folder and instance.

    start() and kill() may alternate: the folders stay. stop() ends it all.
    """

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.instance = f"t{uuid.uuid4().hex[:12]}"
        self.folder = Path(tempfile.mkdtemp(prefix="mb-"))  # short: it holds socket paths
        self.run = self.folder / "run"
        self.ram = Path("/dev/shm")
        self.log = self.folder / "log"
        self.flags = flags
        self.environment = {**os.environ, **(environment or {})}
        self.environment["MODELBROKER_ENDPOINT"] = self.endpoint
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.run}/broker.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def serve_command(self) -> list[str]:
        return [
            BINARY,
            "serve",
            "--run-directory",
            str(self.run),
            "--ram-directory",
            str(self.ram),
            "--instance",
            self.instance,
            *self.flags,
        ]

    def start(self, *more: str) -> BrokerProcess:
        """Returns when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.serve_command(), *more],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            modelbroker.connect(self.endpoint, timeout=30).close()
        except modelbroker.ModelBrokerError as error:
            raise AssertionError(f"the broker did not start: {error}\n{self.output()}") from None
        return self

    def kill(self) -> None:
        """SIGKILL: the crash that everything must survive."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM: the clean stop. Returns the exit status."""
        return self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP. Returns when every thread of it stands still; the signal alone does not."""
        freeze(self.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it does nothing."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(60)
        self.process = None
        return status

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def descriptors(self) -> int:
        """How many the broker has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def own_memory(self) -> int:
        """Bytes, without the shared memory of the blocks."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """Ends it and removes everything that it left."""
        if self.process is not None:
            self._end(signal.SIGKILL)
        for path in self.files():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- looking at it

    def connect(self, timeout: float = 30) -> modelbroker.Broker:
        return modelbroker.connect(self.endpoint, timeout=timeout)

    def files(self) -> list[Path]:
        """What lies in the RAM folder for this instance, the lock included."""
        return sorted(self.ram.glob(f"modelbroker.{os.geteuid()}.{self.instance}.*"))

    def blocks(self) -> list[Path]:
        return [path for path in self.files() if path.suffix != ".lock"]

    def bytes_in_ram(self) -> int:
        """As the kernel counts them, each file once: a rename by link and unlink has two names."""
        while True:
            try:
                found = [path.stat() for path in self.blocks()]
            except FileNotFoundError:
                continue  # removed since it was listed, or renamed: then it lies there yet
            return sum({file.st_ino: file.st_blocks * 512 for file in found}.values())

    def cli(
        self, *arguments: str | bytes | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of the CLI against this broker."""
        done = subprocess.run(
            [BINARY, *(a if isinstance(a, bytes) else str(a) for a in arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{arguments} gave {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def cli_json(self, *arguments: str | Path) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    def books(self) -> dict[str, int]:
        """The RAM tier, as `status --json` tells it."""
        books: dict[str, int] = self.cli_json("status")["tiers"]["ram"]
        return books

    def is_empty(self) -> bool:
        """No bytes, no leases, no file but the lock."""
        books = self.books()
        used = ("reserved", "made", "draining", "pinned", "leased", "models", "leases")
        return not self.blocks() and all(books[word] == 0 for word in used)


def freeze(child: int) -> None:
    """SIGSTOP to a child of ours; returns when every thread of it stands still."""
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED)


@contextmanager
def running(broker: BrokerProcess, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed at the end if it still does."""
    process = subprocess.Popen(
        [BINARY, *map(str, arguments)],
        env=broker.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(what: object, seconds: float = 30, every: float = 0.01) -> None:
    """Waits for a condition: generous, since these machines are slow at times."""
    assert callable(what)
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"not so within {seconds} s: {what}")
        time.sleep(every)


def run_python(
    script: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter, warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_python(
    script: str, arguments: Sequence[str] = (), environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a worker; it speaks by lines on its standard output."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
