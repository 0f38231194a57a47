"""Runs the client's tests on every other Python that it supports and that is found here.

Tests that need torch run on one interpreter only (make test); here run those of the package itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
_NEEDED = ("msgpack", "numpy", "pyzmq", "pytest", "pytest-timeout", "ml_dtypes")
_HEAVY = re.compile(r"^\s*(?:import|from) (?:torch|safetensors|transformers)\b", re.MULTILINE)
_ROOT = Path(__file__).resolve().parent.parent


def find(version: str) -> str | None:
    """An interpreter of this version that starts: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path / "bin/python") for path in sorted(pyenv.glob(f"{version}.*"))]
    for candidate in filter(None, candidates):
        check = "import sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
        done = subprocess.run([candidate, "-c", check], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def light_tests() -> list[str]:
    """Test files of the client that need nothing heavy."""
    files = sorted((_ROOT / "tests/unit").glob("python_*_test.py"))
    return [str(path) for path in files if not _HEAVY.search(path.read_text())]


def run(version: str, interpreter: str, flaky: Path) -> bool:
    """Makes an environment if there is none, and runs the tests in it."""
    folder = _ROOT / "build" / f"venv-{version}"
    python = str(folder / "bin/python")
    if not (folder / ".ready").exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *install, *_NEEDED], check=True)
        (folder / ".ready").touch()
    runner = [python, str(_ROOT / "tools/run_tests.py"), "--flaky", str(flaky)]
    command = [*runner, "--note", f"Python {version}"]
    command += ["pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT / "python_client")}
    done = subprocess.run(
        [*command, *light_tests()],
        cwd=_ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(f"==> Python {version}\n{done.stdout}", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--flaky", type=Path, default=_ROOT / "build/flaky.txt", help="see run_tests.py"
    )
    given = parser.parse_args()
    own = ".".join(map(str, sys.version_info[:2]))
    failed, lines = [], []
    found = {version: find(version) for version in _SUPPORTED if version != own}
    with ThreadPoolExecutor(len(found)) as pool:  # they mostly wait
        runs = {
            version: pool.submit(run, version, interpreter, given.flaky)
            for version, interpreter in found.items()
            if interpreter is not None
        }
    for version in _SUPPORTED:
        if version == own:
            lines.append(f"Python {version}: all tests, with torch")
            continue
        if version not in runs:
            lines.append(f"Python {version}: not tested, no such interpreter here")
            continue
        held = runs[version].result()
        lines.append(f"Python {version}: client tests {'passed' if held else 'FAILED'}")
        if not held:
            failed.append(version)
    print("\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
