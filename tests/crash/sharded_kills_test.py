"""The broker is killed at each step of what happens to a model of four files.

Afterwards it is there whole, with its name, or not at all; blocks of one that is not whole have no
name, serve the next load, and are the first to go. With the state database and without it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import wait_until
from support.faults import FaultyBroker
from support.raw_wire import dealer, frame
from support.workers import assert_books_are_the_kernels

LOAD = (
    ("load.chunk_read", 1),
    ("publish.before_rename", 2),
    ("publish.after_rename", 1),
    ("publish.after_rename", 4),
    ("load.in_books", 1),
    ("load.in_books", 3),
    ("load.in_books", 4),
    ("state_db.before_commit", 1),
    ("state_db.after_commit", 1),
    ("load.written", 1),
)
CHANGE = (
    ("publish.after_rename", 1),
    ("load.in_books", 1),
    ("state_db.after_commit", 1),
    ("load.written", 1),
    ("drain.before_rename", 1),
    ("drain.after_unlink", 1),
)
END = (
    ("drain.before_rename", 1),
    ("drain.after_rename", 1),
    ("drain.after_rename", 3),
    ("drain.after_rename", 4),
    ("state_db.before_commit", 1),
    ("state_db.after_commit", 1),
    ("drain.before_unlink", 1),
    ("drain.after_unlink", 2),
)
DATABASE = pytest.mark.parametrize("has_database", [True, False], ids=["kept", "lost"])


@pytest.fixture
def broker() -> Iterator[FaultyBroker]:
    made = FaultyBroker("--ram-budget", "19MiB")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return files.write_set(tmp_path / "llama")


def die(broker: FaultyBroker, point: tuple[str, int], has_database: bool, **request: str) -> None:
    """By a request of which no client asks again, at this passing of that point."""
    type_ = request.pop("type_")
    broker.faults.crash_at(*point)
    with dealer(broker) as peer:
        peer.send(frame(type_, request))
        assert broker.wait() == -signal.SIGKILL, broker.output()
    if not has_database:
        for file in broker.run.glob("state.db*"):
            file.unlink()
    broker.start()


def incomplete(broker: FaultyBroker) -> int:
    return sum(row["state"] == "incomplete" for row in broker.cli_json("ps"))


def check_whole_or_gone(client: modelbroker.Broker, broker: FaultyBroker, name: str) -> bool:
    """Whether it is there."""
    wait_until(lambda: broker.books()["draining"] == 0)
    models = client.list()
    assert [model.name for model in models] in ([], [name])
    if models:
        assert len(models[0].blocks) == 4
    return bool(models)


def check_next_load(client: modelbroker.Broker, broker: FaultyBroker, index: Path) -> None:
    """It reads what is missing, and nothing else."""
    here = 4 * bool(client.list()) + incomplete(broker)
    before = client.status().tiers["ram"].loads
    with client.attach(index) as weights:
        assert len(weights) == 8
        assert weights.raw("layer.3.b").tobytes() == _last_tensor(index.parent)
    assert client.status().tiers["ram"].loads - before == max(0, 4 - here)
    assert_books_are_the_kernels(broker)


def _last_tensor(folder: Path) -> bytes:
    return (folder / "model-00003.safetensors").read_bytes()[-250000:]


@DATABASE
@pytest.mark.parametrize("point", LOAD, ids=lambda point: f"{point[0]}-{point[1]}")
def test_a_death_in_its_load(
    broker: FaultyBroker, index: Path, point: tuple[str, int], has_database: bool
) -> None:
    broker.start()
    die(broker, point, has_database, type_="model.load_model", path=str(index))
    with broker.connect() as client:
        there = check_whole_or_gone(client, broker, "llama")
        assert there == (len(broker.blocks()) == 4)  # what is whole is given its name
        assert there or incomplete(broker) == len(broker.blocks())
        check_next_load(client, broker, index)
        assert incomplete(broker) == 0


@DATABASE
@pytest.mark.parametrize("point", CHANGE, ids=lambda point: f"{point[0]}-{point[1]}")
def test_a_death_while_one_file_changes(
    broker: FaultyBroker, index: Path, point: tuple[str, int], has_database: bool
) -> None:
    broker.start()
    with broker.connect() as client:
        before = client.load(index)
    files.write_shard(index.parent, 1, seed=9)
    die(broker, point, has_database, type_="model.load_model", path=str(index))
    with broker.connect() as client:
        assert check_whole_or_gone(client, broker, "llama")  # one generation or the other
        (model,) = client.list()
        assert [model.blocks[number] == before.blocks[number] for number in (0, 2, 3)] == [True] * 3
        with client.attach(index) as weights:
            assert weights.metadata["seed"] in ("0", "9")
        assert_books_are_the_kernels(broker)


@DATABASE
@pytest.mark.parametrize("point", END, ids=lambda point: f"{point[0]}-{point[1]}")
@pytest.mark.parametrize("how", ["unloaded", "evicted"])
def test_a_death_at_its_end(
    broker: FaultyBroker,
    index: Path,
    tmp_path: Path,
    how: str,
    point: tuple[str, int],
    has_database: bool,
) -> None:
    other = files.write_random(tmp_path / "other.safetensors", 15)
    broker.start()
    with broker.connect() as client:
        client.load(index)
    if how == "unloaded":
        die(broker, point, has_database, type_="model.unload_model", model="llama")
    else:
        die(broker, point, has_database, type_="model.load_model", path=str(other))
    with broker.connect() as client:
        wait_until(lambda: broker.books()["draining"] == 0)
        if [model.name for model in client.list()] == ["other"]:
            client.unload("other")
        check_whole_or_gone(client, broker, "llama")
        check_next_load(client, broker, index)


def test_what_is_not_whole_goes_first(broker: FaultyBroker, index: Path, tmp_path: Path) -> None:
    used = files.write_random(tmp_path / "used.safetensors", 6)
    large = files.write_random(tmp_path / "large.safetensors", 8)
    broker.start()
    with broker.connect() as client:
        lost = client.load(index).blocks[0]
    broker.kill()
    Path(lost.path).unlink()
    broker.start()
    with broker.connect() as client:
        assert incomplete(broker) == 3
        client.load(used)
        client.load(large)
        assert [model.name for model in client.list()] == ["large", "used"]
        wait_until(lambda: incomplete(broker) < 3)
