"""The example service as its user runs it: real processes, real HTTP, a real model.

A start imports torch and transformers in three processes, so tests share a service until one of
them ends it; the next one has another.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compiled_model
from support.broker import BrokerProcess, wait_until
from support.examples import SOURCES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVICE = str(SOURCES / "python_service" / "embedding_service.py")
CATS = ["A cat sleeps.", "The kitten is asleep.", "Revenue grew by eleven percent."]
WORKERS = 2


class Service:
    """A running embedding_service.py."""

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, SERVICE, str(folder), "--name", "cats", "--port", "0"),
                *("--workers", str(WORKERS), "--endpoint", broker.endpoint),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.url = self.hear("listening on ").split()[2].rstrip(",")

    def hear(self, beginning: str) -> str:
        """The next line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line
        raise AssertionError(f"the service ended: status {self.process.wait()}")

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + path, body, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def embed(self, sentences: list[str]) -> dict[str, Any]:
        status, answer = self.ask("/embed", json.dumps({"sentences": sentences}).encode())
        assert status == 200, answer
        return answer

    def pids(self) -> set[int]:
        """Its workers."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return {int(word) for word in found.stdout.split()}


class Stage:
    """A broker, a model's folder, and a service on both: a new one where a test ended the last."""

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self._service: Service | None = None

    def service(self) -> Service:
        if self._service is None or self._service.process.poll() is not None:
            self.stop()
            self._service = Service(self.broker, self.folder)
        return self._service

    def stop(self) -> None:
        if self._service is not None:
            self._service.process.terminate()
            self._service.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def stage(shared: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("model")
    for path in compiled_model.demo_model().iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    made = Stage(shared, folder)
    try:
        yield made
    finally:
        made.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def leases(broker: BrokerProcess) -> int:
    return broker.books()["leases"]


def test_embeds_with_several_workers_on_one_block(stage: Stage) -> None:
    service, broker = stage.service(), stage.broker
    assert leases(broker) == WORKERS
    assert len(broker.blocks()) == 1
    answers = [service.embed(CATS) for _ in range(20)]
    vectors = answers[0]["embeddings"]
    assert all(answer["embeddings"] == vectors for answer in answers)
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in vectors)
    assert dot(vectors[0], vectors[1]) > 0.5 > dot(vectors[0], vectors[2])
    assert {answer["pid"] for answer in answers} <= service.pids()
    alone = service.embed(CATS[:1])["embeddings"][0]
    assert max(abs(a - b) for a, b in zip(alone, vectors[0], strict=True)) < 1e-5


def test_wrong_requests_get_typed_errors_and_the_next_is_answered(stage: Stage) -> None:
    service = stage.service()
    long = json.dumps({"sentences": ["word " * 3000]}).encode()
    assert service.ask("/embed", long)[0] == 200, "too long for the model: cut"
    for path, body, status, code in [
        ("/embed", b"{", 400, "invalid_argument"),
        ("/embed", b"[" * 100_000, 400, "invalid_argument"),
        ("/embed", b'{"sentences": "one"}', 400, "invalid_argument"),
        ("/embed", b'{"sentences": [1]}', 400, "invalid_argument"),
        ("/embed", b'{"sentences": []}', 400, "invalid_argument"),
        ("/embed", json.dumps({"sentences": ["a"] * 257}).encode(), 400, "invalid_argument"),
        ("/elsewhere", b"{}", 404, "not_found"),
        ("/elsewhere", None, 404, "not_found"),
    ]:
        got, answer = service.ask(path, body)
        assert (got, answer["error"]["code"]) == (status, code), body and body[:40]
    port = int(service.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"POST /embed HTTP/1.0\r\nContent-Length: 999999999\r\n\r\n")
        assert raw.makefile("rb").readline().split()[1] == b"400"
    assert len(service.embed(CATS)["embeddings"]) == 3


def test_killed_workers_are_replaced_and_the_broker_is_not_missed(stage: Stage) -> None:
    service, broker = stage.service(), stage.broker
    before = service.embed(CATS)["embeddings"]
    path, elsewhere = stage.folder / "model.safetensors", stage.folder / "elsewhere"
    path.rename(elsewhere)
    try:
        broker.kill()
        assert service.embed(CATS)["embeddings"] == before
        status, health = service.ask("/health")
        assert (status, health["broker"]["error"]["code"]) == (200, "unavailable")
        broker.start()
        wait_until(lambda: leases(broker) == WORKERS)
        assert "boot_id" in service.ask("/health")[1]["broker"]
        victims = service.pids()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for _ in victims:
            service.hear("worker ")
        assert service.embed(CATS)["embeddings"] == before, "from the block: the file is gone"
        assert not victims & service.pids()
    finally:
        elsewhere.rename(path)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(stage: Stage, how: signal.Signals) -> None:
    service = stage.service()
    service.embed(CATS)
    pids = service.pids()
    assert len(pids) == WORKERS
    service.process.send_signal(how)
    assert service.process.wait(120) == 0
    assert not any(alive(pid) for pid in pids)
    wait_until(lambda: leases(stage.broker) == 0)


def test_its_workers_end_when_it_is_killed(stage: Stage) -> None:
    service = stage.service()
    assert leases(stage.broker) == WORKERS
    service.process.kill()
    service.process.wait()
    wait_until(lambda: leases(stage.broker) == 0)


@pytest.mark.parametrize("missing", ["broker", "model"])
def test_says_what_is_missing(make_broker: Any, tmp_path: Path, missing: str) -> None:
    broker = make_broker()
    if missing == "model":
        broker.start()
    done = subprocess.run(
        [sys.executable, SERVICE, str(tmp_path), "--endpoint", broker.endpoint],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    wanted = "not_found: " if missing == "model" else "unavailable: "
    assert done.stderr.startswith(f"error: {wanted}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_of_another_model_is_refused_by_name(broker: BrokerProcess, tmp_path: Path) -> None:
    for path in compiled_model.demo_model().iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"other": np.zeros(8)}, tmp_path / "model.safetensors")
    done = subprocess.run(
        [
            *(sys.executable, SERVICE, str(tmp_path), "--endpoint", broker.endpoint),
            *("--port", "0", "--workers", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert "error: invalid_argument: embedder is not the model of" in done.stderr
    assert "could not start: status 1" in done.stdout
