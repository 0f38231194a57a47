"""Calls that are interrupted, too late, or made to nobody; and the end of a Broker."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import modelbroker
from modelbroker._link import Data, Link
from modelbroker._session import Session
from support import files
from support.broker import BrokerProcess, run_python, wait_until

# ---- Ctrl-C

# The main thread's call cannot end by itself; a second thread sees it under way and interrupts it.
INTERRUPTED = """
import os, signal, sys, threading
import modelbroker

signal.signal(signal.SIGINT, signal.default_int_handler)
client = modelbroker.connect(timeout=30)
observer = modelbroker.connect(timeout=30)

def interrupt(under_way):
    while not under_way():
        pass
    os.kill(os.getpid(), signal.SIGINT)

def interrupted(call, under_way):
    thread = threading.Thread(target=interrupt, args=(under_way,))
    thread.start()
    try:
        call()
    except KeyboardInterrupt:
        thread.join()
        return
    raise AssertionError("it was not interrupted")
"""


def test_ctrl_c_ends_a_long_call_and_the_next_one_works(loaded: BrokerProcess) -> None:
    script = """
weights = client.attach("m")
interrupted(
    lambda: client.unload("m", wait=True, timeout=None),
    lambda: observer.status().tiers["ram"].draining > 0,
)
assert client.list() == []
assert weights.raw("t0").any()
weights.release()
"""
    done = run_python(INTERRUPTED + script, environment=loaded.environment)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(loaded.is_empty)


def test_ctrl_c_in_an_attach_leaves_no_lease_and_no_load(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    size = 512 << 20
    path = tmp_path / "m.safetensors"
    path.write_bytes(files.encode({"t": files.entry("U8", [size], 0, size)}))
    os.truncate(path, path.stat().st_size + size)
    script = """
interrupted(lambda: client.attach(sys.argv[1]), lambda: bool(observer.list()))
while [model for model in observer.list() if model.state == "loading"]:
    pass
while observer.status().tiers["ram"].leases:
    pass
if observer.list():  # it was loaded before it was interrupted
    client.unload("m")
"""
    done = run_python(INTERRUPTED + script, str(path), environment=broker.environment)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(broker.is_empty)


# ---- too late


@pytest.mark.parametrize("by", ["name", "path"])
def test_an_attach_that_came_too_late_leaves_no_lease(
    loaded: BrokerProcess, tmp_path: Path, by: str
) -> None:
    with loaded.connect() as client:
        client.list()
        with loaded.frozen(), pytest.raises(modelbroker.DeadlineExceededError) as caught:
            client.attach("m" if by == "name" else tmp_path / "m", timeout=0.1)
        assert isinstance(caught.value, TimeoutError)
        # The broker reads the request now, and grants a lease that nobody waits for.
        wait_until(lambda: client.status().tiers["ram"].leases == 0)
        with client.attach("m", timeout=30) as weights:
            assert client.status().tiers["ram"].leases == 1
        del weights
        client.unload("m", wait=True)
    assert loaded.is_empty()


def test_an_attach_that_came_too_late_leaves_no_lease_with_the_next_broker(
    loaded: BrokerProcess,
) -> None:
    with loaded.connect() as client, client.attach("m") as kept:
        loaded.freeze()
        with pytest.raises(modelbroker.DeadlineExceededError):
            client.attach("m", timeout=0.1)
        loaded.kill()
        loaded.start()
        with client.attach("m", timeout=30) as weights:  # its number is new in this session too
            assert weights.raw("t0").any()
        del weights
        wait_until(lambda: client.status().tiers["ram"].leases == 1)
        assert kept.raw("t0").any()


def test_a_broker_that_is_too_old_for_lease_numbers_is_told_so(
    loaded: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Link._ask

    def ask_an_old_one(
        link: Link, session: Session, id_: str, type_: str, data: Data, *more: Any
    ) -> Data:
        if type_ == "model.attach":
            data = {key: value for key, value in data.items() if key != "lease"}
        return ask(link, session, id_, type_, data, *more)

    monkeypatch.setattr(Link, "_ask", ask_an_old_one)
    with loaded.connect() as client:
        with pytest.raises(modelbroker.UnimplementedError, match="older"):
            client.attach("m")
        assert client.status().tiers["ram"].leases == 0
        assert [model.name for model in client.list()] == ["m"]


def test_a_call_that_came_too_late_does_no_harm_to_the_next(loaded: BrokerProcess) -> None:
    with loaded.connect() as client:
        for _ in range(3):
            with loaded.frozen(), pytest.raises(modelbroker.DeadlineExceededError):
                client.unload("nothing", timeout=0.05)
            assert [model.name for model in client.list()] == ["m"]
            with pytest.raises(modelbroker.NotFoundError, match="nothing"):
                client.unload("nothing")


def test_a_wait_that_is_too_long_says_so_and_the_unload_stands(loaded: BrokerProcess) -> None:
    with loaded.connect() as client, client.attach("m") as weights:
        with pytest.raises(modelbroker.DeadlineExceededError):
            client.unload("m", wait=True, timeout=0.2)
        assert client.list() == []
        assert weights.raw("t0").any()
    del weights
    wait_until(loaded.is_empty)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(loaded: BrokerProcess, timeout: float) -> None:
    with loaded.connect() as client:
        with pytest.raises(modelbroker.InvalidArgumentError, match="timeout="):
            client.attach("m", timeout=timeout)
        with pytest.raises(modelbroker.InvalidArgumentError, match="timeout="):
            client.unload("m", timeout=timeout)
        assert loaded.books()["leases"] == 0


# ---- to nobody


def test_nobody_there_is_unavailable_and_says_what_to_do(
    make_broker: Callable[..., BrokerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = make_broker().endpoint
    with pytest.raises(modelbroker.UnavailableError, match="modelbroker serve") as caught:
        modelbroker.connect(endpoint, timeout=0.1)
    assert endpoint in str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    monkeypatch.setenv("MODELBROKER_ENDPOINT", endpoint)
    with pytest.raises(modelbroker.UnavailableError, match=endpoint):
        modelbroker.connect(timeout=0)


def test_connect_waits_for_a_broker_that_comes(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(modelbroker.connect, broker.endpoint, timeout=60)
        broker.start()
        with coming.result(60) as client:
            assert client.list() == []
            assert client.endpoint == broker.endpoint


def test_the_environment_names_the_broker(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELBROKER_ENDPOINT", broker.endpoint)
    with modelbroker.connect(timeout=30) as client:
        assert client.status().instance == broker.instance


def test_a_call_to_a_dead_broker_is_unavailable_after_its_timeout(
    loaded: BrokerProcess, tmp_path: Path
) -> None:
    with loaded.connect() as client, client.attach("m") as weights:
        loaded.kill()
        with pytest.raises(modelbroker.UnavailableError, match="modelbroker serve"):
            client.attach("m", timeout=0.3)
        with pytest.raises(modelbroker.UnavailableError, match="modelbroker serve"):
            client.load(tmp_path / "m", timeout=0.3)
        with pytest.raises(modelbroker.UnavailableError, match="modelbroker serve"):
            client.unload("m", timeout=0.3)
        assert weights.raw("t0").any()
        loaded.start()
        assert [model.name for model in client.list()] == ["m"]


# ---- the end of a Broker


def test_close_leaves_weights_and_their_lease_alive(loaded: BrokerProcess) -> None:
    client = loaded.connect()
    weights = client.attach("m")
    tensor = weights["t0"].numpy()
    client.close()
    client.close()
    assert loaded.books()["leases"] == 1
    assert weights["t1"].numpy().any()
    for call in (client.list, client.status, lambda: client.attach("m")):
        with pytest.raises(modelbroker.FailedPreconditionError, match=r"connect\(\) again"):
            call()
    assert "closed" in repr(client)
    loaded.kill()
    loaded.start()
    wait_until(lambda: loaded.books()["leases"] == 1)  # also of a Broker that was closed
    weights.release()
    assert loaded.books()["leases"] == 1
    del tensor
    wait_until(lambda: loaded.books()["leases"] == 0)


def test_a_closed_broker_leaves_no_session_and_no_thread(loaded: BrokerProcess) -> None:
    script = """
import os, threading
import modelbroker

observer = modelbroker.connect(timeout=30)
observer.list()
threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
for _ in range(20):
    with modelbroker.connect(timeout=30) as client, client.attach("m") as weights:
        assert client.status().sessions == 2
    del weights, client
    while observer.status().sessions > 1 or threading.active_count() > threads:
        pass
while len(os.listdir("/proc/self/fd")) > descriptors + 2:  # ZeroMQ closes behind our back
    pass
"""
    done = run_python(script, environment=loaded.environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("used", ["", "client.list()", "client.attach('m')"])
def test_a_broker_that_was_never_closed_goes_in_silence(loaded: BrokerProcess, used: str) -> None:
    script = f"""
import gc
import modelbroker

observer = modelbroker.connect(timeout=30)
client = modelbroker.connect(timeout=30)
{used}
del client
gc.collect()
while observer.status().sessions > 1:
    pass
assert observer.status().tiers["ram"].leases == 0
"""
    done = run_python(script, environment=loaded.environment)
    assert (done.returncode, done.stderr) == (0, "")
