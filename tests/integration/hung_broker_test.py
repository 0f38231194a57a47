"""A broker that hangs: whoever asks it is told so in time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import modelbroker
from modelbroker import _pool
from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import hanging_file

DEADLINE_EXCEEDED = 19
LIMIT = 10  # seconds that a command without a deadline of its own waits


@pytest.fixture
def stopped(broker: BrokerProcess) -> Iterator[BrokerProcess]:
    with broker.frozen():
        yield broker


@pytest.mark.parametrize("timeout", ["0.1", "300ms"])
def test_a_load_ends_at_its_deadline(stopped: BrokerProcess, tmp_path: Path, timeout: str) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 1)
    began = time.monotonic()
    done = stopped.cli("load", source, "--timeout", timeout, check=False)
    assert time.monotonic() - began < LIMIT
    assert done.returncode == DEADLINE_EXCEEDED
    assert "hangs" in done.stderr


def test_a_question_ends_too(stopped: BrokerProcess) -> None:
    done = stopped.cli("ls", check=False)
    assert done.returncode == DEADLINE_EXCEEDED
    assert "hangs" in done.stderr


def test_a_load_that_waits_for_nothing_else_is_served_when_it_goes_on(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.freeze()
    source = files.write_random(tmp_path / "m.safetensors", 1)
    assert broker.cli("load", source, "--timeout", "0.1", check=False).returncode != 0
    broker.thaw()
    assert broker.cli_json("load", source, "--timeout", "1m")["outcome"] in ("loaded", "resident")


# ---- the Python client


def refusal_of_connect(endpoint: str, timeout: float) -> modelbroker.ModelBrokerError:
    began = time.monotonic()
    with pytest.raises(modelbroker.ModelBrokerError) as caught:
        modelbroker.connect(endpoint, timeout=timeout)
    assert time.monotonic() - began < LIMIT
    return caught.value


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_connect_calls_a_stopped_broker_stopped(stopped: BrokerProcess, timeout: float) -> None:
    error = refusal_of_connect(stopped.endpoint, timeout)
    assert type(error) is modelbroker.BrokerHangsError
    assert isinstance(error, modelbroker.DeadlineExceededError)
    assert not isinstance(error, modelbroker.UnavailableError)
    assert stopped.endpoint in str(error)
    assert f"kill -CONT {stopped.pid}" in str(error)


def test_connect_calls_a_broker_whose_queue_is_full_hanging(stopped: BrokerProcess) -> None:
    waiting: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        while True:
            kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            waiting.append(stack.enter_context(socket.socket(socket.AF_UNIX, kind)))
            if waiting[-1].connect_ex(str(stopped.run / "fds.sock")) == errno.EAGAIN:
                break
        error = refusal_of_connect(stopped.endpoint, 0.3)
    assert type(error) is modelbroker.BrokerHangsError
    assert "does not answer" in str(error)


def test_connect_calls_a_broker_that_runs_and_says_nothing_hanging() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mb-") as run,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf,
    ):
        deaf.bind(f"{run}/fds.sock")
        deaf.listen()
        error = refusal_of_connect(f"ipc://{run}/broker.sock", 0.3)
    assert type(error) is modelbroker.BrokerHangsError
    assert f"(process {os.getpid()}) is there and does not answer" in str(error)


def test_a_socket_that_nobody_listens_at_is_no_broker() -> None:
    with tempfile.TemporaryDirectory(prefix="mb-") as run:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
            left.bind(f"{run}/fds.sock")
        error = refusal_of_connect(f"ipc://{run}/broker.sock", 0.3)
    assert type(error) is modelbroker.UnavailableError
    assert "start one" in str(error)


def test_connect_waits_for_a_broker_that_goes_on_in_time(stopped: BrokerProcess) -> None:
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(modelbroker.connect, stopped.endpoint, timeout=60)
        time.sleep(0.5)
        assert not connecting.done()
        stopped.thaw()
        with connecting.result() as client:
            assert client.list() == []


@pytest.mark.parametrize("call", ["load", "attach"])
def test_a_call_says_it_too(broker: BrokerProcess, tmp_path: Path, call: str) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 1)
    with broker.connect() as client:
        client.list()
        with broker.frozen(), pytest.raises(modelbroker.BrokerHangsError, match="is stopped"):
            getattr(client, call)(source, timeout=0.3)
        assert getattr(client, call)(source, timeout=60) is not None


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with broker.connect() as client:
        client.list()
        yield client


def test_an_attach_by_name_without_a_timeout_gives_up_a_broker_that_stays_silent(
    broker: BrokerProcess,
    client: modelbroker.Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.load(files.write_random(tmp_path / "m.safetensors", 1), "m")
    monkeypatch.setattr(_pool, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(_pool, "_REPEAT_SECONDS", 0.1)
    with broker.frozen(), pytest.raises(modelbroker.BrokerHangsError, match="is stopped"):
        client.attach("m")
    client.attach("m").release()
    wait_until(lambda: broker.books()["leases"] == 0)


def test_a_broker_that_works_for_longer_than_the_silence_is_waited_for(
    client: modelbroker.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pool, "_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(_pool, "_REPEAT_SECONDS", 0.1)
    content = files.write_random(tmp_path / "content", 1).read_bytes()
    with hanging_file(tmp_path / "fuse", content, 0) as hanging, ThreadPoolExecutor(1) as threads:
        loading = threads.submit(client.load, hanging.path)
        time.sleep(3)
        assert not loading.done()
        hanging.go_on()
        assert loading.result(60).outcome == "loaded"


Errors = type[Exception] | tuple[type[Exception], ...]


def seconds_until(error: Errors, call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(error):
        call()
    return time.monotonic() - began


@pytest.mark.slow
def test_calls_of_one_client_do_not_wait_for_one_another_to_give_up(
    broker: BrokerProcess, client: modelbroker.Broker, tmp_path: Path
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 1)

    def load(timeout: float | None) -> float:
        late = modelbroker.DeadlineExceededError
        return seconds_until(late, lambda: client.load(source, timeout=timeout))

    with broker.frozen(), ThreadPoolExecutor(9) as threads:
        patient = [threads.submit(load, None) for _ in range(8)]
        time.sleep(0.2)  # one of them has begun to wait for the broker, the others for that one
        assert threads.submit(load, 1).result() < LIMIT
        assert max(call.result() for call in patient) < 3 * LIMIT


@pytest.mark.parametrize("state", ["hung", "gone"])
def test_a_load_whose_progress_is_watched_ends_at_its_deadline(
    broker: BrokerProcess, client: modelbroker.Broker, tmp_path: Path, state: str
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 1)
    error: type[Exception] = modelbroker.DeadlineExceededError
    if state == "hung":
        broker.freeze()
    else:
        error = modelbroker.UnavailableError
        broker.kill()

    def load() -> object:
        return client.load(source, timeout=0.3, progress=lambda *_: None)

    assert seconds_until(error, load) < LIMIT


def test_a_load_whose_progress_is_watched_outlives_no_broker_past_its_deadline(
    broker: BrokerProcess, client: modelbroker.Broker, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "m.safetensors", 1).read_bytes()
    ends = (modelbroker.UnavailableError, modelbroker.DeadlineExceededError)
    with hanging_file(tmp_path / "mount", content) as file:

        def load() -> object:
            # Killed in the midst of it: the thread that watches would like to hear of the next one.
            return client.load(file.path, timeout=3, progress=lambda *_: broker.kill())

        assert seconds_until(ends, load) < LIMIT
