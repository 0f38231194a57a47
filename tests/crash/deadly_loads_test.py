"""A load that its broker dies of costs two brokers at most; all other loads go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import modelbroker
from modelbroker import FailedPreconditionError
from support import files, load_notes
from support.broker import BrokerProcess
from support.damage import flip_in_payload
from support.faults import FaultyBroker
from support.workers import assert_right_bytes, crcs, names_of

PRECONDITION = 13
DEADLY = "load.chunk_read"

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def broker() -> Iterator[FaultyBroker]:
    """Under a supervisor, as users have it who do not look at it."""
    made = FaultyBroker("--supervise")
    try:
        yield made
    finally:
        made.faults.disarm()
        if made.alive():
            made.terminate()
        made.stop()


def deaths(broker: BrokerProcess) -> int:
    return broker.output().count("was killed by SIGKILL")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return files.write_random(tmp_path / "m.safetensors", 1)


@pytest.mark.parametrize("verb", ["load", "attach"])
def test_one_call_costs_two_brokers_and_is_refused(
    broker: FaultyBroker, model: Path, tmp_path: Path, verb: str
) -> None:
    other = files.write_random(tmp_path / "other.safetensors", 1, seed=1)
    broker.start()
    broker.faults.crash_at(DEADLY, for_ever=True)
    with broker.connect() as client:
        with pytest.raises(FailedPreconditionError, match="died 2 times in a row") as refused:
            getattr(client, verb)(model, timeout=60)
        assert "load(FILE, retry=True)" in str(refused.value)
        assert refused.value.details == {"deaths": 2}
        assert deaths(broker) == 2
        # Nobody kills another one, by whatever name.
        link = tmp_path / "link.safetensors"
        link.symlink_to(model)
        for call in (client.load, client.attach):
            for path in (model, link):
                with pytest.raises(FailedPreconditionError):
                    call(path, timeout=60)
        assert broker.cli("load", model, check=False).returncode == PRECONDITION
        assert deaths(broker) == 2
        broker.faults.disarm()
        client.load(other, "other")  # all else is loaded as ever
        with pytest.raises(FailedPreconditionError):
            client.load(model)
        loaded = broker.cli_json("load", model, "--retry", "--name", "m")
        assert loaded["outcome"] == "loaded"
        assert_right_bytes(client, "m", crcs(model))
        assert load_notes.names(broker) == []
        client.unload("m", wait=True)
        client.load(model, "m")  # and is as any other


def test_a_retry_costs_one_more(broker: FaultyBroker, model: Path) -> None:
    load_notes_of_two_deaths(broker, model)
    broker.start()
    broker.faults.crash_at(DEADLY, for_ever=True)
    with broker.connect() as client:
        for more in (1, 2):
            with pytest.raises(FailedPreconditionError, match=f"died {2 + more} times in a row"):
                client.load(model, retry=True, timeout=60)
            assert deaths(broker) == more
        broker.faults.disarm()
        assert client.load(model, "m", retry=True).outcome == "loaded"


def load_notes_of_two_deaths(broker: BrokerProcess, model: Path) -> None:
    broker.run.mkdir(mode=0o700)
    load_notes.note_deaths(broker, model, 2)


def test_a_kill_under_a_load_costs_nothing_however_often(broker: FaultyBroker, model: Path) -> None:
    broker.start()
    with broker.connect() as client:
        for killed in range(1, 4):
            broker.faults.crash_at(DEADLY)
            client.load(model, "m", timeout=60)
            assert deaths(broker) == killed
            client.unload("m", wait=True)
            client.load(model, "m")  # one that ends well in between
            client.unload("m", wait=True)
    assert load_notes.names(broker) == []


@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_another_file_at_the_path_is_loaded(
    make_broker: MakeBroker, model: Path, tmp_path: Path, how: str
) -> None:
    broker = make_broker()
    load_notes_of_two_deaths(broker, model)
    broker.start()
    with broker.connect() as client:
        with pytest.raises(FailedPreconditionError):
            client.load(model, "m")
        if how == "replaced":
            files.write_random(tmp_path / "new", 1, seed=2).replace(model)
        else:
            files.write_random(model, 1, seed=2)
        client.load(model, "m")
        assert_right_bytes(client, "m", crcs(model))


def test_a_clean_stop_forgets_it(make_broker: MakeBroker, model: Path) -> None:
    broker = make_broker()
    load_notes_of_two_deaths(broker, model)
    broker.start()
    assert broker.cli("load", model, check=False).returncode == PRECONDITION
    broker.kill()
    broker.start()
    assert broker.cli("load", model, check=False).returncode == PRECONDITION
    assert broker.terminate() == 0
    assert load_notes.names(broker) == []
    broker.start()
    broker.cli("load", model)


def test_a_damaged_model_obeys_too(make_broker: MakeBroker, model: Path) -> None:
    # What is adopted is checked at once: here only when we say so.
    broker = make_broker("--scrub-rate", "0").start()
    broker.cli("load", model, "--name", "m")
    broker.kill()
    load_notes.note_deaths(broker, model, 2)
    broker.start()
    with broker.connect() as client:
        flip_in_payload(broker.blocks()[0])
        assert client.scrub("m").damaged == 1
        with pytest.raises(FailedPreconditionError, match="died 2 times in a row"):
            client.attach("m")
        client.load(model, "m", retry=True)
        assert names_of(client) == [("m", [], False)]
        assert_right_bytes(client, "m", crcs(model))


def test_what_is_not_a_note_is_removed(make_broker: MakeBroker, model: Path) -> None:
    broker = make_broker()
    folder = broker.run / "loads"
    folder.mkdir(mode=0o700, parents=True)
    broker.run.chmod(0o700)
    for name in ("core", "running.x", "died.1.2.3"):
        (folder / name).write_text("?")
    os.mkfifo(folder / "fifo")
    broker.start()
    assert load_notes.names(broker) == []
    assert broker.output().count("is not a note of a load: removed") == 4
    broker.cli("load", model)
    os.kill(broker.pid, signal.SIGKILL)
    assert load_notes.names(broker) == []


def test_notes_that_cannot_be_kept_stop_no_load(make_broker: MakeBroker, model: Path) -> None:
    """A file took the folder's place while the broker ran."""
    broker = make_broker().start()
    (broker.run / "loads").write_text("?")
    broker.cli("load", model, "--name", "m")
    assert "a broker that dies of a load is not noticed" in broker.output()
    with broker.connect() as client:
        assert isinstance(client.attach("m"), modelbroker.Weights)
