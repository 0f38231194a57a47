"""A container's /dev/shm has 64 MiB: a broker refuses it with advice, unless so little is meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.small_tmpfs import with_tmpfs

PRECONDITION = 13
MIB = 1 << 20

MakeBroker = Callable[..., BrokerProcess]


def on_tmpfs(make_broker: MakeBroker, size: str, *flags: str) -> tuple[BrokerProcess, list[str]]:
    """A broker whose RAM directory is such a tmpfs, and the command that runs it there."""
    broker = make_broker(*flags)
    broker.ram = broker.folder / "shm"
    broker.ram.mkdir()
    return broker, with_tmpfs(broker.ram, size, broker.serve_command())


def refused(make_broker: MakeBroker, size: str, *flags: str) -> str:
    broker, command = on_tmpfs(make_broker, size, *flags)
    done = subprocess.run(
        command, env=broker.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == PRECONDITION, done.stderr
    assert done.stderr.startswith("modelbroker: failed_precondition: ")
    assert not (broker.run / "fds.sock").exists()
    return done.stderr


def serving(make_broker: MakeBroker, size: str, *flags: str) -> BrokerProcess:
    broker, command = on_tmpfs(make_broker, size, *flags)
    with broker.log.open("wb") as log:
        broker.process = subprocess.Popen(command, env=broker.environment, stderr=log)
    modelbroker.connect(broker.endpoint, timeout=30).close()
    broker.ram = Path(f"/proc/{broker.pid}/root{broker.ram}")  # as the broker sees it
    return broker


def test_64_mib_are_refused_with_advice(make_broker: MakeBroker) -> None:
    said = refused(make_broker, "64m")
    assert "has only 64.0 MiB in all" in said
    for word in (
        "--shm-size",
        "--ipc=host",
        "-v /dev/shm:/dev/shm",
        "--ram-directory",
        "--ram-budget",
    ):
        assert word in said


@pytest.mark.parametrize(("size", "budget"), [("64m", "65MiB"), ("300m", "1GiB")])
def test_a_budget_that_does_not_fit_is_refused(
    make_broker: MakeBroker, size: str, budget: str
) -> None:
    assert "less than the budget of" in refused(make_broker, size, "--ram-budget", budget)


def test_a_budget_that_fits_is_taken_at_its_word(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = serving(make_broker, "64m", "--ram-budget", "64MiB")
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 20))
    assert broker.books()["made"] == broker.bytes_in_ram() > 20_000_000
    done = broker.cli(
        "load", files.write_random(tmp_path / "n.safetensors", 80), "--json", check=False
    )
    assert json.loads(done.stderr)["error"]["code"] == "resource_exhausted"
    assert broker.terminate() == 0


def test_enough_is_enough(make_broker: MakeBroker) -> None:
    broker = serving(make_broker, "256m")
    assert 0 < broker.books()["limit"] <= 256 * MIB
    assert broker.terminate() == 0


def test_sighup_does_not_take_a_budget_that_does_not_fit(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '60MiB'\n")
    broker = serving(make_broker, "64m", "--config", str(file))
    for text in ("[ram]\nbudget = '100MiB'\n", ""):
        file.write_text(text)
        before = len(broker.output())
        os.kill(broker.pid, signal.SIGHUP)
        wait_until(lambda before=before: "stays as it was" in broker.output()[before:])
        assert broker.books()["limit"] == 60 * MIB
    assert broker.terminate() == 0
