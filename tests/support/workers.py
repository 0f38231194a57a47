"""Worker processes that speak by lines, and what a test asks of a broker after a death."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.numpy

import modelbroker
from support.broker import BrokerProcess, start_python

# Holds one model until it is killed or its stdin ends.
HOLDER = """
import sys
import modelbroker

weights = modelbroker.connect(timeout=30).attach(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


def line_of(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


@contextmanager
def workers(
    broker: BrokerProcess, count: int, script: str, *arguments: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """Workers that have said "ready"; killed at the end, if they still run."""
    started = [start_python(script, arguments, broker.environment) for _ in range(count)]
    try:
        for worker in started:
            assert line_of(worker) == "ready"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate(timeout=60)  # a child that it left may hold its pipes


def crcs(path: Path) -> dict[str, int]:
    """The checksum of every tensor of a safetensors file, by the stock reader."""
    arrays = safetensors.numpy.load_file(path)
    return {name: zlib.crc32(array.data) for name, array in arrays.items()}


def assert_right_bytes(client: modelbroker.Broker, model: str, expected: dict[str, int]) -> None:
    with client.attach(model) as weights:
        assert {name: zlib.crc32(weights.raw(name).data) for name in weights} == expected


def names_of(client: modelbroker.Broker) -> list[tuple[str, list[str], bool]]:
    """Of each resident model: its name, its aliases, and whether it is pinned."""
    return [(m.name, m.aliases, m.pinned) for m in client.list() if m.state == "resident"]


def identities(broker: BrokerProcess) -> dict[str, tuple[str, int]]:
    """Block and generation of every model."""
    return {model["name"]: (model["block"], model["generation"]) for model in broker.cli_json("ps")}


def assert_books_are_the_kernels(broker: BrokerProcess) -> None:
    """The books are the sum of the files' blocks, and nothing is half made."""
    books = broker.books()
    assert books["made"] + books["draining"] == broker.bytes_in_ram()
    assert books["reserved"] == 0
    assert not [path for path in broker.blocks() if path.suffix == ".tmp"]
