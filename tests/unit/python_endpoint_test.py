"""Where the Python package looks for a broker, and how it counts time."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

import modelbroker
from modelbroker._deadline import Deadline
from modelbroker._endpoint import Endpoint, default_run_directory, endpoints_to_try, parse

# ---- endpoints


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELBROKER_ENDPOINT", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)


def test_a_socket_that_is_made_anew_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a broker that starts: for a moment the path leads nowhere."""
    endpoint = Endpoint(str(tmp_path))
    socket = tmp_path / "fds.sock"
    socket.touch()
    real, looked = os.access, []

    def access(*arguments: Any, **named: Any) -> bool:
        looked.append(1)
        if len(looked) == 1:
            socket.unlink()
        allowed = real(*arguments, **named)
        socket.touch()
        return allowed

    monkeypatch.setattr(os, "access", access)
    assert endpoint.refusal() is None
    assert len(looked) == 2


def test_an_endpoint_has_two_sockets() -> None:
    endpoint = parse("ipc:///some/where/broker.sock")
    assert endpoint == Endpoint("/some/where")
    assert endpoint.broker == "ipc:///some/where/broker.sock"
    assert endpoint.fds == "/some/where/fds.sock"
    assert not endpoint.owned


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ipc://",
        "/some/where/broker.sock",
        "tcp://127.0.0.1:5555",
        "ipc:///some/where",
        "ipc:///some/where/other.sock",
        "ipc:///broker.sock",
        "ipc:///some/where/broker.sock/",
        "IPC:///some/where/broker.sock",
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match="must have the form ipc://"):
        parse(text)


def test_a_relative_run_directory_is_refused() -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match="absolute"):
        parse("ipc://some/where/broker.sock")


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_path_longer_than_the_kernel_allows_is_refused(letter: str) -> None:
    room = 107 - len("//broker.sock")
    fits = "/" + letter * (room // len(letter.encode()))
    assert parse(f"ipc://{fits}/broker.sock").run_directory == fits
    with pytest.raises(modelbroker.InvalidArgumentError, match="107"):
        parse(f"ipc://{fits}{letter}/broker.sock")


def test_root_has_the_systems_place_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert default_run_directory() == "/run/modelbroker"
    assert endpoints_to_try(None) == [Endpoint("/run/modelbroker")]


def test_a_user_has_a_place_of_their_own_then_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert endpoints_to_try(None) == [
        Endpoint("/run/user/1234/modelbroker"),
        Endpoint("/run/modelbroker"),
    ]


def test_below_tmp_the_brokers_user_is_looked_at() -> None:
    assert endpoints_to_try(None) == [
        Endpoint("/tmp/modelbroker-1234", owned=True),
        Endpoint("/run/modelbroker"),
    ]


def test_what_was_named_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELBROKER_ENDPOINT", "ipc:///env/broker.sock")
    assert endpoints_to_try(None) == [Endpoint("/env")]
    assert endpoints_to_try("ipc:///given/broker.sock") == [Endpoint("/given")]
    monkeypatch.setenv("MODELBROKER_ENDPOINT", "")
    assert len(endpoints_to_try(None)) == 2
    monkeypatch.setenv("MODELBROKER_ENDPOINT", "nonsense")
    with pytest.raises(modelbroker.InvalidArgumentError, match="nonsense"):
        modelbroker.connect(timeout=0)


# ---- deadlines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_no_deadline_never_passes(clock: list[float]) -> None:
    deadline = Deadline(None)
    clock[0] += 1e9
    assert not deadline.passed()
    assert deadline.left() == math.inf
    assert deadline.left(5) == 5
    assert deadline.milliseconds() == 0  # "no end" on the wire
    assert deadline.seconds is None


def test_a_deadline_counts_down_and_stays_at_nothing(clock: list[float]) -> None:
    deadline = Deadline(2)
    assert (deadline.left(), deadline.milliseconds(), deadline.passed()) == (2, 2000, False)
    clock[0] += 1.5
    assert (deadline.left(), deadline.milliseconds(), deadline.passed()) == (0.5, 500, False)
    assert deadline.left(0.1) == 0.1
    clock[0] += 0.5
    assert (deadline.left(), deadline.passed()) == (0, True)
    clock[0] += 100
    assert (deadline.left(), deadline.passed(), deadline.seconds) == (0, True, 2)


def test_a_deadline_that_has_passed_is_still_one_on_the_wire(clock: list[float]) -> None:
    deadline = Deadline(0)
    assert deadline.passed()
    assert deadline.milliseconds() == 1
    clock[0] += 100
    assert deadline.milliseconds() == 1
    assert Deadline(0.0004).milliseconds() == 1  # rounded up


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match="timeout="):
        Deadline(seconds)
