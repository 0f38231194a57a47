"""The benchmarks on small files: each ends, says its figures in the right form, and cleans up.

Never a speed: what is fast here and now is for `make bench` to say.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import figures
import install_peers
import run_all
from support.broker import BINARY, wait_until

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"

SMALL = ("--size", "60MB", "--runs", "1")


def command(program: str, folder: Path, *more: str) -> list[str]:
    binaries = ["--broker", BINARY, "--binaries", str(Path(BINARY).parent)]
    return [
        sys.executable,
        str(BENCH / program),
        *binaries,
        "--folder",
        str(folder / "files"),
        *SMALL,
        *more,
    ]


def environment(folder: Path) -> dict[str, str]:
    """Sockets in a folder that can be looked into afterwards."""
    return {**os.environ, "TMPDIR": str(folder)}


@pytest.fixture
def sockets() -> Any:
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:  # short: it holds socket paths
        yield Path(folder)


def left_of(process: int | str) -> list[str]:
    """What a program left in shared memory: a pid, or a pattern of several."""
    theirs = re.compile(rf"\.bench-{process}-")
    return [path.name for path in Path("/dev/shm").iterdir() if theirs.search(path.name)]


def check_line(line: dict[str, Any], bench: str) -> None:
    """One figure, as bench/README.md describes it."""
    assert line["bench"] == bench
    if "left_out" in line:
        assert line["reason"]
        return
    assert tuple(line) == figures.FIELDS
    assert line["metric"]
    assert line["baseline"]
    for word in ("value", "baseline_value", "ratio"):
        assert math.isfinite(line[word]), line
        assert line[word] >= 0, line
    assert line["runs"] >= 1
    assert line["unit"] in ("s", "bytes", "1/s")
    assert line["goal_met"] in (True, False, None)
    assert line["goal"] or line["goal_met"] is None
    assert line["machine"].count(",") >= 2
    assert 0 <= line["stolen"] < 1
    assert line["page_kind"] in ("2MiB", "4KiB")
    assert "pidfd" in line["features"]
    assert str(ROOT) not in json.dumps(line), "a folder of this machine"
    assert "--size 60MB" in line["command"]


def check_lines(lines: list[dict[str, Any]], bench: str) -> None:
    for line in lines:
        check_line(line, bench)
    assert any(line.get("goal_id") == run_all.PROGRAMS[bench] and line["goal"] for line in lines)


# Those that start torch many times run in `make torture`.
_LONG = (
    "attach_touch",
    "four_workers",
    "unload",
    "attach_latency",
    "sharing_door",
    "sharing_programs",
    "lora",
)
# Those that the test of `make bench` runs.
_TOGETHER = ("restart", "round_trip")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.torture if name in _LONG else ())
        for name in run_all.PROGRAMS
        if name not in _TOGETHER
    ],
)
def test_a_program_says_its_figures_and_cleans_up(name: str, tmp_path: Path, sockets: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    process = subprocess.Popen(
        command(f"{name}_bench.py", tmp_path, "--output", str(lines)),
        env=environment(sockets),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, table = process.communicate(timeout=280)
    assert process.returncode == 0, table
    assert said == ""
    written = figures.parse_lines(lines.read_text())
    check_lines(written, name)
    assert all(line["metric"] in table for line in written if "metric" in line)
    assert left_of(process.pid) == []
    assert list(sockets.iterdir()) == []


@pytest.mark.slow
def test_make_bench_prints_one_table_and_keeps_every_line(tmp_path: Path, sockets: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    done = subprocess.run(
        command("run_all.py", tmp_path, "--only", *_TOGETHER, "--output", str(lines)),
        env=environment(sockets),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = figures.parse_lines(lines.read_text())
    for name in _TOGETHER:
        check_lines([line for line in written if line["bench"] == name], name)
    assert {line["bench"] for line in written} == set(_TOGETHER)
    assert done.stdout == figures.table(written) + "\n"
    assert all(line["metric"] in done.stdout for line in written)
    assert left_of(r"\d+") == []  # tests of one file run one after the other
    assert list(sockets.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_leaves_nothing(
    how: signal.Signals, tmp_path: Path, sockets: Path
) -> None:
    process = subprocess.Popen(
        command("unload_bench.py", tmp_path, "--runs", "100"),
        env=environment(sockets),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: [name for name in left_of(process.pid) if not name.endswith(".lock")])
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert left_of(process.pid) == []
    assert list(sockets.iterdir()) == []


def test_each_peer_has_a_lock_that_names_its_version_and_fetches_no_torch() -> None:
    """`make bench-peers` installs them without their dependencies: pip need not resolve any."""
    for peer in install_peers.PEERS:
        lines = install_peers.lock_of(peer).read_text().splitlines()
        pinned = [line for line in lines if not line.startswith("#")]
        assert peer in pinned
        assert [
            line for line in pinned if not re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.+]+", line)
        ] == []
        names = {line.partition("==")[0] for line in pinned}
        assert not names & {"torch", "numpy", "setuptools"}
        assert not [name for name in names if name.startswith("nvidia")]


def test_peers_that_are_not_there_are_named(tmp_path: Path, sockets: Path) -> None:
    peers = tmp_path / "peers"
    program = command("peer_loads_bench.py", tmp_path, "--peers", str(peers))
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "install_peers.py" in done.stderr

    peers.mkdir()
    names = ("tensorizer", "runai-model-streamer", "fastsafetensors")
    (peers / "failed").write_text(json.dumps(dict.fromkeys(names, "no such version")))
    done = subprocess.run(
        program,
        env=environment(sockets),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = {line["left_out"]: line["reason"] for line in figures.parse_lines(done.stdout)}
    assert left == dict.fromkeys(names, "no such version")
    assert all(f"{name}: no such version" in done.stderr for name in names)


def test_no_program_and_no_field_is_forgotten() -> None:
    programs = {path.stem.removesuffix("_bench") for path in BENCH.glob("*_bench.py")}
    assert programs == {*run_all.PROGRAMS, *run_all.PEERS}
    readme = (BENCH / "README.md").read_text()
    first_cells = re.findall(r"^\| `(\w+(?:\.py)?)` \|", readme, re.MULTILINE)
    assert {f"{name}_bench.py" for name in programs} == {c for c in first_cells if ".py" in c}
    assert tuple(cell for cell in first_cells if ".py" not in cell) == figures.FIELDS


@pytest.mark.parametrize("name", [*run_all.PROGRAMS, *run_all.PEERS])
def test_help_has_examples(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}_bench.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Examples:" in done.stdout
    assert f"{name}_bench.py --size 200MB" in done.stdout


def test_a_goal_is_judged_where_it_is_meant(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    common = {
        "bench": "b",
        "goal_id": "P0",
        "size": 1,
        "page_kind": "2MiB",
        "machine": "m",
        "features": [],
        "date": "d",
        "command": "c",
    }
    with lines.open("w") as out:
        made = figures.Figures(out, common, lambda: 0.031)
        twice = figures.within_times(2)
        made.add("within", 1.9, "bare", 1.0, runs=1, goal=twice)
        made.add("beyond", 2.1, "bare", 1.0, runs=1, goal=twice)
        made.add("elsewhere", 2.1, "bare", 1.0, runs=1, goal=twice, applies=False)
        made.add("rate", 300.0, "bare", 100.0, runs=1, unit="1/s", more_is_better=True)
        made.add("nothing", 0, "bare", 5, runs=1, unit="bytes", goal=figures.at_most(0, "none"))
        made.leave_out("the rest", "no room")
    written = figures.parse_lines(lines.read_text())
    assert [line.get("goal_met") for line in written] == [True, False, None, None, True, None]
    assert written[3]["ratio"] == pytest.approx(3)
    rows = made.table().splitlines()
    assert rows[1].endswith("met")
    assert rows[2].endswith("MISSED")
    assert rows[3].endswith("not for this")
    assert rows[6] == "left out: b, the rest: no room"
    assert rows[7] == "CPU time that the host of this virtual machine took: b 3.1%"
    assert [line.get("stolen") for line in written] == [0.031] * 5 + [None]


def test_several_runs_are_shown_as_their_medians(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    words = ("goal_id", "page_kind", "machine", "date", "command")
    common = {"bench": "b", "size": 1, "features": [], **dict.fromkeys(words, "w")}
    with lines.open("w") as out:
        for value in (1.0, 9.0, 2.0):
            made = figures.Figures(out, common, lambda: 0.0)
            made.add("m", value, "bare", 1.0, runs=1, goal=figures.within_times(2))
        made.add("once", 5.0, "bare", 1.0, runs=1, goal=figures.within_times(2))
        made.leave_out("the rest", "no room")
    done = subprocess.run(
        [sys.executable, BENCH / "figures.py", lines],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    _, first, second, left = done.stdout.splitlines()
    assert "2.00 s" in first
    assert " 0.50 " in first
    assert first.endswith("met in 2 of 3")
    assert second.endswith("MISSED")
    assert left == "left out: b, the rest: no room"
