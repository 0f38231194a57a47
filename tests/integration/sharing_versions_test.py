"""The door with the oldest safetensors that we say we know, and with the next: all of its tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ROOT / "build/safetensors"  # made by 'make deps'


@pytest.mark.parametrize("version", ["0.4.5", "0.9.0rc1"])
def test_the_door_with_another_safetensors(version: str) -> None:
    folder = VERSIONS / version
    assert folder.is_dir(), f"no safetensors {version} in {folder}: 'make deps' installs it"
    path = os.pathsep.join([str(folder), *sys.path])
    tests = ROOT / "tests/integration/sharing_door_test.py"
    program = (
        f"import safetensors; assert safetensors.__file__.startswith({str(folder)!r})\n"
        "import pytest\n"
        f"raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tests)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
