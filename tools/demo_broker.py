"""A broker of the demo's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import modelbroker


class DemoBroker:
    """`modelbroker serve` in folders of its own: a broker of yours is not disturbed."""

    def __init__(self, binary: str, folder: Path, suffix: str = "") -> None:
        self.binary, self.folder = binary, folder
        self.endpoint = f"ipc://{folder}/run/broker.sock"
        self.environment = {**os.environ, "MODELBROKER_ENDPOINT": self.endpoint}
        self.instance = f"demo-{os.getpid()}{suffix}"
        self.log = (folder / "broker.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it answers."""
        began = time.perf_counter()
        command = [self.binary, "serve", "--run-directory", str(self.folder / "run")]
        self.process = subprocess.Popen(
            [*command, "--instance", self.instance], stdout=self.log, stderr=self.log
        )
        modelbroker.connect(self.endpoint, timeout=30).close()
        return time.perf_counter() - began

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        self.log.close()
        # The lock stays for the next broker of an instance, and so do blocks; this one has no next.
        for path in Path("/dev/shm").glob(f"modelbroker.{os.geteuid()}.{self.instance}.*"):
            path.unlink(missing_ok=True)

    def cli(self, *arguments: str) -> Any:
        done = subprocess.run(
            [self.binary, *arguments, "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    def leases(self) -> int:
        found: int = self.cli("status")["tiers"]["ram"]["leases"]
        return found

    def wait_for_leases(self, count: int) -> bool:
        end = time.monotonic() + 30
        while self.leases() != count:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True
