"""What lies in the wheels and the sdist, which are the same bytes whenever they are made."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

import bundled_licences
from support.broker import BINARY
from support.installed import DIST, ROOT, client_wheel, made, platform_wheel

pytestmark = pytest.mark.slow

VERSION = (ROOT / "VERSION").read_text().strip()


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def information(files: dict[str, bytes], name: str) -> Message:
    return email.message_from_bytes(files[f"modelbroker-{VERSION}.dist-info/{name}"])


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return contents(platform_wheel())


def test_three_files_are_made() -> None:
    assert sorted(path.name for path in DIST.iterdir()) == [
        f"modelbroker-{VERSION}-py3-none-any.whl",
        f"modelbroker-{VERSION}-py3-none-manylinux_2_35_x86_64.whl",
        f"modelbroker-{VERSION}.tar.gz",
    ]


@pytest.mark.parametrize(
    ("wheel", "pure", "tag"),
    [
        (platform_wheel, "false", "py3-none-manylinux_2_35_x86_64"),
        (client_wheel, "true", "py3-none-any"),
    ],
    ids=["platform", "client"],
)
def test_a_wheel_says_where_it_may_be_installed(
    wheel: Callable[[], Path], pure: str, tag: str
) -> None:
    words = information(contents(wheel()), "WHEEL")
    assert words["Root-Is-Purelib"].lower() == pure
    assert words.get_all("Tag") == [tag]


def test_both_wheels_have_the_same_client(files: dict[str, bytes]) -> None:
    def client(of: dict[str, bytes]) -> dict[str, bytes]:
        return {name: data for name, data in of.items() if name.endswith((".py", ".typed"))}

    assert client(files) == client(contents(client_wheel()))
    assert not [name for name in files if name.endswith(".pth")]


def test_only_the_wheel_with_the_program_has_the_command(files: dict[str, bytes]) -> None:
    script = f"modelbroker-{VERSION}.dist-info/entry_points.txt"
    assert b"modelbroker = modelbroker._program:main" in files[script]
    assert script not in contents(client_wheel())


def test_the_program_is_small_and_says_nothing_of_where_it_was_built(
    files: dict[str, bytes],
) -> None:
    assert len(files["modelbroker/_program/modelbroker"]) < 6e6
    assert sum(map(len, files.values())) < 15e6
    assert [name for name, data in files.items() if str(ROOT).encode() in data] == []


def test_the_machine_s_own_libraries_stay_out(files: dict[str, bytes]) -> None:
    """A second libstdc++ or libc in one process would be a disaster."""
    stems = {name.split("/")[1] for name in files if name.startswith("modelbroker.libs/lib")}
    own = re.compile(r"lib(c|m|gcc_s|stdc\+\+|pthread|dl|rt|resolv)[-.]")
    assert stems
    assert not [stem for stem in stems if own.match(stem)]


def test_every_bundled_part_has_its_licence(files: dict[str, bytes]) -> None:
    prefix = f"modelbroker-{VERSION}.dist-info/licenses/"
    words = information(files, "METADATA")
    assert words["License-Expression"] == "Apache-2.0 AND LicenseRef-Bundled-Libraries"
    listed = words.get_all("License-File") or []
    texts = {name: files[prefix + name].decode() for name in listed}
    assert {prefix + name for name in listed} == {
        name for name in files if name.startswith(prefix) and name != prefix
    }
    heads = "\n".join(text.splitlines()[0] for text in texts.values())
    for path in files:
        if path.startswith("modelbroker.libs/lib"):
            assert path.split("/")[1] in heads
    bill = files[f"modelbroker-{VERSION}.dist-info/sboms/auditwheel.cdx.json"].decode()
    compiled_in = [package.name for package in bundled_licences.compiled_in()]
    for package in [*compiled_in, "libcom-err2", "libzmq5"]:
        assert f'"name": "{package}"' in bill
    assert all(len(text) > 900 for text in texts.values())


def test_the_client_alone_has_our_licence_alone() -> None:
    words = information(contents(client_wheel()), "METADATA")
    assert words["License-Expression"] == "Apache-2.0"
    assert words.get_all("License-File") == ["LICENSE"]


def test_the_same_bytes_again(tmp_path: Path) -> None:
    """Of the same sources: after a change of them, run `make wheel` first."""
    with tarfile.open(made("*.tar.gz")) as archive:
        (epoch,) = {member.mtime for member in archive if member.isfile()}
    subprocess.run(
        [sys.executable, ROOT / "tools/make_wheels.py", BINARY, tmp_path],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(int(epoch))},
        check=True,
    )
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (DIST / path.name).read_bytes(), path.name


def test_the_sdist_is_enough_to_build_everything(tmp_path: Path) -> None:
    """The same client; and cmake finds all that the program and the tests are made of."""
    with tarfile.open(made("*.tar.gz")) as archive:
        epoch = str(int(archive.getmembers()[0].mtime))
        archive.extractall(tmp_path, filter="data")
    (sources,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=sources,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
        check=True,
    )
    assert (tmp_path / client_wheel().name).read_bytes() == client_wheel().read_bytes()
    subprocess.run(["cmake", "--preset", "release", "--log-level=WARNING"], cwd=sources, check=True)
