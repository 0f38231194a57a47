"""What a broker finds when it starts: draining blocks, lost names, damage, half a clean stop."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.workers import (
    HOLDER,
    assert_books_are_the_kernels,
    assert_right_bytes,
    crcs,
    identities,
    names_of,
    workers,
)

SEED = 20240607


@pytest.mark.parametrize("dies", ["with its broker alive", "while no broker runs"])
def test_a_draining_block_waits_for_its_holder_over_a_kill(
    broker: BrokerProcess, tmp_path: Path, dies: str
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 5), "--name", "m")
    with workers(broker, 1, HOLDER, "m") as [holder]:
        broker.cli("unload", "m")
        draining = broker.books()["draining"]
        assert draining > 0
        broker.kill()
        if dies == "while no broker runs":
            holder.kill()
            holder.wait()
            broker.start()
            wait_until(broker.is_empty)
            return
        broker.start()
        wait_until(lambda: broker.books()["leases"] == 1)
        assert broker.books()["draining"] == draining == broker.bytes_in_ram()
        assert broker.cli_json("ls") == []
        holder.kill()
        wait_until(broker.is_empty)


@pytest.mark.parametrize("harm", ["deleted", "garbage", "empty", "cut", "foreign"])
def test_blocks_keep_their_first_name_when_the_state_database_is_lost(
    broker: BrokerProcess, tmp_path: Path, harm: str
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    expected = crcs(path)
    broker.cli("load", path, "--name", "first")
    broker.cli("load", path, "--name", "second")
    before = identities(broker)
    broker.kill()
    for database in broker.run.glob("state.db*"):  # with its journals
        whole = database.read_bytes()
        database.unlink()
        if harm == "garbage":
            database.write_bytes(random.Random(SEED).randbytes(len(whole)))
        if harm == "cut":
            database.write_bytes(whole[: len(whole) // 2])
        if harm == "empty":
            database.touch()
    if harm == "foreign":
        other = sqlite3.connect(broker.run / "state.db")
        other.execute("create table blocks (something int)")
        other.close()
    broker.start()
    assert identities(broker) == before
    with broker.connect() as client:
        assert_right_bytes(client, "first", expected)
        assert client.load(path, "third").outcome == "alias"
        client.pin("third")
    broker.kill()
    broker.start()  # the new database is as good as the old one was
    (model,) = broker.cli_json("ls")
    assert model["name"] == "first"
    assert "third" in model["aliases"]


def test_a_state_database_of_another_version_is_set_aside(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    broker.cli("load", path, "--name", "first", "--pin")
    broker.cli("load", path, "--name", "second")
    broker.kill()
    database = broker.run / "state.db"
    with contextlib.closing(sqlite3.connect(database)) as older:
        older.execute("pragma user_version = 5")
    broker.start()
    assert f"it was moved to '{database}.version-5'. Names are taken from" in broker.output()
    with broker.connect() as client:
        assert names_of(client) == [("first", [], False)]
        assert_right_bytes(client, "first", crcs(path))
    with contextlib.closing(sqlite3.connect(f"{database}.version-5")) as older:
        assert older.execute("select name from names").fetchall() == [("first",), ("second",)]


def flip(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as block:
        block.seek(offset)
        byte = block.read(1)[0]
        block.seek(offset)
        block.write(bytes([byte ^ 1]))
    path.chmod(0o400)


@pytest.mark.parametrize("offset", [0, 16, 24, 72, 112, 128, 159, 4096])
def test_a_block_damaged_while_no_broker_ran_is_not_adopted_and_others_are(
    broker: BrokerProcess, tmp_path: Path, offset: int
) -> None:
    good = files.write_random(tmp_path / "good", 5, seed=1)
    bad = files.write_random(tmp_path / "bad", 5, seed=2)
    broker.cli("load", good, "--name", "good")
    broker.cli("load", bad, "--name", "bad")
    block = broker.cli_json("show", "bad")["block_path"]
    broker.kill()
    flip(Path(block), offset)
    broker.start()
    assert list(identities(broker)) == ["good"]
    with broker.connect() as client:
        assert_right_bytes(client, "good", crcs(good))
        client.load(bad, "bad")
        assert_right_bytes(client, "bad", crcs(bad))
    assert_books_are_the_kernels(broker)


@pytest.mark.parametrize("on_stop", ["free", "keep"])
def test_a_kill_in_the_clean_stop_leaves_whole_blocks_or_none(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, on_stop: str
) -> None:
    broker = make_broker("--on-stop", on_stop).start()
    paths = [files.write_random(tmp_path / f"m{seed}", 8, seed) for seed in range(3)]
    chance = random.Random(SEED)
    for _ in range(20):
        with broker.connect() as client:
            for path in paths:
                client.load(path, path.name)
        os.kill(broker.pid, signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["sleep", "60"], timeout=chance.uniform(0, 0.03), check=True)
        broker.kill()
        broker.start()
        assert_books_are_the_kernels(broker)
        left = identities(broker)
        assert on_stop == "free" or len(left) == 3
        with broker.connect() as client:
            for path in paths:
                if path.name in left:
                    assert_right_bytes(client, path.name, crcs(path))


@pytest.mark.parametrize("linked", [True, False], ids=["a link", "a copy"])
def test_a_second_file_name_of_a_block_is_removed(
    broker: BrokerProcess, tmp_path: Path, linked: bool
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    broker.cli("load", path, "--name", "m")
    before = identities(broker)
    (block,) = broker.blocks()
    broker.kill()
    double = block.with_name(block.name + ".drain")
    if linked:
        double.hardlink_to(block)
    else:
        shutil.copy(block, double)
        double.chmod(0o400)
    broker.start()
    assert broker.blocks() == [block]
    assert "second name or a copy" in broker.output()
    assert identities(broker) == before
    assert_books_are_the_kernels(broker)
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    broker.cli("unload", "m")
    wait_until(broker.is_empty)


def test_clean_frees_a_block_with_two_names(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 5))
    (block,) = broker.blocks()
    held = broker.bytes_in_ram()
    broker.kill()
    block.with_name(block.name + ".drain").hardlink_to(block)
    cleaned = broker.cli_json("clean", "--ram-directory", broker.ram, "--instance", broker.instance)
    assert cleaned == {"blocks": 1, "bytes": held, "left_alone": []}
    assert broker.blocks() == []
