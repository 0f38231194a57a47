"""Names whose block is gone, over a broker's death: evicted, damaged, or removed.

An attach by one loads its file again.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from modelbroker import ModelBrokerError, NotFoundError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip, flip_in_payload
from support.faults import FaultyBroker
from support.features import KERNEL_TELLS_HOLDERS
from support.users import ALICE, GROUP, Caller, as_user, needs_root
from support.workers import assert_books_are_the_kernels, assert_right_bytes, crcs, names_of

MakeBroker = Callable[..., BrokerProcess]


def wait_for_grace() -> None:
    """Of one second: what was adopted may go."""
    if not KERNEL_TELLS_HOLDERS:
        time.sleep(1.5)


@pytest.mark.parametrize("unloaded", [False, True])
def test_a_damaged_model_is_loaded_again_by_an_attach_to_the_next_broker(
    broker: BrokerProcess, tmp_path: Path, unloaded: bool
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with broker.connect() as client:
        client.load(path, "m", pin=True, keep_alive=3000)
        client.load(path, "alias")
        flip_in_payload(broker.blocks()[0])
        with contextlib.suppress(NotFoundError):  # found in the background already
            client.scrub("m")
        if unloaded:
            client.unload("m")
        wait_until(broker.is_empty)
    broker.kill()
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == []
        if unloaded:
            with pytest.raises(NotFoundError):
                client.attach("m")
            assert_right_bytes(client, "alias", crcs(path))
            assert names_of(client) == [("alias", [], True)]
        else:
            assert_right_bytes(client, "m", crcs(path))
            assert_right_bytes(client, "alias", crcs(path))
            assert names_of(client) == [("m", ["alias"], True)]
        assert [model.keep_alive for model in client.list()] == [3000]
    assert_books_are_the_kernels(broker)


@pytest.mark.parametrize(
    "point",
    [
        "drain.before_rename",
        "drain.after_rename",
        "drain.before_unlink",
        "drain.after_unlink",
        "state_db.before_commit",
        "state_db.after_commit",
        "load.chunk_read",
        "publish.before_rename",
        "publish.after_rename",
        "load.in_books",
        "load.written",
    ],
)
def test_names_outlive_a_death_while_a_damaged_model_is_withdrawn_or_loaded_again(
    point: str, tmp_path: Path
) -> None:
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        assert point in broker.faults.points()
        with broker.connect() as client:
            client.load(path, "prod", pin=True)
            client.load(path, "second")
            flip_in_payload(broker.blocks()[0])
            broker.faults.crash_at(point)
            for call in (client.scrub, client.attach):
                with contextlib.suppress(ModelBrokerError):
                    call("prod", timeout=1)
            broker.dies_and_is_followed()
        with broker.connect() as client:
            if point == "drain.before_rename":  # nothing has happened: found again
                with contextlib.suppress(NotFoundError):  # in the background already
                    client.scrub("prod")
            for name in ("prod", "second"):
                assert_right_bytes(client, name, crcs(path))
            ((name, aliases, pinned),) = names_of(client)
            assert ({name, *aliases}, pinned) == ({"prod", "second"}, True)
            wait_until(lambda: broker.books()["draining"] == 0)
        assert_books_are_the_kernels(broker)
    finally:
        broker.stop()


def test_an_unload_is_final_though_the_damaged_block_could_not_be_withdrawn(tmp_path: Path) -> None:
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        with broker.connect() as client:
            old = client.load(path, "m", pin=True).generation
            flip_in_payload(broker.blocks()[0])
            broker.faults.fail_at(1, errno.EIO, only=("rename_noreplace",))
            assert client.scrub("m").damaged == 1
            client.attach("m").release()
            assert [m.generation > old for m in client.list()] == [True]
            assert broker.faults.disarm().failed == 1
            assert names_of(client) == [("m", [], True)]
            client.unload("m", wait=True)
            with pytest.raises(NotFoundError):
                client.attach("m")
        broker.kill()
        broker.start()
        with broker.connect() as client, pytest.raises(NotFoundError):
            client.attach("m")
    finally:
        broker.stop()


@pytest.mark.parametrize("how", ["attach", "load"])
def test_a_long_path_is_known_whole_after_a_death_before_it_is_written(
    tmp_path: Path, how: str
) -> None:
    """Of a damaged model's load, and of one's that nobody was told of."""
    broker = FaultyBroker()
    folder = tmp_path / ("long" * 40) / "with\ttab"
    folder.mkdir(parents=True)
    path = files.write_random(folder / "m.safetensors", 1)
    try:
        broker.start()
        with broker.connect() as client:
            if how == "attach":
                client.load(path, "m", pin=True, keep_alive=3000)
                flip_in_payload(broker.blocks()[0])
                assert client.scrub("m").damaged == 1
            broker.faults.crash_at("load.in_books")
            with contextlib.suppress(ModelBrokerError):
                client.attach("m", timeout=1) if how == "attach" else client.load(path, timeout=1)
            broker.dies_and_is_followed()
        with broker.connect() as client:
            (model,) = client.list()
            assert model.path == str(path)
            if how == "attach":
                assert (model.pinned, model.keep_alive) == (True, 3000)
    finally:
        broker.stop()


def test_a_lost_model_is_kept_as_it_was_when_it_is_loaded_by_hand(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with broker.connect() as client:
        client.load(path, "m", pin=True, keep_alive=3000, type="unet")
        (block,) = broker.blocks()
    broker.kill()
    block.unlink()
    broker.start()
    with broker.connect() as client:
        client.load(path, "m")
        (model,) = client.list()
    assert (model.pinned, model.keep_alive, model.type) == (True, 3000, "unet")


@pytest.mark.parametrize("ends", ["killed", "stopped, keeping its blocks"])
def test_evicted_names_outlive_a_broker(make_broker: MakeBroker, tmp_path: Path, ends: str) -> None:
    broker = make_broker("--ram-budget", "16MiB", "--on-stop", "keep", "--grace", "1s").start()
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 10, seed=n) for n in range(3)]
    with broker.connect() as client:
        for path in paths:
            client.load(path, keep_alive=3000)  # each makes the one before it go
        client.unload("m1")  # nothing of it is there
        with client.attach("m2"):
            pass
    if ends == "killed":
        broker.kill()
    else:
        broker.terminate()
    broker.start()
    wait_for_grace()
    with broker.connect() as client:
        assert names_of(client) == [("m2", [], False)]
        assert_right_bytes(client, "m0", crcs(paths[0]))
        assert names_of(client) == [("m0", [], False)]
        assert [model.keep_alive for model in client.list()] == [3000]
        with pytest.raises(NotFoundError):
            client.attach("m1")
        assert_right_bytes(client, "m2", crcs(paths[2]))


def test_a_stop_that_frees_its_blocks_frees_their_names(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "16MiB", "--on-stop", "free").start()
    with broker.connect() as client:
        for name in ("a", "b"):
            client.load(files.write_random(tmp_path / f"{name}.safetensors", 10))
    assert broker.terminate() == 0
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == []
        for name in ("a", "b"):
            with pytest.raises(NotFoundError):
                client.attach(name)


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_a_block_that_was_lost_while_no_broker_ran_is_loaded_again_by_its_names(
    broker: BrokerProcess, tmp_path: Path, harm: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with broker.connect() as client:
        client.load(path, "m", pin=True)
        client.load(path, "alias")
        (block,) = broker.blocks()
    broker.kill()
    if harm == "removed":
        block.unlink()
    else:
        flip(block, 16)
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == []
        assert_right_bytes(client, "m", crcs(path))
        assert_right_bytes(client, "alias", crcs(path))
        assert names_of(client) == [("m", ["alias"], True)]
    assert_books_are_the_kernels(broker)


@needs_root
def test_a_label_is_nobodys_word_after_a_death() -> None:
    """Alice hands in her file as if it lay where root's does; nobody was told of that load."""
    broker = FaultyBroker("--group", str(GROUP))
    broker.folder.chmod(0o755)
    roots = files.write_random(broker.folder / "prod.safetensors", 1)
    hers = files.write_random(broker.folder / "hers.safetensors", 1, seed=6)
    hers.chmod(0o644)
    try:
        broker.start()
        broker.faults.crash_at("load.in_books")

        def hand_in() -> None:
            with Caller(broker, patience=2) as alice, contextlib.suppress(zmq.Again):
                alice.load(hers, label=roots, name="prod")

        as_user(ALICE, hand_in)
        broker.dies_and_is_followed()
        with Caller(broker) as root:
            assert root.code("model.get", model=str(roots)) == "not_found"
            assert root.code("model.attach", model=str(roots), load=False) == "not_found"
    finally:
        broker.stop()


def test_a_new_generation_that_was_not_written_costs_an_evicted_name_nothing(
    tmp_path: Path,
) -> None:
    """With a group nobody knows who had it loaded: it stays, by a name of its own."""
    broker = FaultyBroker("--group", str(GROUP), "--ram-budget", "20MiB")
    path = files.write_random(tmp_path / "m.safetensors", 15)
    try:
        broker.start()
        with broker.connect() as client:
            client.load(path, "m")
            client.load(files.write_random(tmp_path / "big.safetensors", 16))
            files.write_random(tmp_path / "new", 15, seed=5).rename(path)
            client.unload("big", wait=True)
            broker.faults.crash_at("load.in_books")
            with contextlib.suppress(ModelBrokerError):
                client.attach("m", timeout=1)
            broker.dies_and_is_followed()
        with broker.connect() as client, client.attach("m") as weights:
            assert weights.metadata["seed"] == "5"
            assert client.status().tiers["ram"].loads == 0  # it was there
    finally:
        broker.stop()


@needs_root
def test_without_the_database_a_label_moves_nobodys_names(tmp_path: Path) -> None:
    broker = BrokerProcess("--group", str(GROUP))
    broker.folder.chmod(0o755)
    roots = files.write_random(tmp_path / "prod.safetensors", 1)
    hers = files.write_random(broker.folder / "hers.safetensors", 1, seed=6)
    hers.chmod(0o644)

    def hand_in() -> bool:
        with Caller(broker) as alice:
            return bool(alice.load(hers, label=roots, name="x")["success"])

    try:
        broker.start()
        with broker.connect() as client:
            client.load(roots, "prod")
        assert as_user(ALICE, hand_in)
        broker.kill()
        for database in broker.run.glob("state.db*"):
            database.unlink()
        broker.start()
        with broker.connect() as client, client.attach("prod") as weights:
            assert sorted(names_of(client)) == [("prod", [], False), ("x", [], False)]
            assert weights.metadata["seed"] == "0"
    finally:
        broker.stop()


def test_a_path_is_believed_again_when_it_is_loaded_anew(tmp_path: Path) -> None:
    broker = FaultyBroker("--group", str(GROUP))
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        broker.faults.crash_at("load.in_books")
        with broker.connect() as client:
            with contextlib.suppress(ModelBrokerError):
                client.load(path, timeout=1)
            broker.dies_and_is_followed()
        with broker.connect() as client:
            assert client.load(path, pin=True).outcome == "resident"
            flip_in_payload(broker.blocks()[0])
            assert client.scrub("m").damaged == 1
            with client.attach("m"):
                assert names_of(client) == [("m", [], True)]
    finally:
        broker.stop()


def test_a_damaged_block_that_could_not_be_withdrawn_is_not_given_out(tmp_path: Path) -> None:
    broker = FaultyBroker("--ram-budget", "1536KiB")
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        with broker.connect() as client:
            client.load(path, "m")
            weights = client.attach("m")  # leaves no room for another
            flip_in_payload(broker.blocks()[0])
            broker.faults.fail_at(
                1, errno.EIO, for_ever=True, only=("rename_noreplace", "rename", "link")
            )
            assert client.scrub("m").damaged == 1
            with pytest.raises(ResourceExhaustedError):  # it still takes the room
                client.attach("m", timeout=1)
            broker.faults.disarm()
            wait_until(lambda: broker.books()["draining"] > 0)  # by itself
            weights.release()
            assert_right_bytes(client, "m", crcs(path))
    finally:
        broker.stop()


@pytest.mark.parametrize("wait", [True, False])
def test_an_acknowledged_unload_is_final(wait: bool, tmp_path: Path) -> None:
    """Its name would lead to the file again, had it been acknowledged before it was written."""
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        with broker.connect() as client:
            client.load(path, "m")
            broker.faults.crash_at("state_db.before_commit")
            with pytest.raises(ModelBrokerError):
                client.unload("m", wait=wait, timeout=2)
            broker.dies_and_is_followed()
            client.unload("m")
            with pytest.raises(NotFoundError):
                client.attach("m")
    finally:
        broker.stop()
