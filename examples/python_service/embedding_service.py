"""Embeds sentences over HTTP: several processes, one copy of the weights.

    modelbroker serve &
    embedding_service.py MODEL_FOLDER --name minilm --workers 4
    curl -d '{"sentences": ["A cat sleeps."]}' http://127.0.0.1:8765/embed

The broker loads MODEL_FOLDER/model.safetensors once; every worker maps it. A worker that dies is
replaced, and does not load anything again; a broker that dies is not even noticed by requests.
SIGTERM or Ctrl-C: the requests that run are answered, then it ends.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

import modelbroker

_WORKER = str(Path(__file__).with_name("service_worker.py"))
_GRACE = 15.0  # seconds for the requests that run


def say(text: str) -> None:
    print(text, flush=True)


class Service:
    """The workers, and the socket that they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.listening = socket.create_server(("127.0.0.1", arguments.port), backlog=128)
        self.command = [sys.executable, _WORKER, "--socket", str(self.listening.fileno())]
        if arguments.endpoint:
            self.command += ["--endpoint", arguments.endpoint]
        self.command += [arguments.name, str(arguments.folder)]
        self.wanted: int = arguments.workers
        self.workers: dict[int, subprocess.Popen[bytes]] = {}  # by their pid
        self.ready: set[int] = set()
        self.selector = selectors.DefaultSelector()
        # A signal makes a byte here, which ends the wait in select().
        self.signals, signalled = socket.socketpair()
        self.signalled = signalled
        signalled.setblocking(False)
        self.selector.register(self.signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(signalled.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Until a signal; 1 if a worker cannot start."""
        for _ in range(self.wanted):
            self._start()
        try:
            while True:
                for key, _ in self.selector.select():
                    if key.fileobj is self.signals:
                        say("stopping")
                        return 0
                    if not self._heard(self.workers[key.data]):
                        return 1
        finally:
            self._stop()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for the service, which tells the workers.
        worker = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.listening.fileno()],
            start_new_session=True,
        )
        assert worker.stdout is not None
        self.workers[worker.pid] = worker
        self.selector.register(worker.stdout, selectors.EVENT_READ, worker.pid)

    def _heard(self, worker: subprocess.Popen[bytes]) -> bool:
        """It is ready, or it ended and is replaced. False: it never was ready."""
        assert worker.stdout is not None
        if os.read(worker.stdout.fileno(), 4096):
            is_new = worker.pid not in self.ready
            self.ready.add(worker.pid)
            if is_new and len(self.ready) == self.wanted:
                port = self.listening.getsockname()[1]
                say(f"listening on http://127.0.0.1:{port}, {self.wanted} workers")
            return True
        self.selector.unregister(worker.stdout)
        status = self._end(worker)
        if worker.pid not in self.ready:
            say(f"worker {worker.pid} could not start: status {status}")
            return False
        self.ready.remove(worker.pid)
        say(f"worker {worker.pid} ended with status {status}: replaced")
        self._start()
        return True

    def _end(self, worker: subprocess.Popen[bytes]) -> int:
        """Waits for it, kills it if it takes too long."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        del self.workers[worker.pid]
        try:
            status = worker.wait(_GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            status = worker.wait()
        worker.stdin.close()
        worker.stdout.close()
        return status

    def _stop(self) -> None:
        self.listening.close()
        for worker in self.workers.values():
            worker.terminate()
        for worker in list(self.workers.values()):
            self._end(worker)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the model, as transformers saves it")
    parser.add_argument("--name", default="embedder", help="the model's with the broker")
    parser.add_argument("--port", type=int, default=8765, help="on 127.0.0.1; 0: any free one")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--endpoint", help="of the broker, if it is not in the usual place")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    try:
        # Once for all of them, and errors are told once.
        with modelbroker.connect(arguments.endpoint) as broker:
            loaded = broker.load(arguments.folder / "model.safetensors", arguments.name)
    except modelbroker.ModelBrokerError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr)
        return 1
    say(f"{loaded.model}: {loaded.payload_bytes / 1e6:.0f} MB, {loaded.outcome}")
    try:
        return Service(arguments).run()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
