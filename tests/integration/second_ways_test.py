"""The main way through with each kernel feature switched off, and with all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.features import FEATURES
from support.workers import (
    HOLDER,
    assert_books_are_the_kernels,
    assert_right_bytes,
    crcs,
    identities,
    workers,
)

MakeBroker = Callable[..., BrokerProcess]


def test_the_names_are_those_of_the_broker(broker: BrokerProcess) -> None:
    assert set(broker.cli_json("status")["features"]) == set(FEATURES)


@pytest.mark.parametrize("without", [*FEATURES, "all"])
def test_everything_goes_on_without(make_broker: MakeBroker, tmp_path: Path, without: str) -> None:
    # Room for one of two; without write leases no adopted block is freed within the grace period.
    grace = "500ms"
    flags = ("--disable-features", without, "--ram-budget", "12MiB", "--grace", grace)
    broker = make_broker(*flags).start()
    features = broker.cli_json("status")["features"]
    assert not any(features.values()) if without == "all" else features[without] is False
    a = files.write_random(tmp_path / "a", 5, seed=1)
    b = files.write_random(tmp_path / "b", 5, seed=2)
    with broker.connect() as client:
        # Loaded, attached, evicted for another, and back again.
        client.load(a, "a")
        assert_right_bytes(client, "a", crcs(a))
        client.load(b, "b")
        assert [model.name for model in client.list()] == ["b"]
        assert_right_bytes(client, "b", crcs(b))
        assert_books_are_the_kernels(broker)
        # A dead holder's lease ends; a living one keeps its block through unload.
        with workers(broker, 2, HOLDER, "b") as (dying, living):
            dying.kill()
            wait_until(lambda: broker.books()["leases"] == 1)
            assert client.unload("b").draining > 0
            assert broker.books()["draining"] == broker.bytes_in_ram()
            # Loaded again it is the same block; the broker's death changes nothing.
            assert client.load(b, "b").outcome == "revived"
            before = identities(broker)
            broker.kill()
            broker.start()
            wait_until(lambda: broker.books()["leases"] == 1)
            assert identities(broker) == before
            assert_right_bytes(client, "b", crcs(b))
            assert living.poll() is None
        wait_until(lambda: broker.books()["leases"] == 0)
        client.unload("b", wait=True, timeout=60)
        assert broker.is_empty()


def test_without_write_leases_only_adopted_blocks_wait_for_the_grace_period(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--disable-features", "write_lease", "--ram-budget", "12MiB").start()
    a = files.write_random(tmp_path / "a", 5, seed=1)
    b = files.write_random(tmp_path / "b", 5, seed=2)
    broker.cli("load", a, "--name", "a")
    broker.kill()
    broker.start()
    with broker.connect() as client:
        # Somebody who holds it may not have said so yet.
        with pytest.raises(modelbroker.ResourceExhaustedError):
            client.load(b, "b")
        assert client.unload("a").draining > 0
        client.load(a, "a")
    # Blocks of its own go with their last lease.
    other = make_broker("--disable-features", "write_lease", "--ram-budget", "12MiB").start()
    with other.connect() as client:
        client.load(a, "a")
        client.load(b, "b")
        assert [model.name for model in client.list()] == ["b"]
        assert client.unload("b").freed > 0
        assert other.is_empty()
