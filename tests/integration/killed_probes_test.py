"""A probe of the kernel that is killed leaves nothing: its file has no name at any time."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess
from support.names_made import names_made

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def ram() -> Iterator[Path]:
    """A RAM folder of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_the_watch_sees_what_lives_for_a_moment(ram: Path) -> None:
    with names_made(ram) as names:
        (ram / "a").touch()
        (ram / "a").unlink()
    assert names == {"a"}


def test_doctor_makes_no_name(make_broker: MakeBroker, ram: Path) -> None:
    with names_made(ram) as names:
        told = make_broker().cli("doctor", "--ram-directory", ram).stdout
    assert "huge_pages" in told
    assert names == set()


def test_a_start_makes_no_name_but_the_locks(make_broker: MakeBroker, ram: Path) -> None:
    broker = make_broker()
    broker.ram = ram
    with names_made(ram) as names:
        broker.start()
        features = broker.cli_json("status")["features"]
    assert names == {f"modelbroker.{os.geteuid()}.{broker.instance}.lock"}
    assert features["rename_noreplace"]  # the probes ran


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_killed_at_any_moment_nothing_is_left(
    make_broker: MakeBroker, ram: Path, command: str
) -> None:
    for moment in range(10):
        broker = make_broker()
        words = [BINARY, command, "--run-directory", str(broker.run), "--ram-directory", str(ram)]
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment * 0.004)  # nothing depends on it: each is right
        process.kill()
        process.wait(60)
        assert [path.name for path in ram.iterdir() if path.suffix != ".lock"] == []


def test_where_files_cannot_be_nameless_the_name_goes_at_once(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    """On a disk's file system, whatever it can."""
    folder = tmp_path / "disk"
    folder.mkdir()
    broker = make_broker("--any-file-system")
    broker.ram = folder
    broker.start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    assert [path.name for path in folder.iterdir() if ".probe." in path.name] == []
