"""Disks that are full at the wrong moment: the RAM folder's, and the state database's."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from modelbroker import ModelBrokerError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until
from support.small_tmpfs import with_tmpfs

MIB = 1 << 20
MakeBroker = Callable[..., BrokerProcess]


def own(folder: Path, *command: str) -> list[str]:
    """The command, with a folder that nobody else may write to."""
    return ["sh", "-c", 'chmod 700 "$0" && exec "$@"', str(folder), *command]


def start(make_broker: MakeBroker, folder: str, size: str, *flags: str) -> BrokerProcess:
    """A broker with a small tmpfs over one of its folders, which we see through its process."""
    broker = make_broker(*flags)
    over = broker.folder / folder
    over.mkdir(mode=0o700)
    if folder == "shm":
        broker.ram = over
    command = with_tmpfs(over, size, own(over, *broker.serve_command()))
    with broker.log.open("wb") as log:
        broker.process = subprocess.Popen(command, env=broker.environment, stderr=log)
    return broker


def test_a_tmpfs_that_is_filled_from_outside_while_loads_run(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = start(make_broker, "shm", "64m", "--ram-budget", "60MiB")
    modelbroker.connect(broker.endpoint, timeout=30).close()
    broker.ram = Path(f"/proc/{broker.pid}/root{broker.ram}")
    sources = [files.write_random(tmp_path / f"m{i}.safetensors", 12, seed=i) for i in range(6)]
    right = [source.read_bytes()[-4096:] for source in sources]
    stop, filler = threading.Event(), broker.ram / "filler"

    def fill() -> None:
        """Takes what is free, and gives it back, again and again."""
        while not stop.is_set():
            try:
                with filler.open("wb", buffering=0) as file:
                    for _ in range(64):
                        file.write(bytes(MIB))
            except OSError:
                pass
            stop.wait(0.02)
            filler.unlink(missing_ok=True)
            stop.wait(0.02)

    outsider = threading.Thread(target=fill)
    outsider.start()
    served, refused = 0, 0
    try:
        with broker.connect() as client:
            for step in range(120):
                i = step * 5 % len(sources)
                try:
                    with client.attach(sources[i]) as weights:
                        assert weights.numpy()["t3"].tobytes()[-4096:] == right[i]
                        served += 1
                except ResourceExhaustedError:
                    refused += 1
    finally:
        stop.set()
        outsider.join()
    filler.unlink(missing_ok=True)
    assert broker.alive(), broker.output()
    assert served > 0
    assert refused > 0, "it was never full: the test shows nothing"
    with broker.connect() as client:

        def exact() -> bool:
            books = client.status().tiers["ram"]
            return books.made + books.draining == broker.bytes_in_ram() and books.reserved == 0

        wait_until(exact)
        assert client.load(sources[0]).outcome in ("loaded", "resident")


def test_a_full_disk_of_the_state_database_costs_names_and_nothing_else(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = start(make_broker, "run", "1m")
    run = Path(f"/proc/{broker.pid}/root{broker.run}")
    wait_until(lambda: (run / "fds.sock").exists() or not broker.alive())
    seen_from_here(broker, run)
    with modelbroker.connect(broker.endpoint, timeout=30) as client:
        source = files.write_random(tmp_path / "m.safetensors", 2)
        client.load(source)
        fill_up(run / "filler")
        other = files.write_random(tmp_path / "other.safetensors", 2, seed=1)
        for count in range(40):  # each is written to the database
            client.load(other, name=f"alias-{count}-" + "x" * 200)
        assert client.attach("other" if "other" in names(client) else names(client)[0])
        assert "names may be lost" in broker.output()
        client.pin("m")
        (run / "filler").unlink()
        # By itself, and nothing is lost any more.
        wait_until(lambda: "has all names again" in broker.output())
        assert broker.alive()
        known = {model.name: (model.aliases, model.pinned) for model in client.list()}
        assert known["m"] == ([], True)
        for part in run.glob("state.db*"):  # SQLite would look for it in our mount namespace
            shutil.copy(part, tmp_path)
    with sqlite3.connect(tmp_path / "state.db") as database:
        rows = database.execute("select name, pinned from names join models on model = id")
        written = dict(rows.fetchall())
    assert written == {
        name: pinned for model, (also, pinned) in known.items() for name in (model, *also)
    }


def test_a_state_database_that_somebody_locks_is_written_afterwards(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 2)
    database = sqlite3.connect(broker.run / "state.db", isolation_level=None)
    with broker.connect() as client:
        client.load(files.write_random(tmp_path / "gone.safetensors", 2, seed=1))
        database.execute("begin immediate")
        client.load(source, pin=True)
        client.load(source, name="alias")
        client.unload("gone")
        assert "names may be lost" in broker.output()
        database.execute("rollback")
        database.close()
        wait_until(lambda: "has all names again" in broker.output())
        broker.kill()
        broker.start()
        (model,) = client.list()
        assert (model.name, model.aliases, model.pinned) == ("m", ["alias"], True)


def seen_from_here(broker: BrokerProcess, run: Path) -> None:
    """The sockets under a short name: the broker's folder is in its mount namespace."""
    link = broker.folder / "r"
    link.symlink_to(run)
    broker.run = link
    broker.environment["MODELBROKER_ENDPOINT"] = broker.endpoint


def names(client: modelbroker.Broker) -> list[str]:
    return [model.name for model in client.list()]


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue


def test_a_start_on_a_full_disk_says_so(make_broker: MakeBroker) -> None:
    """Not without its database: what was acknowledged before could be forgotten."""
    broker = make_broker()
    over = broker.folder / "run"
    over.mkdir(mode=0o700)
    script = 'head -c 2000000 /dev/zero > "$0/filler" 2>/dev/null; exec "$@"'
    full = ["sh", "-c", script, str(over), *broker.serve_command()]
    command = with_tmpfs(over, "1m", own(over, *full))
    done = subprocess.run(
        command, env=broker.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert str(over) in done.stderr
    assert "others" not in done.stderr, "it was refused for another reason"
    with pytest.raises(ModelBrokerError):
        modelbroker.connect(broker.endpoint, timeout=0.2)


def serving(make_broker: MakeBroker, size: str, *flags: str) -> BrokerProcess:
    broker = start(make_broker, "shm", size, *flags)
    modelbroker.connect(broker.endpoint, timeout=30).close()
    broker.ram = Path(f"/proc/{broker.pid}/root{broker.ram}")
    return broker


def test_a_tmpfs_that_others_filled_is_refused_with_numbers_once_nothing_can_be_evicted(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = serving(make_broker, "100m", "--ram-budget", "100MiB")
    first, second = (files.write_random(tmp_path / f"m{i}.safetensors", 30, seed=i) for i in (1, 2))
    with broker.connect() as client:
        client.load(first)
        filler = broker.ram / "filler"
        filler.write_bytes(bytes(45 * MIB))
        # The budget has room, the tmpfs has not: what nobody uses goes.
        assert client.load(second).outcome == "loaded"
        assert [model.name for model in client.list()] == ["m2"]
        with client.attach("m2"):
            with pytest.raises(ResourceExhaustedError, match=r"free of 100\.0 MiB") as caught:
                client.load(first)
            details = caught.value.details
            assert 30_000_000 < details["needed"] <= 32 * MIB
            assert details["directory_free"] < details["needed"]
            assert details["directory_size"] == 100 * MIB
            assert "Bad address" not in str(caught.value)
            assert "m1" in str(caught.value)
            filler.unlink()
            assert client.load(first).outcome == "loaded"
    assert broker.terminate() == 0


def test_a_load_with_a_deadline_waits_until_others_make_room(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = serving(make_broker, "100m", "--ram-budget", "100MiB")
    source = files.write_random(tmp_path / "m.safetensors", 30)
    filler = broker.ram / "filler"
    filler.write_bytes(bytes(90 * MIB))
    timer = threading.Timer(0.5, filler.unlink)
    with broker.connect() as client:
        timer.start()
        assert client.load(source, timeout=60).outcome == "loaded"
    timer.join()
    assert broker.terminate() == 0


def take_all_inodes(folder: Path) -> None:
    for number in itertools.count():
        try:
            (folder / f"filler{number}").touch()
        except OSError:
            return


def test_a_tmpfs_without_inodes_is_refused_as_that_once_nothing_can_be_evicted(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = serving(make_broker, "100m,nr_inodes=40", "--ram-budget", "90MiB")
    first, second = (files.write_random(tmp_path / f"m{i}.safetensors", 5, seed=i) for i in (1, 2))
    with broker.connect() as client:
        client.load(first)
        take_all_inodes(broker.ram)
        assert client.load(second).outcome == "loaded"
        assert [model.name for model in client.list()] == ["m2"]
        with (
            client.attach("m2"),
            pytest.raises(ResourceExhaustedError, match="cannot have more files"),
        ):
            client.load(first)
    assert broker.terminate() == 0
