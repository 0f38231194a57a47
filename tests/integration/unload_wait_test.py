"""unload(wait=True) ends with the bytes, or with the news that the model was loaded again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until


def _unload_in_a_thread(
    client: modelbroker.Broker, outcomes: list[modelbroker.Unloaded | Exception]
) -> threading.Thread:
    def unload() -> None:
        try:
            outcomes.append(client.unload("m", wait=True, timeout=60))
        except modelbroker.ModelBrokerError as error:
            outcomes.append(error)

    thread = threading.Thread(target=unload)
    thread.start()
    return thread


@pytest.mark.parametrize("ending", ["released", "loaded again"])
def test_a_waiting_unload_is_told_how_it_ended(
    broker: BrokerProcess, tmp_path: Path, ending: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    outcomes: list[modelbroker.Unloaded | Exception] = []
    with broker.connect() as client:
        loaded = client.load(path)
        weights = client.attach("m")
        thread = _unload_in_a_thread(client, outcomes)
        wait_until(lambda: broker.books()["draining"] == loaded.bytes)
        assert not outcomes
        if ending == "released":
            weights.release()
            thread.join(60)
            (outcome,) = outcomes
            assert isinstance(outcome, modelbroker.Unloaded)
            assert (outcome.freed, outcome.draining) == (loaded.bytes, 0)
            assert broker.is_empty()
        else:
            assert client.load(path).outcome == "revived"
            thread.join(60)
            (outcome,) = outcomes
            assert isinstance(outcome, modelbroker.CancelledError)
            assert client.attach("m").generation == loaded.generation
