"""What a user may call a model, and what a path means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until


def test_files_of_one_stem_attach_by_their_paths(broker: BrokerProcess, tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        paths.append(files.write_random(tmp_path / str(seed) / "clip.safetensors", 1, seed))
    with broker.connect() as client:
        held = [client.attach(path) for path in paths]
        assert [weights.metadata["seed"] for weights in held] == ["0", "1", "2"]
        names = [weights.model for weights in held]
        assert names[0] == "clip"
        assert all(name.startswith("clip@") for name in names[1:])
        for path, name in zip(paths, names, strict=True):
            assert client.attach(path).model == name
            assert client.attach(name).model == name
        with pytest.raises(modelbroker.AlreadyExistsError, match="name="):
            client.load(files.write_random(tmp_path / "clip.safetensors", 1, 9))


def test_files_of_one_stem_with_the_same_bytes_attach_by_their_paths(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    paths = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        path = files.write_random(tmp_path / str(number) / "vae.safetensors", 1, seed=1)
        os.utime(path, (1_600_000_000 + number,) * 2)  # each downloaded at another time
        paths.append(path)
    with broker.connect() as client:
        held = [client.attach(path) for path in paths]
        names = [weights.model for weights in held]
        digest = broker.blocks()[0].name.split(".")[3]
        assert names == ["vae", *(f"vae@{digest}{more}" for more in ("", "-2", "-3"))]
        assert [client.attach(path).model for path in paths] == names


def test_files_of_a_hubs_cache_are_called_after_their_repository(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    (snapshot / "unet").mkdir(parents=True)
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir()
    for seed, file in enumerate(["model.safetensors", "unet/diffusion_pytorch_model.safetensors"]):
        (snapshot / file).symlink_to(files.write_random(blobs / f"{seed}", 1, seed))
    assert broker.cli_json("load", snapshot / "model.safetensors")["model"] == "org/name"
    monkeypatch.chdir(tmp_path)
    with broker.connect() as client:
        part = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
        assert client.attach(part).model == "org/name/unet"
        assert client.attach("org/name").metadata["seed"] == "0"
        assert client.attach("org/name/unet").metadata["seed"] == "1"
    assert broker.cli_json("show", "org/name/unet")["path"] == str(part)
    assert broker.cli_json("unload", "org/name")["model"] == "org/name"


FORBIDDEN = [
    "a\nb",
    "a\x7f",
    "./x",
    "../x",
    "..",
    "a/../b",
    "a//b",
    "a/",
    "a\u200bb",
    "\u202eb",
    "x" * 256,
]


@pytest.mark.parametrize("name", FORBIDDEN, ids=ascii)
def test_a_name_that_misleads_is_refused(broker: BrokerProcess, tmp_path: Path, name: str) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with broker.connect() as client:
        with pytest.raises(modelbroker.InvalidArgumentError, match="choose another by name="):
            client.load(path, name)
        assert client.list() == []
    refused = broker.cli("load", path, "--name", name, check=False)
    assert refused.stderr.startswith("modelbroker: invalid_argument: ")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("new\nline", "new_line"),
        ("bell\x07", "bell_"),
        ("zero\u200bwidth", "zero_width"),
        ("\u202egnp", "_gnp"),
    ],
    ids=ascii,
)
def test_a_file_whose_name_no_model_may_have_gets_one_like_it(
    broker: BrokerProcess, tmp_path: Path, stem: str, name: str
) -> None:
    path = files.write_random(tmp_path / f"{stem}.safetensors", 1)
    with broker.connect() as client:
        assert client.attach(path).model == name
        assert client.load(path).model == name
        assert client.load(path, "other").outcome == "alias"


def test_long_stems_that_clash_have_names_of_allowed_length(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    paths = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        paths.append(files.write_random(tmp_path / str(seed) / f"{'s' * 240}.safetensors", 1, seed))
    with broker.connect() as client:
        names = [client.attach(path).model for path in paths]
        assert len(set(names)) == len(paths)
        assert max(len(name.encode()) for name in names) <= 255
        for seed, name in enumerate(names):
            assert client.attach(name).metadata["seed"] == str(seed)


def test_a_name_may_have_a_slash(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    broker.cli("load", path, "--name", "org/model")
    assert broker.cli_json("show", "org/model")["name"] == "org/model"
    broker.cli("pin", "org/model")
    with broker.connect() as client, client.attach("org/model") as weights:
        assert weights.model == "org/model"
    monkeypatch.chdir(tmp_path.parent)
    assert broker.cli_json("show", f"{tmp_path.name}/m.safetensors")["name"] == "org/model"
    assert broker.cli_json("unload", "org/model")["model"] == "org/model"


def test_a_path_through_a_link_and_up_is_the_file_systems(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "c")
    files.write_random(tmp_path / "a" / "m.safetensors", 1, 1)
    files.write_random(tmp_path / "b" / "m.safetensors", 1, 2)
    with broker.connect() as client:
        with client.attach(f"{tmp_path}/a/link/../m.safetensors") as weights:
            assert weights.metadata["seed"] == "2"
        client.unload("m", wait=True)
    loaded = broker.cli_json("load", f"{tmp_path}/a/link/../m.safetensors")
    assert broker.cli_json("show", loaded["model"])["path"] == f"{tmp_path}/b/m.safetensors"


@pytest.mark.parametrize("what", [["load", ""], ["load", b"bad\xff"], ["unload", b"\xff"]])
def test_words_that_are_no_text_are_refused_at_once(
    broker: BrokerProcess, what: list[str | bytes]
) -> None:
    done = broker.cli(*what, check=False)
    assert done.returncode >= 10
    assert done.stderr.startswith("modelbroker: ")


def test_a_file_whose_name_is_no_text_is_to_be_renamed(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    named = files.write_random(tmp_path / "m.safetensors", 1).rename(
        tmp_path / os.fsdecode(b"m\xff.safetensors")
    )
    remedy = "is not UTF-8: rename the file"
    assert remedy in broker.cli("load", os.fsencode(named), check=False).stderr
    with broker.connect() as client:
        for ask in (client.load, client.attach):
            with pytest.raises(modelbroker.InvalidArgumentError, match=remedy):
                ask(named)


def test_an_attach_that_came_too_late_leaves_no_lease(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 300)
    with broker.connect() as client:
        with pytest.raises(modelbroker.DeadlineExceededError):
            client.attach(path, timeout=0.005)
        wait_until(lambda: [model.state for model in client.list()] in ([], ["resident"]))
        wait_until(lambda: broker.books()["leases"] == 0)
        assert client.load(path).outcome in ("loaded", "resident")
        assert broker.books()["leases"] == 0
        client.unload("m", wait=True, timeout=30)
    assert broker.is_empty()
