"""Files that a living broker needs are removed under it, by a cleaner of /tmp or a user's rm.

They are there again within a moment, new clients connect, connected ones notice nothing, and what
was acknowledged survives a SIGKILL. The locks alone: removed_locks_test.py.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.users import GROUP, needs_root
from support.workers import assert_right_bytes, crcs, names_of

PRECONDITION = 13
SOCKETS = ("broker.sock", "fds.sock", "events.sock")
DATABASE = ("state.db", "state.db-wal", "state.db-shm")
MakeBroker = Callable[..., BrokerProcess]


def remove(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


def removing(*names: str) -> Callable[[Path], None]:
    return lambda run: remove(run, *names)


def replace_sockets(run: Path) -> None:
    for name in SOCKETS:
        (run / name).unlink()
        (run / name).touch()


def replace_by_another_database(run: Path) -> None:
    remove(run, *DATABASE)
    with sqlite3.connect(run / "state.db") as database:
        database.execute("CREATE TABLE names(what TEXT)")
    database.close()


def replace_by_garbage(run: Path) -> None:
    (run / "other").write_bytes(b"not a database" * 1000)
    (run / "other").rename(run / "state.db")


def replace_by_an_older_copy(run: Path) -> None:
    """Its -wal and -shm stay: those of another file."""
    shutil.copy(run / "state.db", run / "copy")
    (run / "copy").rename(run / "state.db")


def move_away(run: Path) -> None:
    run.rename(run.with_name("moved"))


def empty_folder_in_its_place(run: Path) -> None:
    move_away(run)
    run.mkdir(mode=0o700)


REMOVED: dict[str, Callable[[Path], object]] = {
    **{name: removing(name) for name in (*SOCKETS, *DATABASE)},
    "all sockets": removing(*SOCKETS),
    "other files for the sockets": replace_sockets,
    "the database": removing(*DATABASE),
    "another database": replace_by_another_database,
    "garbage for the database": replace_by_garbage,
    "an older database": replace_by_an_older_copy,
    "all files": removing(*SOCKETS, *DATABASE, "lock"),
    "the folder": shutil.rmtree,
    "the folder, moved": move_away,
    "the folder, another one for it": empty_folder_in_its_place,
}


@pytest.mark.parametrize("what", REMOVED)
def test_what_is_removed_is_made_again(broker: BrokerProcess, tmp_path: Path, what: str) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 2)
    other = files.write_random(tmp_path / "other.safetensors", 2, seed=1)
    before = {name: (broker.run / name).stat().st_ino for name in (*SOCKETS, *DATABASE, "lock")}
    with broker.connect() as connected, broker.connect() as watching:
        connected.load(path, "m")
        connected.load(path, "alias")
        connected.load(other, keep_alive=3000)
        events = watching.events("model.pinned", timeout=30)
        assert next(events).data["reason"] == "start"
        wait_until(lambda: hears_of_a_pin(events, connected, "m"))
        connected.unpin("m")
        with connected.attach("m") as weights:
            boot = connected.status().boot_id
            REMOVED[what](broker.run)
            # At once: it is written to where the next broker looks, or not acknowledged.
            connected.pin("m")
            wait_until(lambda: all((broker.run / name).exists() for name in before))
            wait_until(lambda: connects(broker))
            assert next(events).type == "model.pinned"  # no snapshot: nothing was missed
            assert connected.status().boot_id == boot
            assert len(weights) == 4
        with broker.connect() as fresh, fresh.events(timeout=30) as stream:
            assert_right_bytes(fresh, "alias", crcs(path))
            assert next(stream).type == "snapshot"
            wait_until(lambda: hears_of_a_pin(stream, fresh, "other"))
        events.close()
        assert "while this broker ran" in broker.output() or "made again" in broker.output()
        broker.kill()
        broker.start()
        assert names_of(connected) == [("m", ["alias"], True), ("other", [], True)]
        assert [model.keep_alive for model in connected.list()] == [-1, 3000]
    assert broker.terminate() == 0


def hears_of_a_pin(stream: modelbroker.EventStream, client: modelbroker.Broker, model: str) -> bool:
    """False where the broker learned of the subscription only after it: ask again.

    libzmq sends a subscription after the handshake, and nothing answers it: it may arrive after
    the first snapshot, and then a second snapshot follows.
    """
    client.unpin(model)
    client.pin(model)
    return any(event.type == "model.pinned" for event in iter(lambda: stream.next(1), None))


def connects(broker: BrokerProcess) -> bool:
    try:
        with modelbroker.connect(broker.endpoint, timeout=0.05) as client:
            return client.status().pid == broker.pid
    except modelbroker.ModelBrokerError:
        return False


def test_what_was_acknowledged_right_after_the_removal_survives_a_kill(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 2)
    with broker.connect() as client:
        client.load(path, "m")
        for round_ in range(5):
            for removed in (DATABASE, ("state.db",), ("state.db-wal",)):
                remove(broker.run, *removed)
                client.load(path, f"alias-{round_}-{len(removed)}-{removed[0]}")
                client.unpin("m") if client.list()[0].pinned else client.pin("m")
                known = names_of(client)
                broker.kill()
                broker.start()
                assert names_of(client) == known


@needs_root
def test_what_is_made_again_is_the_groups_again(make_broker: MakeBroker) -> None:
    broker = make_broker("--group", str(GROUP)).start()

    def rights() -> dict[str, tuple[int, int]]:
        paths = [path for path in broker.run.iterdir() if "journal" not in path.name]  # it goes
        found = {path.name: path.stat() for path in (broker.run, *paths)}
        return {name: (stat.S_IMODE(one.st_mode), one.st_gid) for name, one in found.items()}

    before = rights()
    shutil.rmtree(broker.run)
    wait_until(lambda: connects(broker) and rights() == before)


def test_evicted_names_are_written_again_too(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker("--ram-budget", "40MiB").start()
    first, second = (
        files.write_random(tmp_path / name, 25, seed) for seed, name in enumerate("ab")
    )
    with broker.connect() as client:
        client.load(first, "first")
        client.load(second, "second")  # evicts the other
        shutil.rmtree(broker.run)
        wait_until(lambda: "has all names again" in broker.output())
        broker.kill()
        broker.start()
        assert_right_bytes(client, "first", crcs(first))


def test_a_broker_whose_folder_was_taken_ends_and_removes_nothing_there(
    broker: BrokerProcess, make_broker: MakeBroker, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 2)
    second = make_broker()
    second.run = broker.run  # of another instance: only the run directory is the same
    second.environment["MODELBROKER_ENDPOINT"] = second.endpoint
    broker.freeze()
    move_away(broker.run)
    second.start()
    second.cli("load", path, "--name", "m", "--pin")
    broker.thaw()
    assert broker.process is not None
    assert broker.process.wait(60) == PRECONDITION
    broker.process = None
    assert "leaves its blocks" in broker.output()
    with second.connect() as client:
        assert names_of(client) == [("m", [], True)]
        second.kill()
        second.start()
        assert names_of(client) == [("m", [], True)]


def test_a_cleaner_that_respects_locks_leaves_the_folder_alone(broker: BrokerProcess) -> None:
    """systemd-tmpfiles locks each folder so, and skips those that are locked."""
    for again in (False, True):
        if again:
            shutil.rmtree(broker.run)
            wait_until(lambda: connects(broker))
        folder = os.open(broker.run, os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)


def test_a_second_broker_is_told_the_truth_about_missing_sockets(broker: BrokerProcess) -> None:
    with broker.frozen():
        remove(broker.run, *SOCKETS)
        refused = broker.cli(*broker.serve_command()[1:], check=False)
        assert refused.returncode == PRECONDITION
        for word in ("broker.sock", "missing", "within a second"):
            assert word in refused.stderr
    wait_until(lambda: connects(broker))
    refused = broker.cli(*broker.serve_command()[1:], check=False)
    assert "missing" not in refused.stderr
    assert "another broker serves" in refused.stderr
