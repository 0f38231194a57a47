"""The names of a damaged model are an evicted one's: with their pin and owners, or unloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelbroker import CancelledError, NotFoundError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip_in_payload
from support.features import switched_off
from support.hanging_files import hanging_file
from support.users import ALICE, BOB, GROUP, Caller, User, as_user, needs_root
from support.workers import names_of

MakeBroker = Callable[..., BrokerProcess]


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
        else:
            flip_in_payload(broker.blocks()[0])
            assert client.scrub("m").damaged == 1
        slow.slow_down(0.2)
        attaching = pool.submit(other.attach, "m", timeout=60)
        wait_until(lambda: client.status().tiers["ram"].misses == 2)  # of both loads
        client.unload("m")
        with pytest.raises(CancelledError, match="unloaded meanwhile"):
            attaching.result(60)
        slow.go_on()
        wait_until(broker.is_empty)
        with pytest.raises(NotFoundError):
            client.attach("m")


def test_a_pin_outlives_an_attach_that_had_no_room(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker("--ram-budget", "40MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 25)
    with broker.connect() as client:
        client.load(path, "m", pin=True)
        weights = client.attach("m")
        flip_in_payload(broker.blocks()[0])
        assert client.scrub("m").damaged == 1
        with pytest.raises(ResourceExhaustedError):
            client.attach("m")
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
    assert not attaches(BOB)
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
    assert ask(BOB, "model.attach", model="m")
    with broker.connect() as client:
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
