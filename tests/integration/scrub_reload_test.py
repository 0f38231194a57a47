"""A damaged model on its way back: its names, pin and owners are as before, or unloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from modelbroker import NotFoundError
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip_in_payload
from support.hanging_files import hanging_file
from support.users import ALICE, BOB, GROUP, Caller, User, as_user, needs_root

MakeBroker = Callable[..., BrokerProcess]


def names_of(client: modelbroker.Broker) -> list[tuple[str, list[str], bool]]:
    return [(m.name, m.aliases, m.pinned) for m in client.list() if m.state == "resident"]


def test_an_unload_while_it_is_loaded_again_is_final(broker: BrokerProcess, tmp_path: Path) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    with hanging_file(tmp_path / "fuse", content, reads=-1) as slow, broker.connect() as client:
        client.load(slow.path, "m", pin=True)
        client.load(slow.path, "alias")
        flip_in_payload(broker.blocks()[0])
        slow.hang_after(3)
        assert client.scrub("m").damaged == 1
        assert slow.hanging.wait(60)
        client.unload("m")
        slow.go_on()
        wait_until(lambda: names_of(client) == [("alias", [], True)])
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


@needs_root
def test_a_name_stays_its_givers_through_damage_and_eviction(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker("--group", str(GROUP), "--ram-budget", "40MiB")
    models = broker.folder / "models"  # where everybody may look: a test's own folder is private
    models.mkdir()
    broker.folder.chmod(0o755)
    broker.flags = (*broker.flags, "--model-folders", str(models))
    broker.start()
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
