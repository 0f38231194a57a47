"""The unmodified programs of examples/, stock and under modelbroker.run side by side.

Imports take most of the time here: each process imports the libraries once, then runs the programs
that it is told to, one after another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.broker import BrokerProcess, freeze
from support.examples import SOURCES
from support.workers import identities, line_of, tell

TOOLS = SOURCES.parent / "tools"
EMBED = SOURCES / "unmodified" / "embed.py"
PAINT = SOURCES / "unmodified" / "paint.py"

TELLER = """
import json, runpy, sys
import diffusers, transformers
for line in sys.stdin:
    sys.argv = json.loads(line)
    runpy.run_path(sys.argv[0], run_name="__main__")
    print("done", flush=True)
"""


@contextmanager
def process(broker: BrokerProcess, *launcher: str) -> Iterator[subprocess.Popen[str]]:
    """Runs what it is told to; it must end well."""
    paths = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    started = subprocess.Popen(
        [sys.executable, *launcher, "-c", TELLER],
        env={**broker.environment, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
        started.communicate(timeout=120)
        assert started.returncode == 0
    finally:
        started.kill()
        started.communicate()


def begin(process: subprocess.Popen[str], program: Path, *arguments: Path | str) -> None:
    tell(process, json.dumps([str(program), *map(str, arguments)]))


def hear(process: subprocess.Popen[str], last: str = "done") -> list[str]:
    """What it prints until this line."""
    lines: list[str] = []
    while (line := line_of(process)) != last:
        assert line or process.poll() is None, f"it ended: {lines}"
        lines.append(line)
    return lines


def run(process: subprocess.Popen[str], program: Path, *arguments: Path | str) -> list[str]:
    begin(process, program, *arguments)
    return hear(process)


@pytest.mark.slow
def test_programs_compute_the_same_through_a_broker_s_death(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    bert, pipeline = tmp_path / "bert", tmp_path / "pipeline"
    report = tmp_path / "report.jsonl"
    launcher = ("-m", "modelbroker.run", f"--report={report}")
    with (
        process(broker) as stock,
        process(broker, *launcher) as first,
        process(broker, *launcher) as second,
    ):
        run(stock, TOOLS / "small_models.py", tmp_path, "bert", "pipeline")
        vectors = run(stock, EMBED, bert)
        run(stock, PAINT, pipeline, tmp_path / "stock.png", "--steps", "3")
        for name, shared in (("first", first), ("second", second)):
            assert run(shared, EMBED, bert) == vectors
            begin(shared, PAINT, pipeline, tmp_path / f"{name}.png", "--steps", "3")
            hear(shared, "painting")
            freeze(shared.pid)  # so that both compute when the broker dies, however fast they are
        before = identities(broker)
        broker.kill()
        for shared in (first, second):
            shared.send_signal(signal.SIGCONT)
        for name, shared in (("first", first), ("second", second)):
            hear(shared)
            painted = (tmp_path / f"{name}.png").read_bytes()
            assert painted == (tmp_path / "stock.png").read_bytes()
        broker.start()
        assert identities(broker) == before
        assert run(first, EMBED, bert) == vectors
        assert identities(broker) == before
    assert len(vectors) == 4
    files = {str(path) for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 5
    told = [json.loads(line) for line in report.read_text().splitlines()]
    for shared, outcome in ((first, "loaded"), (second, "resident")):
        lines = [line for line in told if line["pid"] == shared.pid]
        assert {line["path"] for line in lines} == files
        assert {(line["shared"], line["outcome"]) for line in lines} == {(True, outcome)}
        assert all(0 < line["handed_out_bytes"] <= line["bytes"] * 2 for line in lines)
