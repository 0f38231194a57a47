"""A broker that hangs: whoever asks it is told so in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess

DEADLINE_EXCEEDED = 19
LIMIT = 10  # seconds that a command without a deadline of its own waits


@pytest.fixture
def stopped(broker: BrokerProcess) -> Iterator[BrokerProcess]:
    with broker.frozen():
        yield broker


@pytest.mark.parametrize("timeout", ["0.1", "300ms"])
def test_a_load_ends_at_its_deadline(stopped: BrokerProcess, tmp_path: Path, timeout: str) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 1)
    began = time.monotonic()
    done = stopped.cli("load", source, "--timeout", timeout, check=False)
    assert time.monotonic() - began < LIMIT
    assert done.returncode == DEADLINE_EXCEEDED
    assert "hangs" in done.stderr


def test_a_question_ends_too(stopped: BrokerProcess) -> None:
    done = stopped.cli("ls", check=False)
    assert done.returncode == DEADLINE_EXCEEDED
    assert "hangs" in done.stderr


def test_a_load_that_waits_for_nothing_else_is_served_when_it_goes_on(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.freeze()
    source = files.write_random(tmp_path / "m.safetensors", 1)
    assert broker.cli("load", source, "--timeout", "0.1", check=False).returncode != 0
    broker.thaw()
    assert broker.cli_json("load", source, "--timeout", "1m")["outcome"] in ("loaded", "resident")
