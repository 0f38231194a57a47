"""What is published of a model's life, a worker's and the broker's: each event after its cause."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import hanging_file
from support.listener import (
    let_it_read_for_a_while,
    listening,
    seqs_rise,
    sparse_model,
)
from support.raw_wire import call, dealer, frame
from support.users import Caller
from support.workers import HOLDER, workers


def test_the_life_of_a_model_and_of_its_worker(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    boot = broker.cli_json("status")["boot_id"]
    with listening(broker) as ear:
        with broker.connect() as client:
            loaded = client.load(path, "m")
            client.load(path, "other")
            client.pin("m")
            client.pin("m")  # nothing changes, nothing is told
            client.unpin("m")
            with client.attach("m"):
                client.unload("other")
                client.unload("m")
            ear.until("model.freed")  # its lease was released by then
        ear.until("session.ended")
    assert seqs_rise(ear.heard)
    assert {event["boot_id"] for event in ear.heard} == {boot}
    assert {event["v"] for event in ear.heard} == {2}
    assert sorted(event["time"] for event in ear.heard) == [event["time"] for event in ear.heard]
    assert ear.of_models() == [
        "model.loading",
        "model.loaded",
        "model.alias",
        "model.pinned",
        "model.unpinned",
        "model.unloaded",
        "model.unloaded",
        "model.draining",
        "model.freed",
    ]
    told = {event["type"]: event["data"] for event in ear.heard}
    whole = {
        "model": "m",
        "block": loaded.block,
        "generation": loaded.generation,
        "bytes": loaded.bytes,
    }
    assert told["model.loading"] == {
        "model": "m",
        "path": str(path),
        "total_bytes": loaded.payload_bytes,
    }
    (block,) = told["model.loaded"].pop("blocks")
    assert (block["block"], block["source"]) == (loaded.block, str(path))
    assert told["model.loaded"] == {**whole, "path": str(path)}
    assert told["model.alias"].items() >= {"model": "other", "block": loaded.block}.items()
    for kind in ("model.unloaded", "model.draining", "model.freed"):
        assert told[kind].items() >= whole.items(), kind
    withdrawn = next(event for event in ear.heard if event["type"] == "model.unloaded")
    assert withdrawn["data"] == {"model": "other", "path": str(path)}  # others keep the weights
    granted, released = told["lease.granted"], told["lease.released"]
    assert granted == released
    assert (granted["model"], granted["block"], granted["count"]) == ("m", loaded.block, 1)
    assert told["session.opened"] == told["session.ended"]
    assert told["session.opened"]["pid"] == granted["pid"]


def test_who_hears_of_something_finds_it_so(broker: BrokerProcess, tmp_path: Path) -> None:
    """One question right after each event: the state that it tells of is there."""
    path = files.write_random(tmp_path / "m.safetensors", 3)
    with listening(broker) as ear, dealer(broker) as peer:

        def models(kind: str = "models") -> list[str]:
            return [m["name"] for m in call(peer, "model.list")["data"][kind]]

        def books() -> dict[str, int]:
            tiers: dict[str, dict[str, int]] = call(peer, "cache.status")["data"]["tiers"]
            return tiers["ram"]

        client = broker.connect()
        client.load(path, "m")
        ear.until("model.loaded")
        assert models() == ["m"]
        assert (books()["loads"], books()["reserved"]) == (1, 0)
        assert books()["made"] == broker.bytes_in_ram() > 0
        weights = client.attach("m")
        ear.until("lease.granted")
        assert books()["leases"] == 1
        client.pin("m")
        ear.until("model.pinned")
        assert books()["pinned"] > 0
        client.unload("m")
        ear.until("model.draining", model="m")
        assert (models(), models("draining")) == ([], ["m"])
        weights.release()
        ear.until("lease.released")
        assert books()["leases"] == 0
        ear.until("model.freed")
        assert (books()["made"], books()["draining"], broker.blocks()) == (0, 0, [])
        client.close()


def test_a_revived_model_says_so(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 3)
    with listening(broker) as ear, broker.connect() as client:
        generation = client.load(path, "m").generation
        with client.attach("m"):
            client.unload("m")
            assert client.load(path, "m").outcome == "revived"
            told = ear.until("model.revived")["data"]
    assert (told["model"], told["generation"]) == ("m", generation)


def test_a_model_that_is_revived_by_another_name_is_told_of_by_that(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 3)
    with listening(broker) as ear, broker.connect() as client:
        client.load(path, "old", keep_alive=3000, type="unet")
        with client.attach("old"):
            client.unload("old")
            assert client.load(path, "new").outcome == "revived"
            told = ear.until("model.revived")["data"]
        (model,) = client.list()
    assert told["model"] == "new"
    assert (model.name, model.type, model.keep_alive) == ("new", "", -1)  # as a new load's


def test_a_pin_that_comes_with_a_load_is_told_of(broker: BrokerProcess, tmp_path: Path) -> None:
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 1, n) for n in range(2)]
    with listening(broker) as ear, broker.connect() as client:
        client.load(paths[0], "there")
        client.load(paths[0], "there", pin=True)
        client.load(paths[0], "there", pin=True)  # nothing changes, nothing is told
        client.load(paths[1], "new", pin=True)
        ear.until("model.pinned", model="new")
    assert ear.of_models() == [
        *("model.loading", "model.loaded", "model.pinned"),
        *("model.loading", "model.loaded", "model.pinned"),
    ]


def test_every_name_that_moves_to_a_new_generation_is_told_of(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with listening(broker) as ear, broker.connect() as client:
        old = client.load(path, "first", pin=True)
        client.load(path, "second")
        files.write_random(tmp_path / "other", 1, seed=2).rename(path)
        ear.until("model.alias", model="second")
        new = client.load(path)
        ear.until("model.freed", block=old.block)
    # Who keeps a table of names by what is told has it right.
    names: dict[str, str] = {}
    for event in ear.heard:
        data = event["data"]
        if event["type"] in ("model.loaded", "model.alias"):
            names[data["model"]] = data["block"]
    assert names == {"first": new.block, "second": new.block}
    # Its load was told of by the file's stem, since nobody said a name.
    assert [e["data"]["model"] for e in ear.heard if e["type"] == "model.load_failed"] == ["m"]
    pinned = [e["data"]["block"] for e in ear.heard if e["type"] == "model.pinned"]
    assert pinned == [old.block, new.block]


def test_a_block_that_has_just_lost_its_names_is_told_of_by_its_new_one(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    link = tmp_path / "link.safetensors"
    link.hardlink_to(path)
    database = sqlite3.connect(broker.run / "state.db", isolation_level=None)
    with (
        listening(broker) as ear,
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(2) as pool,
    ):
        client.load(path, "m")
        files.write_random(tmp_path / "new", 1, seed=2).rename(path)
        database.execute("begin immediate")  # the first one's block waits for what is written
        moving = pool.submit(client.load, path, "m")
        wait_until(lambda: len(broker.blocks()) == 2)
        ear.until("model.loaded")
        ear.until("model.loaded")
        naming = pool.submit(other.load, link, "old")
        told = ear.until("model.alias")["data"]
        database.execute("commit")
        assert moving.result(60).outcome == "loaded"
        assert (told["model"], told["block"]) == ("old", naming.result(60).block)
    database.close()


def test_a_load_goes_on_by_the_name_of_who_still_waits(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    with (
        hanging_file(tmp_path / "fuse", content, reads=-1) as slow,
        listening(broker) as ear,
        broker.connect() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        slow.slow_down(0.2)
        with Caller(broker) as first:
            first.send_load(slow.path, "first")
            ear.until("model.loading")
            second = pool.submit(client.load, slow.path, "second")
            wait_until(lambda: client.status().tiers["ram"].misses == 2)
        ear.until("model.loading", model="second")
        slow.go_on()
        assert second.result(60).outcome == "loaded"
        ear.until("model.loaded")
    told = [
        (event["type"], event["data"]["model"])
        for event in ear.heard
        if event["type"] in ("model.loading", "model.load_failed", "model.loaded")
    ]
    assert told == [
        ("model.loading", "first"),
        ("model.load_failed", "first"),
        ("model.loading", "second"),
        ("model.loaded", "second"),
    ]


def test_progress_goes_on_to_the_end(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", 1024)
    with listening(broker) as ear, dealer(broker) as peer:
        peer.send(frame("model.load_model", {"path": str(path), "name": "m"}))
        let_it_read_for_a_while(broker)
        ear.until("model.loaded")
    begin = next(event["data"] for event in ear.heard if event["type"] == "model.loading")
    steps = [event["data"] for event in ear.heard if event["type"] == "model.progress"]
    assert steps, ear.types()
    read = [step.get("read_bytes", 0) for step in steps]
    assert read == sorted(read)
    assert read[-1] <= begin["total_bytes"]
    assert all(
        (step["model"], step["path"], step["total_bytes"]) == ("m", str(path), begin["total_bytes"])
        for step in steps
    )
    assert ear.types().index("model.loading") < ear.types().index("model.progress")


def test_an_eviction_says_why(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 20, n) for n in range(2)]
    broker = make_broker("--ram-budget", "32MiB").start()
    with listening(broker) as ear, broker.connect() as client:
        first = client.load(paths[0])
        client.load(paths[1])
        evicted = ear.until("model.evicted")["data"]
        freed = ear.until("model.freed")["data"]
        ear.until("model.loaded", model="m1")
        again = client.load(paths[0], keep_alive=0)
        client.attach("m0").release()
        ended = ear.until("model.evicted", model="m0")["data"]
    assert (evicted["model"], evicted["block"]) == ("m0", first.block)
    assert evicted["bytes"] == freed["bytes"] == first.bytes
    assert evicted["reason"] == "room was needed"
    assert (ended["block"], ended["reason"]) == (again.block, "keep_alive is over")


@pytest.mark.parametrize("how", ["damaged", "cancelled", "too large"])
def test_a_load_that_fails_says_why(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, how: str
) -> None:
    broker = make_broker("--load-threads", "1", "--ram-budget", "1500MiB").start()
    path = sparse_model(tmp_path / "m.safetensors", 2000 if how == "too large" else 1024)
    if how == "damaged":
        os.truncate(path, 64)
    with listening(broker) as ear, dealer(broker) as peer:
        peer.send(frame("model.load_model", {"path": str(path), "name": "m"}))
        if how == "cancelled":
            ear.until("model.loading")
            assert broker.cli_json("cancel", "m") == {"cancelled": 1}
        failed = ear.until("model.load_failed")["data"]
        assert "model.loaded" not in ear.types()
    code = {"damaged": "data_loss", "cancelled": "cancelled", "too large": "resource_exhausted"}[
        how
    ]
    assert failed["reason"].startswith(f"{code}: ")
    assert failed["path"] == str(path)
    assert failed["model"] == "m"
    wait_until(broker.is_empty)


def test_a_killed_worker_is_told_of(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with listening(broker) as ear, workers(broker, 1, HOLDER, "m") as (worker,):
        granted = ear.until("lease.granted", pid=worker.pid)["data"]
        worker.kill()
        released = ear.until("lease.released", pid=worker.pid)["data"]
        ear.until("session.ended", pid=worker.pid)
    assert granted["model"] == "m"
    assert released["count"] == 1


def test_a_clean_stop_is_the_last_event_and_a_new_broker_begins_anew(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with listening(broker) as ear:
        broker.terminate()
        boot = ear.until("broker.stopping")["boot_id"]
        assert seqs_rise(ear.heard)
        assert ear.drain() == []
    broker.start()
    with listening(broker) as ear, broker.connect():
        event = ear.until("session.opened")
        assert event["boot_id"] != boot
        assert event["boot_id"] == broker.cli_json("status")["boot_id"]
    with broker.connect() as client:
        snapshot = next(client.events())
        assert snapshot.seq < 100  # its own count, not the last broker's


def test_a_block_that_is_found_damaged_at_a_start_is_told_of(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """Nobody can listen so early: the count shows it, and the state has it no more."""
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    broker.kill()
    (block,) = broker.blocks()
    block.chmod(stat.S_IRUSR | stat.S_IWUSR)
    with block.open("r+b") as file:
        file.write(b"not a block")
    block.chmod(stat.S_IRUSR)
    broker.start()
    with broker.connect() as client:
        snapshot = next(client.events())
    assert snapshot.seq > 0
    assert snapshot.data["models"] == []
    assert broker.blocks() == []


def test_the_socket_is_for_its_user_alone(broker: BrokerProcess) -> None:
    assert stat.S_IMODE((broker.run / "events.sock").stat().st_mode) == 0o600


def test_snapshot_and_events_join_without_a_seam(broker: BrokerProcess, tmp_path: Path) -> None:
    """By docs/protocol.md: subscribe, ask for a snapshot, go on with what comes after it."""
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 0.1, n) for n in range(10)]
    broker.cli("load", paths[0])
    with listening(broker) as ear, dealer(broker) as peer, broker.connect() as client:
        for path in paths[1:4]:
            client.load(path)
        state = call(peer, "events.snapshot")["data"]
        known = {model["name"] for model in state["models"]}
        for path in paths[4:]:
            client.load(path)
        client.unload("m1")
        ear.until("model.freed")
        later = [event for event in ear.heard if event["seq"] > state["seq"]]
        assert later[0]["seq"] == state["seq"] + 1
        _apply(later, known)
        assert known == {model.name for model in client.list()}
        assert state["tiers"]["ram"]["models"] == 4


def _apply(events: list[dict[str, object]], known: set[str]) -> None:
    for event in events:
        data = event["data"]
        assert isinstance(data, dict)
        if event["type"] == "model.loaded":
            known.add(data["model"])
        elif event["type"] == "model.unloaded":
            known.discard(data["model"])


def test_a_subscription_that_is_no_topic_harms_nobody(broker: BrokerProcess) -> None:
    with listening(broker) as ear:
        context = zmq.Context()
        socket = context.socket(zmq.XSUB)
        socket.linger = 0
        socket.connect(f"ipc://{broker.run}/events.sock")
        for junk in (b"", b"\x01" + b"a" * 200, b"\x07junk", b"\x01" + b"b" * 100_000):
            socket.send(junk)
        modelbroker.connect(broker.endpoint).close()
        ear.until("session.ended")
        socket.close(0)
        context.term()
    assert broker.alive()
