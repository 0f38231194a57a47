"""Several who want one file that there is no room for: each is told at its own time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import modelbroker
from modelbroker import DeadlineExceededError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, running, wait_until
from support.tight import Tight, loading, make_tight

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def tight(make_broker: MakeBroker, tmp_path: Path) -> Tight:
    return make_tight(make_broker, tmp_path)


@contextmanager
def joining(tight: Tight) -> Iterator[tuple[modelbroker.Broker, Future[modelbroker.Loaded]]]:
    """A client, and a load of another's that waits for room; once the body is done it gets that."""
    broker = tight.broker
    with broker.connect() as client, broker.connect() as other, ThreadPoolExecutor(1) as pool:
        weights = client.attach(tight.first)
        waiting = pool.submit(other.load, tight.second, timeout=60)
        wait_until(lambda: loading(broker) == ["second"])
        yield client, waiting
        weights.release()
        assert waiting.result(60).outcome == "loaded"


def test_who_joins_a_load_that_waits_for_room_has_its_own_deadline(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with (
        broker.connect() as client,
        broker.connect() as hasty,
        broker.connect() as patient,
        ThreadPoolExecutor(2) as pool,
    ):
        weights = client.attach(first)
        short = pool.submit(hasty.load, second, timeout=3)
        wait_until(lambda: loading(broker) == ["second"])
        long = pool.submit(patient.load, second, timeout=60)
        with pytest.raises(ResourceExhaustedError):
            short.result(60)
        assert loading(broker) == ["second"]
        weights.release()
        assert long.result(60).outcome == "loaded"


def test_a_load_goes_on_for_who_has_more_time(tight: Tight) -> None:
    refusal = (ResourceExhaustedError, DeadlineExceededError)
    with joining(tight) as (client, _), pytest.raises(refusal):
        client.load(tight.second, timeout=0.1)


def test_who_joins_without_a_deadline_is_refused_at_once(tight: Tight) -> None:
    with joining(tight) as (client, waiting):
        with pytest.raises(ResourceExhaustedError) as caught:
            client.load(tight.second)
        assert caught.value.details["leased"] > 0
        assert not waiting.done()


def test_who_joins_with_less_time_hears_the_numbers_at_its_own_deadline(tight: Tight) -> None:
    with joining(tight) as (client, waiting):
        with pytest.raises(ResourceExhaustedError) as caught:
            client.load(tight.second, timeout=2)
        assert caught.value.details["leased"] > 0
        assert not waiting.done()


def test_a_deadline_leaves_with_who_had_it(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with broker.connect() as client, client.attach(first), ThreadPoolExecutor(1) as pool:
        with running(broker, "load", second, "--timeout", "300"):
            wait_until(lambda: loading(broker) == ["second"])
            waiting = pool.submit(client.load, second, timeout=5)
            wait_until(lambda: broker.books()["misses"] == 3)  # it has joined
        with pytest.raises(ResourceExhaustedError):
            waiting.result(60)
        assert loading(broker) == []


def test_who_waits_on_keeps_its_place_in_the_queue(tight: Tight, tmp_path: Path) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    third = files.write_random(tmp_path / "third.safetensors", 25, seed=3)
    with (
        broker.connect() as client,
        broker.connect() as patient,
        broker.connect() as behind,
        ThreadPoolExecutor(2) as pool,
    ):
        weights = client.attach(first)
        long = pool.submit(patient.load, second, timeout=60)
        wait_until(lambda: loading(broker) == ["second"])
        last = pool.submit(behind.load, third, timeout=60)
        wait_until(lambda: loading(broker) == ["second", "third"])
        with pytest.raises(ResourceExhaustedError):
            client.load(second)
        weights.release()
        assert long.result(60).outcome == last.result(60).outcome == "loaded"
        assert [model.name for model in client.list()] == ["third"], "it came after the second"
