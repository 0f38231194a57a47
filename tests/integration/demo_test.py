"""The demo itself, on a small file: a real model, real kills, every claim but those about speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.broker import BINARY
from support.examples import EXAMPLES

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_claim_of_the_demo_holds_on_a_small_file() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--quick", "--broker", BINARY, "--examples", str(EXAMPLES)],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything held." in done.stdout
    assert done.stdout.count("[ok]") >= 12
    assert "[ok] a C++ worker embeds alike" in done.stdout
    assert "[ok] broker SIGKILLed while both paint" in done.stdout
    assert "of shared weights are what they were: 0 bytes written" in done.stdout
