"""A damaged model on its way back: its names, pin and owners are as before, or unloaded."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelbroker import CancelledError, ModelBrokerError, NotFoundError
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip_in_payload
from support.features import switched_off
from support.hanging_files import hang_while_it_is_loaded_again, hanging_file
from support.users import ALICE, BOB, GROUP, Caller, User, as_user, needs_root
from support.workers import names_of

MakeBroker = Callable[..., BrokerProcess]


def test_an_unload_while_it_is_loaded_again_is_final(broker: BrokerProcess, tmp_path: Path) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    with hanging_file(tmp_path / "fuse", content, reads=-1) as slow, broker.connect() as client:
        client.load(slow.path, "m", pin=True)
        client.load(slow.path, "alias")
        hang_while_it_is_loaded_again(broker, client, slow, "m")
        client.unload("m")
        slow.go_on()
        wait_until(lambda: names_of(client) == [("alias", [], True)])
        with pytest.raises(NotFoundError):
            client.attach("m")


def test_a_name_that_is_another_files_by_now_is_left_to_that(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    other = files.write_random(tmp_path / "other.safetensors", 1, seed=7)
    with hanging_file(tmp_path / "fuse", content, reads=-1) as slow, broker.connect() as client:
        client.load(slow.path, "m")
        client.load(slow.path, "alias")
        hang_while_it_is_loaded_again(broker, client, slow, "m")
        client.unload("alias")
        client.load(other, "alias", keep_alive=0)
        client.attach("alias").release()  # and is evicted with that
        wait_until(lambda: client.status().tiers["ram"].evictions == 1)
        slow.go_on()
        wait_until(lambda: ("m", [], False) in names_of(client))
        with client.attach("alias") as weights:
            assert weights.metadata["seed"] == "7"


def test_an_unload_is_final_though_the_name_had_a_newer_file_by_then(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    other = files.write_random(tmp_path / "other.safetensors", 1, seed=7)
    link, new = tmp_path / "link", tmp_path / "new"
    with hanging_file(tmp_path / "fuse", content, reads=-1) as slow, broker.connect() as client:
        link.symlink_to(slow.path)
        client.load(link, "m")
        hang_while_it_is_loaded_again(broker, client, slow, "m")
        new.symlink_to(other)
        new.rename(link)
        client.load(link, "m")
        client.unload("m", wait=True)
        slow.go_on()
        wait_until(broker.is_empty)
        with pytest.raises(NotFoundError):
            client.attach("m")


def test_a_reload_that_is_overtaken_while_it_is_written_ends_once(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with (
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(3) as pool,
    ):
        client.load(path, "a")
        damaged = client.load(path, "b").block
        flip_in_payload(broker.blocks()[0])
        database = sqlite3.connect(broker.run / "state.db", isolation_level=None)
        database.execute("begin immediate")
        scrubbing = pool.submit(client.scrub, "a")

        def again() -> list[str]:
            return [m.block for m in other.list() if m.state == "resident" and m.block != damaged]

        wait_until(again)  # and waits to be written
        (broker.ram / again()[0]).unlink()
        attaching = pool.submit(other.attach, "a", timeout=10)
        unloading = pool.submit(client.unload, "a", timeout=10)
        time.sleep(0.1)  # both are there
        database.execute("commit")
        database.close()
        for call in (scrubbing, attaching, unloading):
            with contextlib.suppress(ModelBrokerError):
                call.result(60)
        assert broker.alive()
        with client.attach("b"):
            pass


@pytest.mark.parametrize("how", ["evicted", "damaged"])
def test_an_unload_cancels_who_has_it_loaded_again(
    broker: BrokerProcess, tmp_path: Path, how: str
) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    with (
        hanging_file(tmp_path / "fuse", content, reads=-1) as slow,
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        client.load(slow.path, "m", keep_alive=0 if how == "evicted" else -1)
        if how == "evicted":
            client.attach("m").release()
            wait_until(broker.is_empty)
            slow.slow_down(0.2)
        else:
            flip_in_payload(broker.blocks()[0])
            slow.slow_down(0.2)
            assert client.scrub("m").damaged == 1
        attaching = pool.submit(other.attach, "m", timeout=60)
        # Of the first load, of the scrubber's, and of this one.
        misses = 2 if how == "evicted" else 3
        wait_until(lambda: client.status().tiers["ram"].misses == misses)
        client.unload("m")
        with pytest.raises(CancelledError, match="unloaded meanwhile"):
            attaching.result(60)
        slow.go_on()
        wait_until(broker.is_empty)
        with pytest.raises(NotFoundError):
            client.attach("m")


def test_a_pin_outlives_a_reload_that_had_no_room(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker("--ram-budget", "40MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 25)
    with broker.connect() as client:
        client.load(path, "m", pin=True)
        weights = client.attach("m")
        flip_in_payload(broker.blocks()[0])
        assert client.scrub("m").damaged == 1
        wait_until(lambda: "cannot be loaded again" in broker.output())
        weights.release()
        with client.attach("m"):
            assert names_of(client) == [("m", [], True)]


@pytest.fixture
def group_broker(make_broker: MakeBroker) -> BrokerProcess:
    """For a group; its models lie where everybody may look: a test's own folder is private."""
    broker = make_broker("--group", str(GROUP), "--ram-budget", "40MiB")
    models = broker.folder / "models"
    models.mkdir()
    broker.folder.chmod(0o755)
    broker.flags = (*broker.flags, "--model-folders", str(models))
    return broker.start()


@needs_root
def test_whose_load_it_was_may_attach_it_again(group_broker: BrokerProcess) -> None:
    if switched_off("peer_groups"):
        pytest.skip("a further group, by which she reads it, is not seen")
    broker = group_broker
    path = files.write_random(broker.folder / "models" / "m.safetensors", 1)
    os.chown(path, 1777, 1500)  # to be read by Alice, and neither hers nor the group's
    path.chmod(0o640)

    def attaches(user: User, **load: str) -> bool:
        def what() -> bool:
            with Caller(broker) as caller:
                if load:
                    caller.ok("model.load_model", **load)
                return bool(caller.call("model.attach", model="m")["success"])

        return as_user(user, what)

    assert attaches(ALICE, path=str(path), name="m")
    flip_in_payload(broker.blocks()[0])
    with broker.connect() as client:
        assert client.scrub("m").damaged == 1
        wait_until(lambda: names_of(client) == [("m", [], False)])
    assert attaches(ALICE)
    assert not attaches(BOB)


@needs_root
def test_the_name_of_an_evicted_model_is_not_given_to_another_users_file(
    group_broker: BrokerProcess,
) -> None:
    broker = group_broker
    path, mine, big = (
        files.write_random(broker.folder / "models" / f"{name}.safetensors", megabytes, seed)
        for seed, (name, megabytes) in enumerate([("m", 15), ("mine", 15), ("big", 30)])
    )
    with broker.connect() as client:
        client.load(path, "m")
        client.load(big)
        assert [name for name, *_ in names_of(client)] == ["big"]

    def alice(file: Path, label: Path, name: str) -> str:
        def what() -> str:
            with Caller(broker) as caller:
                reply = caller.load(file, label, name=name)
                return "" if reply["success"] else str(reply["error"]["code"])

        return as_user(ALICE, what)

    assert alice(mine, mine, "m") == "already_exists"
    assert alice(mine, path, "m") == "already_exists"  # its label is her word
    with broker.connect() as client:
        client.unload("big", wait=True)
        assert alice(path, path, "m") == ""  # that very file; the name stays whose it was

        def unload() -> str:
            with Caller(broker) as caller:
                return caller.code("model.unload_model", model="m")

        assert as_user(ALICE, unload) == "permission_denied"
        with client.attach("m") as weights:
            assert weights.metadata["seed"] == "0"


@needs_root
def test_a_name_stays_its_givers_through_damage_and_eviction(
    group_broker: BrokerProcess,
) -> None:
    broker, models = group_broker, group_broker.folder / "models"
    path = files.write_random(models / "m.safetensors", 15)
    big = files.write_random(models / "big.safetensors", 25)

    def ask(user: User, type_: str, **data: object) -> bool:
        def what() -> bool:
            with Caller(broker) as caller:
                return bool(caller.call(type_, **data)["success"])

        return as_user(user, what)

    assert ask(ALICE, "model.load_model", path=str(path), name="m")
    flip_in_payload(broker.blocks()[0])
    assert "damaged" in broker.cli("scrub", "m", check=False).stdout
    with broker.connect() as client:
        wait_until(lambda: names_of(client) == [("m", [], False)])
        assert ask(ALICE, "model.pin", model="m")
        assert ask(ALICE, "model.unpin", model="m")
        client.load(big)
        assert [name for name, *_ in names_of(client)] == ["big"]
        client.unload("big", wait=True)
        assert ask(BOB, "model.attach", model="m")
        assert not ask(BOB, "model.unload_model", model="m")
        files.write_random(broker.folder / "new", 15, seed=2).rename(path)
        os.chmod(path, 0o644)
        assert ask(ALICE, "model.load_model", path=str(path))
        with client.attach("m") as weights:
            assert weights.metadata["seed"] == "2"
        assert ask(ALICE, "model.unload_model", model="m")
