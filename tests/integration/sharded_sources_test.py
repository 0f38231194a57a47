"""What lies beside the index of a model of several files, and who closes what was opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbroker import (
    DataLossError,
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    PermissionDeniedError,
)
from modelbroker import _broker as verbs
from modelbroker._block import Header, read_header
from modelbroker._sources import Sources
from support import files
from support.broker import BrokerProcess
from support.users import STRANGER, as_user, needs_root


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return files.write_set(tmp_path / "llama")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


BESIDE: list[tuple[str, Callable[[Path], object]]] = [
    ("a file of another model", lambda f: files.write_random(f / "adapter.safetensors", 0.1)),
    ("a file that is no model", lambda f: (f / "notes.sft").write_text("hello")),
    ("a folder", lambda f: (f / "old.safetensors").mkdir()),
    ("a fifo", lambda f: os.mkfifo(f / "pipe.safetensors")),
    ("a link to nothing", lambda f: (f / "gone.safetensors").symlink_to(f / "nothing")),
    ("a link to itself", lambda f: (f / "loop.sft").symlink_to(f / "loop.sft")),
    ("a device", lambda f: (f / "null.sft").symlink_to("/dev/null")),
]


@pytest.mark.parametrize("put", [row[1] for row in BESIDE], ids=[row[0] for row in BESIDE])
def test_what_the_index_does_not_name_is_in_nobodys_way(
    broker: BrokerProcess, index: Path, put: Callable[[Path], object]
) -> None:
    put(index.parent)
    with broker.connect() as client:
        with client.attach(index) as weights:
            assert len(weights) == 8
        held, at_broker = open_files(), broker.descriptors()
        client.attach(index).release()
        assert (open_files(), broker.descriptors()) == (held, at_broker)


def test_the_files_may_be_links_as_in_the_cache_of_the_hub(
    broker: BrokerProcess, index: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in index.parent.iterdir():
        (snapshot / file.name).symlink_to(file)
    with broker.connect() as client:
        loaded = client.load(snapshot / index.name)
        assert loaded.model == "snapshot"
        with client.attach(index) as weights:  # the same files
            assert (weights.outcome, len(weights)) == ("alias", 8)
        assert client.status().tiers["ram"].loads == 4


def _become_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


NAMED: list[tuple[str, Callable[[Path], object], type[ModelBrokerError], str]] = [
    ("missing", lambda f: f.unlink(), NotFoundError, "00001"),
    ("a fifo", _become_fifo, InvalidArgumentError, "00001"),
    ("a folder", _become_folder, InvalidArgumentError, "00001"),
    (
        "one with another's tensor",
        lambda f: f.write_bytes(f.with_name("model-00000.safetensors").read_bytes()),
        DataLossError,
        "is in '.*00000.*' and in '.*00001",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "error", "says"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED]
)
def test_what_the_index_names_must_be_a_part_of_the_model(
    broker: BrokerProcess,
    index: Path,
    spoil: Callable[[Path], object],
    error: type[ModelBrokerError],
    says: str,
) -> None:
    spoil(index.with_name("model-00001.safetensors"))
    with broker.connect() as client, pytest.raises(error, match=says):
        client.attach(index)
    assert broker.is_empty()


def test_an_index_alone_in_its_folder_names_a_file_that_is_missing(
    broker: BrokerProcess, index: Path
) -> None:
    for file in index.parent.glob("*.safetensors"):
        file.unlink()
    with broker.connect() as client, pytest.raises(NotFoundError, match="00000"):
        client.load(index)
    assert broker.is_empty()


@needs_root
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, index: Path) -> None:
    for folder in (*tmp_path.parents, tmp_path):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith("pytest-"):
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    index.parent.chmod(0o711)

    def refused() -> str:
        before = open_files()
        try:
            Sources(str(index))
        except PermissionDeniedError as error:
            assert open_files() == before
            return str(error)
        return ""

    assert str(index.parent) in as_user(STRANGER, refused)


def test_a_failure_in_the_middle_of_mapping_lets_all_go(
    broker: BrokerProcess, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while the exception is kept, as a debugger or a log does."""
    mapped: list[str] = []

    def header(descriptor: int, name: str) -> Header:
        mapped.append(name)
        if len(mapped) == 3:
            raise DataLossError(f"block {name} does not begin as a block does")
        return read_header(descriptor, name)

    with broker.connect() as client:
        client.attach(index).release()
        before = open_files()
        monkeypatch.setattr(verbs, "read_header", header)
        with pytest.raises(DataLossError) as kept:
            client.attach(index)
        assert kept.value.__traceback__ is not None
        assert len(mapped) == 3
        assert open_files() == before
        maps = Path("/proc/self/maps").read_text()
        assert not [name for name in mapped if name in maps]
        gone = client.unload("llama", wait=True, timeout=5)
        assert gone.draining == 0
    assert broker.is_empty()


def test_sources_offer_the_index_first_and_every_file_by_its_plain_name(index: Path) -> None:
    before = open_files()
    handles = iter(range(100))
    with Sources(str(index)) as sources:
        assert open_files() == before + 5
        for _ in range(2):  # another session gets them all again
            data = sources.offered({"path": "x"}, lambda _: str(next(handles)))
            assert "file" not in data
            assert [file["name"] for file in data["files"]] == [
                index.name,
                *(f"model-{number:05}.safetensors" for number in range(4)),
            ]
    assert open_files() == before
    assert next(handles) == 10


def test_a_set_of_many_files_is_one_model(broker: BrokerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    where = {}
    for number in range(300):
        name = f"part-{number:05}.safetensors"
        files.write(folder / name, {f"t{number}": ("U8", [8], number.to_bytes(8, "little"))})
        where[f"t{number}"] = name
    index = files.write_index(folder / "many.safetensors.index.json", where)
    with broker.connect() as client, client.attach(index) as weights:
        values = {name: int.from_bytes(weights.raw(name).tobytes(), "little") for name in weights}
        assert values == {f"t{number}": number for number in range(300)}
