"""Weights that were let go end their lease at once: nothing waits for Python's cycle collector.

An exception that a generator of `contextlib` swallows or replaces keeps the frames of its callers,
theirs and the user's, in a cycle (Python 3.12 and 3.13), and all that these hold.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def has_no_lease(broker: BrokerProcess) -> bool:
    return broker.books()["leases"] == 0


def test_of_an_attach_whose_broker_died_under_it(loaded: BrokerProcess) -> None:
    with loaded.connect() as client, ThreadPoolExecutor(3) as threads:
        loaded.freeze()
        asked = [threads.submit(lambda: client.attach("m").model) for _ in range(3)]
        loaded.kill()
        loaded.start()
        assert [future.result(60) for future in asked] == ["m"] * 3
        wait_until(lambda: has_no_lease(loaded))


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refused(call: Callable[[], object], error: type[Exception]) -> None:
    """As pytest.raises, which keeps what was raised."""
    try:
        call()
    except error:
        return
    raise AssertionError("it was not refused")


def test_held_by_who_was_refused_for_want_of_descriptors(loaded: BrokerProcess) -> None:
    def try_in_vain(client: modelbroker.Broker) -> None:
        held = client.attach("m")
        with no_descriptors():
            refused(lambda: client.attach("m"), modelbroker.ResourceExhaustedError)
            refused(lambda: client.load("/etc/hostname"), modelbroker.ResourceExhaustedError)
        assert held.model == "m"

    with loaded.connect() as client:
        try_in_vain(client)
        wait_until(lambda: has_no_lease(loaded))


def test_held_by_who_waited_in_vain(loaded: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "other", 0.1)

    def wait_in_vain(client: modelbroker.Broker) -> None:
        held = client.attach("m")
        loaded.freeze()
        refused(lambda: client.attach("m", timeout=0.1), modelbroker.DeadlineExceededError)
        refused(lambda: client.load(path, timeout=0.1), modelbroker.DeadlineExceededError)
        loaded.thaw()
        assert held.model == "m"

    with loaded.connect() as client:
        wait_in_vain(client)
        wait_until(lambda: has_no_lease(loaded))


def test_held_by_who_found_no_broker(loaded: BrokerProcess) -> None:
    def find_nobody(client: modelbroker.Broker) -> None:
        held = client.attach("m")
        loaded.kill()
        refused(lambda: client.attach("m", timeout=0.1), modelbroker.UnavailableError)
        refused(
            lambda: modelbroker.connect(loaded.endpoint, timeout=0.1), modelbroker.UnavailableError
        )
        loaded.start()
        assert held.model == "m"

    with loaded.connect() as client:
        find_nobody(client)
        client.list()
        wait_until(lambda: has_no_lease(loaded))


def test_held_by_whose_progress_failed(loaded: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "other", 30)

    def fail(_read: int, _total: int) -> None:
        raise ArithmeticError

    def load_in_vain(client: modelbroker.Broker) -> None:
        held = client.attach("m")
        refused(lambda: client.load(path, progress=fail), ArithmeticError)
        assert held.model == "m"

    with loaded.connect() as client:
        load_in_vain(client)
        wait_until(lambda: has_no_lease(loaded))


def test_of_a_block_that_only_the_broker_can_open(loaded: BrokerProcess) -> None:
    opened = os.open

    def refuse(path: str, *arguments: int) -> int:
        if path.startswith("/dev/shm/"):
            raise PermissionError(13, "as in another mount namespace")
        return opened(path, *arguments)

    with loaded.connect() as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelbroker._broker.os.open", refuse)
        client.attach("m")
        wait_until(lambda: has_no_lease(loaded))
