"""A file is known by its bytes where its file system says something new of it at each look.

Same size and mtime, but another inode, device or ctime: it is hashed and compared.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import modelbroker
from modelbroker import AlreadyExistsError
from support import files
from support.broker import BrokerProcess
from support.hanging_files import hanging_file

PAST = (1_600_000_000_000_000_000,) * 2


def loads(client: modelbroker.Broker) -> int:
    return client.status().tiers["ram"].loads


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return files.write_random(tmp_path / "content.safetensors", 20, seed=7).read_bytes()


@pytest.mark.parametrize("what", ["fresh_inodes", "ctime_is_now"])
def test_what_says_something_new_at_each_look_is_loaded_once(
    broker: BrokerProcess, tmp_path: Path, content: bytes, what: str
) -> None:
    with (
        hanging_file(tmp_path / "fuse", content, -1, **{what: True}) as odd,
        broker.connect() as client,
    ):
        held = [client.attach(odd.path) for _ in range(4)]
        assert len({weights.generation for weights in held}) == 1
        assert {weights.model for weights in held} == {"hangs"}
        assert client.load(odd.path).outcome == "resident"
        assert client.load(odd.path, "other").outcome == "alias"
        assert loads(client) == 1
        assert len(broker.blocks()) == 1
        assert content.endswith(held[0].raw("t3").tobytes())


def test_workers_that_start_at_once_load_it_once(
    broker: BrokerProcess, tmp_path: Path, content: bytes
) -> None:
    workers = 8
    with (
        hanging_file(tmp_path / "fuse", content, -1, fresh_inodes=True) as odd,
        broker.connect() as client,
        ThreadPoolExecutor(workers) as pool,
    ):

        def attach(_: int) -> int:
            with broker.connect() as own, own.attach(odd.path) as weights:
                return weights.generation

        assert len(set(pool.map(attach, range(workers)))) == 1
        assert loads(client) == 1


def test_one_that_stands_still_is_not_waited_for(
    broker: BrokerProcess, tmp_path: Path, content: bytes
) -> None:
    with (
        hanging_file(tmp_path / "hung", content) as hung,
        hanging_file(tmp_path / "well", content, -1) as well,
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        loading = pool.submit(client.load, hung.path, "hung")
        assert hung.hanging.wait(60)
        assert other.load(well.path, "well").outcome == "loaded"
        assert other.cancel("hung") == 1
        with pytest.raises(modelbroker.CancelledError):
            loading.result(60)


def fine_tunes(folder: Path) -> list[Path]:
    """Of one layout, with the same size and times, and other bytes in their last tensor."""
    paths = []
    for seed in range(3):
        path = files.write_random(folder / f"tune{seed}.safetensors", 40, seed=1)
        with path.open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(seed.to_bytes(8, "little"))
        os.utime(path, ns=PAST)
        paths.append(path)
    return paths


def test_fine_tunes_of_one_layout_and_time_stay_models_of_their_own(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    paths = fine_tunes(tmp_path)
    with broker.connect() as client:
        for path in paths:
            assert client.load(path).outcome == "loaded"
        for path in paths:
            assert client.load(path).outcome == "resident"
        for seed, path in enumerate(paths):
            with client.attach(path.stem) as weights:
                assert weights.raw("t3").tobytes()[-8:] == seed.to_bytes(8, "little")
        with pytest.raises(AlreadyExistsError, match="belongs to"):
            client.load(shutil.copy2(paths[1], tmp_path / "copy"), "tune0")
        assert loads(client) == len(paths)


def test_fine_tunes_that_are_loaded_at_once_stay_models_of_their_own(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    paths = fine_tunes(tmp_path)
    with broker.connect() as client, ThreadPoolExecutor(len(paths)) as pool:

        def attach(path: Path) -> bytes:
            with broker.connect() as own, own.attach(path) as weights:
                return bytes(weights.raw("t3").tobytes()[-8:])

        ends = list(pool.map(attach, paths))
        assert ends == [seed.to_bytes(8, "little") for seed in range(len(paths))]
        assert loads(client) == len(paths)


def test_a_copy_with_its_times_is_the_same_model_under_its_own_name_too(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    first = files.write_random(tmp_path / "first.safetensors", 5, seed=1)
    copy = Path(shutil.copy2(first, tmp_path / "copy.safetensors"))
    with broker.connect() as client:
        client.load(first)
        assert client.load(copy).outcome == "alias"
        for path in (first, copy, first, copy):
            with client.attach(path) as weights:
                assert weights.model == path.stem
        assert loads(client) == 1
        # Each name follows the file at its own path.
        files.write_random(copy, 5, seed=2)
        assert client.load(copy).outcome == "loaded"
        with client.attach("first") as old, client.attach("copy") as new:
            assert (old.metadata["seed"], new.metadata["seed"]) == ("1", "2")


def test_a_file_rewritten_with_its_old_mtime_is_a_new_generation(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5, seed=1)
    os.utime(path, ns=PAST)
    with broker.connect() as client:
        before = client.load(path)
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\xff" * 4)
        os.utime(path, ns=PAST)
        after = client.load(path)
        assert (after.outcome, after.generation > before.generation) == ("loaded", True)
        with client.attach("m") as weights:
            assert bytes(np.asarray(weights.raw("t3"))[-4:]) == b"\xff" * 4


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and its copy with its times."""
    first = files.write_random(tmp_path / "first.safetensors", 1)
    return first, Path(shutil.copy2(first, tmp_path / "copy.safetensors"))


def test_unloading_a_path_leaves_the_names_of_other_files_with_its_bytes(
    broker: BrokerProcess, twins: tuple[Path, Path]
) -> None:
    first, copy = twins
    with broker.connect() as client:
        client.load(first, "chat")
        client.load(copy)
        unloaded = client.unload(copy)
        assert (unloaded.model, unloaded.remaining_names) == ("copy", ["chat"])
        assert (unloaded.freed, unloaded.draining) == (0, 0)
        assert [model.name for model in client.list()] == ["chat"]
        assert client.unload(first).model == "chat"
        assert client.list() == []


def test_a_model_that_lost_the_name_of_its_first_file_is_shown_with_the_next_ones(
    broker: BrokerProcess, twins: tuple[Path, Path]
) -> None:
    first, copy = twins
    with broker.connect() as client:
        client.load(first)
        client.load(copy)
        client.unload("first")
        first.unlink()
        (model,) = client.list()
        assert (model.name, model.path) == ("copy", str(copy))
        assert client.attach(copy).model == "copy"
        assert client.load(copy).outcome == "resident"
        assert loads(client) == 1
