"""Somebody removes a broker's lock while it runs: still two brokers never share blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.workers import assert_books_are_the_kernels, assert_right_bytes, crcs

PRECONDITION = 13
MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def second(broker: BrokerProcess, make_broker: MakeBroker) -> BrokerProcess:
    """For the same instance, with a run directory of its own; not started."""
    made = make_broker()
    made.instance = broker.instance
    return made


def lock_of(broker: BrokerProcess) -> Path:
    return broker.ram / f"modelbroker.{os.geteuid()}.{broker.instance}.lock"


def refusal(broker: BrokerProcess) -> str:
    done = broker.cli(*broker.serve_command()[1:], check=False)
    assert done.returncode == PRECONDITION, done.stderr
    return done.stderr


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_that_is_gone_is_made_again(
    broker: BrokerProcess, second: BrokerProcess, tmp_path: Path, how: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.cli("load", path)
    for lock in (lock_of(broker), broker.run / "lock"):
        lock.unlink()
        if how == "replaced":
            lock.touch(0o600)
        wait_until(lambda lock=lock: f"'{lock}': made again" in broker.output())
    assert "another broker" in refusal(second)
    second.run, second.instance = broker.run, "other"
    assert "another broker serves" in refusal(second)
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    assert broker.terminate() == 0
    assert broker.blocks() == []


def test_without_the_lock_a_block_tells_that_its_broker_lives(
    broker: BrokerProcess, second: BrokerProcess, tmp_path: Path
) -> None:
    adopted = files.write_random(tmp_path / "adopted.safetensors", 5)
    loaded = files.write_random(tmp_path / "loaded.safetensors", 5, seed=1)
    broker.cli("load", adopted)
    broker.kill()
    broker.start()
    broker.freeze()  # it cannot make its lock again
    lock_of(broker).unlink()
    for _ in range(2):  # a refusal leaves no lock behind that would let the next one in
        assert "stop it or choose --instance" in refusal(second)
        assert not lock_of(broker).exists()
    cleaned = broker.cli(
        "clean", "--ram-directory", broker.ram, "--instance", broker.instance, check=False
    )
    assert cleaned.returncode == PRECONDITION
    broker.thaw()
    wait_until(lock_of(broker).exists)
    with broker.connect() as client:
        client.load(loaded)
        client.unload("adopted", wait=True)
    broker.freeze()
    lock_of(broker).unlink()
    assert "another broker" in refusal(second)  # the same for a block that it made itself
    broker.thaw()
    with broker.connect() as client:
        assert_right_bytes(client, "loaded", crcs(loaded))


def test_a_broker_whose_place_was_taken_ends_and_frees_nothing(
    broker: BrokerProcess, second: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.freeze()
    lock_of(broker).unlink()
    second.start()  # there is no block that could tell
    second.cli("load", path)
    broker.thaw()
    assert broker.process is not None
    assert broker.process.wait(60) == PRECONDITION
    broker.process = None
    assert "leaves its blocks" in broker.output()
    assert_books_are_the_kernels(second)
    with second.connect() as client:
        assert_right_bytes(client, "m", crcs(path))


def test_a_new_lock_alone_keeps_no_broker_out(broker: BrokerProcess, tmp_path: Path) -> None:
    """Who removes the lock of a dead broker loses nothing by it."""
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.cli("load", path)
    broker.kill()
    lock_of(broker).unlink()
    with broker.start().connect() as client:
        assert_right_bytes(client, "m", crcs(path))
