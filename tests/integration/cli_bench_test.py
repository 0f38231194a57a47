"""`modelbroker bench`: a user's own numbers, beside what they use; nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.broker import BINARY, wait_until

NO_PYTHON = {"PATH": "/no/such/folder"}


def bench(
    *arguments: str | Path, tmp: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, and looks that nothing is left of it."""
    with subprocess.Popen(
        [BINARY, "bench", *map(str, arguments)],
        env={**os.environ, "TMPDIR": str(tmp), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stdout, stderr = process.communicate()
    assert left_behind(tmp, process.pid) == []
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


def left_behind(temporary: Path, pid: int) -> list[Path]:
    blocks = Path("/dev/shm").glob(f"modelbroker.{os.geteuid()}.bench-{pid}.*")
    return [*temporary.iterdir(), *blocks]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A model, the picture, and what is told: of one run, whose workers import torch."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("bench")
    temporary = folder / "t"
    temporary.mkdir()
    model, png = files.write_random(folder / "m.safetensors", 20), folder / "bench.png"
    named = ("--python", sys.executable, "--png", png)
    done = bench(model, "--json", "--runs", "1", "--workers", "2", *named, tmp=temporary)
    assert done.returncode == 0, done.stderr
    return model, png, json.loads(done.stdout)


def test_all_ways_are_measured_in_one_run(measured: tuple[Path, Path, Any]) -> None:
    model, _, told = measured
    assert told["file"] == str(model)
    assert told["payload_bytes"] == 20_000_000
    assert told["load_seconds"] > 0
    assert told["attach_seconds"] > 0
    ways = {way["name"]: way for way in told["ways"]}
    assert list(ways) == ["modelbroker", "safetensors", "torch.load"]
    for way in ways.values():
        assert "missing" not in way
        assert 0 < way["opened_seconds"] <= way["worker_seconds"]
        assert way["workers_seconds"] > 0
    # What it is all about: two workers share one copy, and torch.load's have one each.
    assert ways["modelbroker"]["workers_bytes"] < 1.3 * 20e6
    assert ways["torch.load"]["workers_bytes"] > 1.9 * 20e6


def test_a_picture_is_drawn_on_request(measured: tuple[Path, Path, Any]) -> None:
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(measured[1])
    assert pixels.shape[0] > 300 < pixels.shape[1]
    bar = (0x1F / 255, 0x77 / 255, 0xB4 / 255)  # the first colour of matplotlib's default cycle
    assert (abs(pixels[:, :, :3] - bar).max(axis=2) < 0.01).mean() > 0.02, "no bars"


def test_without_python_the_broker_is_measured_alone(tmp_path: Path, temporary: Path) -> None:
    model = files.write_random(tmp_path / "m.safetensors", 1)
    done = bench(model, "--runs", "1", tmp=temporary, **NO_PYTHON)
    assert done.returncode == 0, done.stderr
    assert "the broker is measured alone" in done.stderr
    assert "modelbroker " in done.stdout
    assert "safetensors was not measured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["/no/such/file"], 11, "/no/such/file"),
        (["BROKEN"], 17, "broken.safetensors"),
        (["GOOD", "--workers", "0"], 2, "--workers"),
        (["GOOD", "--png", "/no/such/folder/x.png"], 11, "/no/such/folder/x.png"),
        (["GOOD", "--png", "PNG", "--python", "BARE"], 13, "matplotlib"),
        (["GOOD", "--python", "/no/such/python"], 10, "/no/such/python"),
        (["GOOD", "--python", "/bin/false"], 10, "/bin/false"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, temporary: Path, arguments: list[str], status: int, words: str
) -> None:
    paths = {
        "BROKEN": files.write_random(tmp_path / "broken.safetensors", 1),
        "GOOD": files.write_random(tmp_path / "good.safetensors", 1),
        "PNG": tmp_path / "x.png",
        "BARE": tmp_path / "python",  # one without any library
    }
    paths["BARE"].write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    paths["BARE"].chmod(0o755)
    paths["BROKEN"].write_bytes(paths["BROKEN"].read_bytes()[:-1])
    done = bench(*(paths.get(word, word) for word in arguments), tmp=temporary)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert not paths["PNG"].exists()


@pytest.mark.parametrize(
    ("how", "all_of_it"),
    [
        (signal.SIGINT, False),
        (signal.SIGINT, True),  # as a terminal's Ctrl-C
        (signal.SIGTERM, False),
        (signal.SIGHUP, False),
    ],
)
def test_it_tidies_up_when_it_is_interrupted(
    tmp_path: Path, temporary: Path, how: signal.Signals, all_of_it: bool
) -> None:
    model = files.write_random(tmp_path / "m.safetensors", 20)
    # So many workers that it cannot have ended when the signal comes, on whatever machine.
    process = start_bench(model, temporary, "--workers", "64")
    (os.killpg if all_of_it else os.kill)(process.pid, how)
    _, said = process.communicate(timeout=20)  # it would wait for a broker for 30
    assert process.returncode == 20, said
    assert "cancelled" in said
    assert left_behind(temporary, process.pid) == []


def start_bench(model: Path, temporary: Path, *flags: str) -> subprocess.Popen[str]:
    """A bench of many runs, in a session of its own; the first run has begun."""
    process = subprocess.Popen(
        [BINARY, "bench", str(model), "--runs", "100", *flags],
        env={**os.environ, "TMPDIR": str(temporary), **NO_PYTHON},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    wait_until(lambda: "modelbroker, run 1" in process.stderr.readline())
    return process


def start_and_wait(model: Path, temporary: Path) -> subprocess.Popen[str]:
    """A bench that has loaded its model."""
    process = start_bench(model, temporary)
    assert any(path.suffix != ".lock" for path in left_behind(temporary, process.pid))
    return process


def tidiers(bench: int) -> list[int]:
    """The processes that are named like it, in sessions of their own, without a terminal."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == bench and os.getsid(int(folder.name)) == int(folder.name):
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("all_of_it", [False, True])
def test_killed_it_leaves_nothing(tmp_path: Path, temporary: Path, all_of_it: bool) -> None:
    model = files.write_random(tmp_path / "m.safetensors", 20)
    process = start_and_wait(model, temporary)
    (os.killpg if all_of_it else os.kill)(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: left_behind(temporary, process.pid) == [])


def test_killed_with_all_its_processes_the_next_one_frees_its_memory(
    tmp_path: Path, temporary: Path
) -> None:
    model = files.write_random(tmp_path / "m.safetensors", 20)
    process = start_and_wait(model, temporary)
    (tidier,) = tidiers(process.pid)
    os.kill(tidier, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=20)
    blocks = [path for path in left_behind(temporary, process.pid) if path.parent != temporary]
    assert len(blocks) == 2  # and its lock
    # One that lives is left alone.
    living = start_and_wait(model, temporary)
    assert not any(path.exists() for path in blocks)
    other = subprocess.run(
        [BINARY, "bench", str(model), "--runs", "1"],
        env={**os.environ, "TMPDIR": str(temporary), **NO_PYTHON},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert other.returncode == 0, other.stderr
    assert any(path.suffix != ".lock" for path in left_behind(temporary, living.pid))
    living.send_signal(signal.SIGINT)
    living.communicate(timeout=20)
    assert living.returncode == 20
