"""The log: JSON lines, and a broker that does not depend on who reads them."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until

MakeBroker = Callable[..., BrokerProcess]
F_SETPIPE_SZ = 1031  # linux/fcntl.h


def start_with_stderr(broker: BrokerProcess, stderr: int) -> None:
    broker.process = subprocess.Popen(
        broker.serve_command(), env=broker.environment, stderr=stderr, stdin=subprocess.DEVNULL
    )
    modelbroker.connect(broker.endpoint, timeout=30).close()


def fail_loads(broker: BrokerProcess, path: Path, count: int) -> None:
    """Each logs a line."""
    with broker.connect() as client:
        for _ in range(count):
            with pytest.raises(modelbroker.DataLossError):
                client.load(path, name="bad")


def drain(reader: int, until: str) -> str:
    text = b""
    while until.encode() not in text:
        assert select.select([reader], [], [], 60)[0], text[-500:]
        text += os.read(reader, 1 << 16)
    return text.decode()


def test_json_lines_hold_any_text(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker("--log-format", "json", "--log-level", "debug").start()
    bad = tmp_path / 'q"uo\\te\n\x1b é.safetensors'
    bad.write_bytes(b"no")
    fail_loads(broker, bad, 1)
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    assert broker.terminate() == 0
    lines = [json.loads(line) for line in broker.output().splitlines()]
    assert {line["level"] for line in lines} >= {"info", "warning"}
    assert len({line["pid"] for line in lines}) == 1
    assert all(line["time"].endswith("Z") for line in lines)
    assert any('q"uo\\te' in line["message"] for line in lines)
    assert "stopping: SIGTERM" in [line["message"] for line in lines]


def test_a_log_pipe_that_nobody_reads_stops_nothing(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "1GiB")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    start_with_stderr(broker, writer)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    fail_loads(broker, bad, 4000)  # more lines than pipe and queue hold
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    assert [one["name"] for one in broker.cli_json("ps")] == ["m"]
    # Somebody reads again: what waited comes, and how much did not.
    text = drain(reader, "log lines were dropped")
    assert "serving ipc://" in text
    count = int(text.split(" log lines were dropped")[0].split()[-1])
    assert 1000 < count < 4000
    drain(reader, "loaded block")
    # And a stop does not wait for a reader either.
    fail_loads(broker, bad, 500)
    assert broker.terminate() == 0
    assert broker.blocks() == []
    os.close(reader)
    os.close(writer)


def test_a_log_pipe_whose_reader_is_gone_stops_nothing(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    reader, writer = os.pipe()
    start_with_stderr(broker, writer)
    os.close(writer)
    os.close(reader)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    fail_loads(broker, bad, 100)
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    assert broker.terminate() == 0
    assert broker.blocks() == []


def test_a_full_disk_for_the_log_stops_nothing(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    with Path("/dev/full").open("wb") as full:
        start_with_stderr(broker, full.fileno())
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    fail_loads(broker, bad, 100)
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    wait_until(lambda: broker.books()["made"] > 0)
    assert broker.terminate() == 0
    assert broker.blocks() == []


def test_without_standard_descriptors_nothing_else_takes_their_place(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--log-level", "debug")
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *broker.serve_command()]
    broker.process = subprocess.Popen(command, env=broker.environment)
    with modelbroker.connect(broker.endpoint, timeout=30) as client:
        client.load(files.write_random(tmp_path / "m.safetensors", 1))
        places = [os.readlink(f"/proc/{broker.pid}/fd/{standard}") for standard in range(3)]
    assert places == ["/dev/null"] * 3
    assert (broker.run / "lock").stat().st_size == 0
