"""What models of several files share, how they end, and how they come back, from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from modelbroker import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return files.write_set(tmp_path / "llama")


def first_file(index: Path) -> Path:
    return index.parent / "model-00000.safetensors"


def made(client: modelbroker.Broker) -> int:
    return client.status().tiers["ram"].made


def bytes_of_set(make_broker: MakeBroker, index: Path) -> int:
    broker = make_broker().start()
    with broker.connect() as client:
        size = client.load(index).bytes
    broker.terminate()
    return size


def test_a_file_that_is_a_model_too_counts_once_and_outlives_the_set(
    broker: BrokerProcess, index: Path
) -> None:
    with broker.connect() as client:
        alone = client.load(first_file(index), "alone")
        loaded = client.load(index)
        assert loaded.blocks[0] == alone.blocks[0]
        assert made(client) == loaded.bytes
        assert client.status().tiers["ram"].loads == 4
        gone = client.unload("llama", wait=True)
        assert gone.freed == loaded.bytes - alone.bytes
        assert made(client) == alone.bytes
        with client.attach("alone") as weights:
            assert list(weights) == ["layer.0.a", "layer.0.b"]


def test_an_index_of_the_same_files_is_another_name_of_the_model(
    broker: BrokerProcess, index: Path
) -> None:
    other = index.with_name("other.safetensors.index.json")
    other.write_bytes(index.read_bytes())
    with broker.connect() as client:
        first, second = client.load(index), client.load(other)
        assert (second.model, second.outcome) == ("other", "alias")
        assert second.blocks == first.blocks
        assert client.unload("other").remaining_names == ["llama"]
        assert made(client) == first.bytes


def test_a_set_with_no_room_for_its_last_file_leaves_nothing(
    make_broker: MakeBroker, index: Path
) -> None:
    needed = bytes_of_set(make_broker, index)
    broker = make_broker("--ram-budget", str(needed - 1)).start()
    with broker.connect() as client:
        with pytest.raises(ResourceExhaustedError) as refused:
            client.load(index)
        assert refused.value.details["needed"] == needed
        assert client.status().tiers["ram"].loads == 0
        assert client.list() == []
    assert broker.is_empty()


def test_a_set_is_evicted_as_a_whole_and_an_attach_by_name_loads_it_again(
    make_broker: MakeBroker, index: Path, tmp_path: Path
) -> None:
    room = bytes_of_set(make_broker, index)
    other = files.write_random(tmp_path / "other.safetensors", 0.5)
    broker = make_broker("--ram-budget", str(room)).start()
    with broker.connect() as client:
        client.load(index, pin=True)
        with pytest.raises(ResourceExhaustedError):
            client.load(other)
        client.unpin(index)
        with client.attach("llama"), pytest.raises(ResourceExhaustedError):
            client.load(other)
        client.load(other)
        assert client.status().tiers["ram"].evictions == 1
        states = {model.name: model.state for model in client.list(all=True)}
        assert states == {"llama": "remembered", "other": "resident"}
        with client.attach("llama") as weights:
            assert (len(weights), weights.outcome) == (8, "loaded")
        assert [model.name for model in client.list()] == ["llama"]


def test_a_set_that_nobody_uses_goes_after_its_time(broker: BrokerProcess, index: Path) -> None:
    with broker.connect() as client:
        client.attach(index).release()
        assert client.load(index, keep_alive=0).outcome == "resident"
        wait_until(lambda: not client.list())
        wait_until(lambda: broker.books()["draining"] == 0)
        assert made(client) == 0


def test_a_pinned_set_stays_pinned_in_all_its_blocks(broker: BrokerProcess, index: Path) -> None:
    with broker.connect() as client:
        loaded = client.load(index, pin=True)
        assert client.status().tiers["ram"].pinned == loaded.bytes
        client.unpin("llama")
        assert client.status().tiers["ram"].pinned == 0


def test_the_blocks_stay_until_the_last_array_of_any_is_gone(
    broker: BrokerProcess, index: Path
) -> None:
    with broker.connect() as client:
        weights = client.attach(index)
        array = weights.raw("layer.2.a")
        before = array.tobytes()
        weights.release()
        with pytest.raises(FailedPreconditionError):
            weights.raw("layer.2.a")
        gone = client.unload("llama")
        assert (gone.freed > 0, gone.draining > 0) == (False, True)
        assert array.tobytes() == before
        del array
        wait_until(lambda: broker.is_empty())


def test_weights_go_on_over_a_restart_of_the_broker(broker: BrokerProcess, index: Path) -> None:
    with broker.connect() as client:
        weights = client.attach(index)
        broker.kill()
        broker.start()
        # The files are offered to the new session as they were to the old one.
        with client.attach(index) as again:
            assert (again.outcome, len(again)) == ("resident", 8)
        assert client.status().tiers["ram"].leases == 1
        assert weights.raw("layer.3.a").nbytes > 0
        with pytest.raises(NotFoundError):
            client.attach("nothing")
