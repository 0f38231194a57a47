"""A limit of file sizes (`ulimit -f`, LimitFSIZE=): refusals that name it, and no death."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbroker import ResourceExhaustedError
from support import files
from support.broker import BINARY, BrokerProcess, wait_until

EXHAUSTED, PRECONDITION = 15, 13
MIB = 1 << 20
LIMIT = 40 * MIB

MakeBroker = Callable[..., BrokerProcess]


def limited(command: list[str], limit: int) -> list[str]:
    """The command, under that limit of bytes; a shell's own unit differs from shell to shell."""
    return ["prlimit", f"--fsize={limit}", *command]


class Limited(BrokerProcess):
    """A broker that may make no file larger than `limit`."""

    limit = LIMIT

    def serve_command(self) -> list[str]:
        return limited(super().serve_command(), self.limit)


@pytest.mark.parametrize("flags", [[], ["--supervise"]])
@pytest.mark.parametrize("limit", [0, 4096, MIB, 15 * MIB])
def test_a_broker_with_too_small_a_limit_says_so(
    make_broker: MakeBroker, limit: int, flags: list[str]
) -> None:
    broker = make_broker(*flags)
    done = subprocess.run(  # its output is a pipe: no file
        limited(broker.serve_command(), limit),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == PRECONDITION, done.stderr
    assert "ulimit -f" in done.stderr
    assert "LimitFSIZE" in done.stderr
    assert broker.blocks() == []


@pytest.mark.parametrize("flags", [[], ["--supervise"]])
def test_a_model_that_is_too_large_for_the_limit_is_refused(
    tmp_path: Path, flags: list[str]
) -> None:
    broker = Limited("--ram-budget", "80MiB", *flags)
    big = files.write_random(tmp_path / "big.safetensors", 60)
    small = files.write_random(tmp_path / "small.safetensors", 30)
    try:
        with broker.start().connect() as client:
            assert "files of this process may have at most 40.0 MiB" in broker.output()
            client.load(small)
            with pytest.raises(ResourceExhaustedError, match="ulimit -f") as refused:
                client.load(big, timeout=30)
            assert refused.value.details["file_size_limit"] == LIMIT
            assert refused.value.details["needed"] > 60_000_000
            assert broker.cli("load", big, check=False).returncode == EXHAUSTED
            assert [model.name for model in client.list()] == ["small"]  # nobody went for it
            client.attach("small").release()
        assert "was killed" not in broker.output()
        assert broker.terminate() == 0
    finally:
        broker.stop()


def test_a_log_that_may_not_grow_stops_nothing(tmp_path: Path) -> None:
    broker = Limited()
    broker.log.touch()
    os.truncate(broker.log, LIMIT)
    try:
        broker.start()
        broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
        assert broker.terminate() == 0
        assert broker.log.stat().st_size == LIMIT
    finally:
        broker.stop()


def test_a_state_database_that_may_not_grow_costs_names_and_says_why(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    model = files.write_random(tmp_path / "m.safetensors", 1)
    with broker.connect() as client:
        client.load(model, "m")
        size = max(path.stat().st_size for path in broker.run.glob("state.db*"))
        _, most = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (size, most))
        for count in range(40):  # each is written
            client.load(model, f"alias-{count}-" + "x" * 200)
        assert "names may be lost" in broker.output()
        assert f"files of this process may have at most {size} bytes" in broker.output()
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: "has all names again" in broker.output())
        assert broker.alive()


@pytest.mark.parametrize(("limit", "verdict"), [(MIB, "problem"), (LIMIT, "note")])
def test_doctor_tells_the_limit(make_broker: MakeBroker, limit: int, verdict: str) -> None:
    broker = make_broker()
    done = subprocess.run(
        limited([BINARY, "doctor", "--run-directory", str(broker.run)], limit),
        env=broker.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = (line for line in done.stdout.splitlines() if "file_size" in line.split())
    assert line.split()[0] == verdict
    assert "ulimit -f" in done.stdout
    assert done.returncode == (PRECONDITION if verdict == "problem" else 0), done.stderr


def test_output_that_may_not_grow_is_an_error(loaded: BrokerProcess, tmp_path: Path) -> None:
    """As on a full disk: the command says so, and is not killed."""
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            limited([BINARY, "ls", "--json"], 1),
            env=loaded.environment,
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == EXHAUSTED, done.stderr
    assert b"writing the output" in done.stderr
