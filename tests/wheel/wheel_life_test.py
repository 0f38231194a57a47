"""The wheel in a fresh virtual environment: its broker, its commands, and two versions at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import files, installed, other_version
from support.broker import wait_until
from support.installed import Place

pytestmark = pytest.mark.slow

# Of glibc, libgcc and libstdc++, which are the machine's.
OF_THE_MACHINE = re.compile(
    r"/(ld-linux-x86-64|libc|libm|libgcc_s|libstdc\+\+|libpthread|libresolv)\.so\.[0-9.]+$"
)
VERSION = (installed.ROOT / "VERSION").read_text().strip()
OTHER = "9" + VERSION[1:]
ATTACH = """
import sys, modelbroker
weights = modelbroker.connect(timeout=30).attach(sys.argv[1])
print(modelbroker.__version__, len(weights.numpy()))
"""
# Its children have another version of the package, and this version's broker.
PARENT = """
import os, subprocess, sys, modelbroker
model, other, script = sys.argv[1:]
weights = modelbroker.connect(timeout=30).attach(model)
print(modelbroker.__version__, len(weights.numpy()), flush=True)
os.environ["PYTHONPATH"] = other
subprocess.run([sys.executable, "-c", script, model], check=True)
program = [sys.executable, "-m", "modelbroker"]
subprocess.run([*program, "--version"], check=True)
subprocess.run([*program, "show", model], check=True, stdout=subprocess.DEVNULL)
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with installed.place() as made:
        made.install("modelbroker")
        yield made


@pytest.fixture(scope="module")
def other(place: Place) -> Path:
    """A folder with another version of the package, by pip's --target."""
    wheel = other_version.write(installed.platform_wheel(), place.folder, OTHER)
    place.install("--target", place.folder / "other", "--no-deps", wheel)
    return place.folder / "other"


@pytest.fixture
def model(place: Place) -> Iterator[Path]:
    path = files.write_random(place.folder / "model.safetensors", 2)
    yield path
    path.unlink()


@contextmanager
def serving(place: Place, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    broker = place.start(list(command))
    try:
        place.run(["python", "-c", "import modelbroker; modelbroker.connect(timeout=30).close()"])
        yield broker
    finally:
        broker.send_signal(signal.SIGTERM)
        output = broker.communicate(timeout=60)[0]
    assert broker.returncode == 0, output


def child_of(process: subprocess.Popen[str]) -> int:
    """Its pid; 0 while there is none."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else 0


def test_pip_takes_the_wheel_with_the_program(place: Place) -> None:
    assert place.run(["modelbroker", "--version"]) == f"modelbroker {VERSION}\n"
    assert place.run(["python", "-m", "modelbroker", "--version"]) == f"modelbroker {VERSION}\n"


def test_the_first_day_of_a_user(place: Place, model: Path) -> None:
    scenario = Path(__file__).with_name("scenario.py").read_text()
    total = str(files.sum_of_bytes(model))
    output = place.run(["python", "-c", scenario, model, total, "modelbroker"])
    seen = json.loads(output.splitlines()[-1])
    packages = place.venv / "lib/python3.11/site-packages"
    assert seen["program"] == str(packages / "modelbroker/_program/modelbroker")
    bundled = [path for path in seen["libraries"] if not OF_THE_MACHINE.search(path)]
    assert len(bundled) > 5
    assert {str(Path(path).parent) for path in bundled} == {str(packages / "modelbroker.libs")}


def test_the_command_becomes_the_program(place: Place) -> None:
    with serving(place, "modelbroker", "serve") as broker:
        assert Path(f"/proc/{broker.pid}/comm").read_text() == "modelbroker\n"


def test_a_closed_pipe_ends_the_command_as_it_ends_any_program(place: Place) -> None:
    """Python ignores SIGPIPE; the program would inherit that."""
    with place.start(["modelbroker", "--help"]) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == -signal.SIGPIPE


def test_a_package_in_a_folder_of_its_own(place: Place, other: Path) -> None:
    commands: list[list[str | Path]] = [
        [other / "bin/modelbroker"],
        ["python", "-m", "modelbroker"],
    ]
    for command in commands:
        answer = place.run([*command, "--version"], PYTHONPATH=other)
        assert answer == f"modelbroker {OTHER}\n"


def test_the_client_alone_says_how_to_get_the_program(place: Place) -> None:
    folder = place.folder / "client"
    place.install("--target", folder, "--no-deps", place.wheels / installed.client_wheel().name)
    assert not (folder / "bin").exists()
    assert not (folder / "modelbroker/_program/modelbroker").exists()
    words = place.run(["python", "-m", "modelbroker", "serve"], status=127, PYTHONPATH=folder)
    assert "client alone; a program is installed" not in words
    assert "manylinux_2_35_x86_64.whl" in words
    assert "docs/install.md" in words


def test_a_broker_outlives_its_environment(place: Place, model: Path) -> None:
    """Moved, then deleted, under a running broker: it loads, is killed, and its follower adopts."""
    first, second = place.folder / "first", place.folder / "second"
    shutil.copytree(place.venv, first, symlinks=True)
    with serving(
        place, first / "bin/python", "-m", "modelbroker", "serve", "--supervise"
    ) as parent:
        first.rename(second)
        place.run([second / "bin/python", "-m", "modelbroker", "load", model, "--name", "m"])
        assert place.run([second / "bin/python", "-c", ATTACH, "m"]) == f"{VERSION} 4\n"
        shutil.rmtree(second)
        broker = child_of(parent)
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: child_of(parent) not in (0, broker))
        assert place.run(["python", "-c", ATTACH, "m"]) == f"{VERSION} 4\n"


def test_two_versions_in_one_process_tree(place: Place, model: Path, other: Path) -> None:
    with serving(place, "modelbroker", "serve"):
        lines = place.run(["python", "-c", PARENT, model, other, ATTACH]).splitlines()
    assert lines == [f"{VERSION} 4", f"{OTHER} 4", f"modelbroker {OTHER}"]


def test_version_and_doctor_tell_which_program_and_which_broker(place: Place, other: Path) -> None:
    command: list[str | Path] = ["python", "-m", "modelbroker"]
    programs = {
        VERSION: str(place.venv / "lib/python3.11/site-packages/modelbroker/_program/modelbroker"),
        OTHER: str(other / "modelbroker/_program/modelbroker"),
    }
    with serving(place, "modelbroker", "serve") as broker:
        told = json.loads(place.run([*command, "version", "--json"], PYTHONPATH=other))
        assert (told["program"]["version"], told["program"]["path"]) == (OTHER, programs[OTHER])
        assert told["broker"]["version"] == VERSION
        assert (told["broker"]["pid"], told["broker"]["path"]) == (broker.pid, programs[VERSION])
        text = place.run([*command, "version"], PYTHONPATH=other)
        assert "They differ, and work together by protocol 2" in text
        checks = json.loads(place.run([*command, "doctor", "--json"], PYTHONPATH=other))["checks"]
        found = {check["name"]: check for check in checks}
        assert found["program"]["found"] == f"version {OTHER}, {programs[OTHER]}"
        assert f"version {VERSION}" in found["broker"]["found"]
        assert programs[VERSION] in found["broker"]["found"]
        assert f"this program is version {OTHER}" in found["broker"]["cost"]
        assert "differ" not in place.run(["modelbroker", "version"])
    told = json.loads(place.run(["modelbroker", "version", "--json"]))
    assert told["broker"] is None
