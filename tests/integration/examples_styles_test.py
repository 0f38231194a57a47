"""The example of styles as its user runs it: two workers, real pictures, switched meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.adapters import studio
from support.examples import SOURCES

STYLES = SOURCES / "styles"


@pytest.mark.slow
def test_workers_switch_styles_while_they_paint(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    with studio(tmp_path) as made:
        files = [made.style(seed) for seed in (1, 2)]
        done = subprocess.run(
            [
                *(sys.executable, str(STYLES / "four_styles.py")),
                *(str(made.folder / "pipeline"), *map(str, files), "--pictures", str(pictures)),
                *("--workers", "2", "--steps", "4", "--rounds", "1"),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MODELBROKER_ENDPOINT": made.broker.endpoint},
        )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stdout + done.stderr
    first, second = (pictures / f"{number + 1}-kohya-{number + 1}.png" for number in range(2))
    assert first.read_bytes() != second.read_bytes()
    lines = done.stdout.splitlines()
    told = {line.split(":")[0].strip(): line for line in lines}
    assert told["each picture painted again"].endswith("the same, bit for bit")
    switches = next(line for line in lines if "switches while they painted" in line)
    assert int(switches.split()[0]) > 0
    own_memory = next(line.split() for line in lines if "own memory of two styles" in line)
    assert own_memory[-4:-2] == ["0.0", "MB"]
    assert float(own_memory[-2]) > 1  # diffusers'
