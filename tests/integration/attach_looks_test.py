"""An attach that only looks: a descriptor and `load: false`. And what an attach says it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.users import Caller


@pytest.fixture
def caller(broker: BrokerProcess) -> Iterator[Caller]:
    with Caller(broker) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return files.write_random(tmp_path / "m.safetensors", 2)


@pytest.fixture
def full(make_broker: Callable[..., BrokerProcess], path: Path) -> Iterator[Caller]:
    """With a model "other", and no room for another one."""
    with Caller(make_broker("--ram-budget", "3MiB").start()) as made:
        assert made.load(files.write_random(path.with_name("other.safetensors"), 2))["success"]
        yield made


def states(caller: Caller) -> list[str]:
    return [str(model["state"]) for model in caller.ok("model.list")["models"]]


def look(caller: Caller, path: Path, told: Path | None = None, **more: Any) -> dict[str, Any]:
    """`told`: where the file is said to lie, if elsewhere."""
    handle = caller.offer(path, os.O_RDONLY | os.O_NONBLOCK)
    asked = {"model": str(told or path), "file": handle, "load": False, **more}
    return caller.call("model.attach", **asked)


def assert_finds_nothing(caller: Caller, path: Path, told: Path | None = None) -> None:
    def loads() -> int:
        return int(caller.ok("cache.status")["tiers"]["ram"]["loads"])

    before, blocks = loads(), caller.broker.blocks()
    error = look(caller, path, told)["error"]
    assert error["code"] == "not_found"
    for word in (f"'{told or path}' is not resident", "load FILE", "without 'load: false'"):
        assert word in error["message"]
    assert loads() == before
    assert caller.broker.blocks() == blocks
    assert "loading" not in states(caller)


def test_it_is_granted_the_resident_model_of_that_file(
    caller: Caller, path: Path, tmp_path: Path
) -> None:
    loaded = caller.load(path, name="m")["data"]
    link = tmp_path / "link"
    link.symlink_to(path)
    for told in (path, link, Path("/elsewhere/m.safetensors")):
        reply = look(caller, path, told)["data"]
        assert (reply["model"], reply["outcome"]) == ("m", "resident")
        assert reply["blocks"][0]["block"] == loaded["block"]
    assert caller.ok("model.get", model="m")["model"]["aliases"] == []


def rewritten(path: Path) -> None:
    files.write_random(path, 2, seed=1)


def replaced(path: Path) -> None:
    files.write_random(path.with_name("new"), 2, seed=1).rename(path)


def copied(path: Path) -> None:
    """The same bytes and times in another inode: comparing them would take as long as a load."""
    found = path.stat()
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").rename(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, replaced, copied])
def test_of_another_file_at_that_path_it_finds_nothing(
    caller: Caller, path: Path, change: Callable[[Path], None]
) -> None:
    assert_finds_nothing(caller, path)  # nor of one that was never loaded
    block = caller.load(path, name="m")["data"]["block"]
    change(path)
    assert_finds_nothing(caller, path)
    assert caller.ok("model.attach", model="m")["blocks"][0]["block"] == block


def test_it_does_not_wait_for_a_load_that_is_under_way(full: Caller, path: Path) -> None:
    held = full.ok("model.attach", model="other")
    with Caller(full.broker) as loader:
        loader.send_load(path, "m")  # waits for room
        wait_until(lambda: "loading" in states(full))
        assert look(full, path)["error"]["code"] == "not_found"
        full.ok("model.detach", lease=held["lease"])
        assert loader.code_of_answer() == ""
    assert look(full, path)["data"]["outcome"] == "resident"


def test_what_drains_is_revived(caller: Caller, path: Path) -> None:
    caller.load(path, name="m")
    held = caller.ok("model.attach", model="m")
    assert caller.ok("model.unload_model", model="m")["draining"] > 0
    reply = look(caller, path)["data"]
    assert reply["outcome"] == "revived"
    assert reply["blocks"][0]["generation"] == held["blocks"][0]["generation"]
    caller.ok("model.detach", lease=held["lease"])
    assert caller.ok("model.get", model=reply["model"])["model"]["state"] == "resident"


def test_what_was_evicted_is_not_loaded_again(full: Caller, path: Path) -> None:
    full.load(path, name="m")
    full.load(path.with_name("other.safetensors"), name="other")
    assert_finds_nothing(full, path)
    assert full.code("model.attach", model="m", load=False) == "not_found"
    assert look(full, path, load=True)["data"]["outcome"] == "loaded"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_cannot_be_loaded_is_refused_as_by_a_load(
    caller: Caller, tmp_path: Path, kind: str
) -> None:
    odd = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd = Path("/dev/null")
    error = look(caller, odd)["error"]
    assert error == look(caller, odd, load=True)["error"]
    assert error["code"] != "not_found"


def test_an_attach_says_what_it_found(caller: Caller, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    for told, outcome in ((path, "loaded"), (path, "resident"), (copy, "alias")):
        assert look(caller, told, load=True)["data"]["outcome"] == outcome
    for name in ("m", "copy", str(path)):
        assert caller.ok("model.attach", model=name)["outcome"] == "resident"
        assert caller.ok("model.attach", model=name, load=False)["outcome"] == "resident"
