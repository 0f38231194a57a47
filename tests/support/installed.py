"""What `make wheel` made, installed by an ordinary user: offline, with no build in sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "build/dist"
# The wheels of numpy, pyzmq and msgpack for Debian's Python.
WHEELHOUSE = ROOT / "build/wheelhouse"
# Every user may run it, unlike one that lies in somebody's home.
PYTHON = "/usr/bin/python3"
_IDS: Any = {"user": 1500, "group": 1500, "extra_groups": ()} if os.geteuid() == 0 else {}


def made(pattern: str) -> Path:
    """The one file of `make wheel` that fits."""
    found = sorted(DIST.glob(pattern))
    assert len(found) == 1, f"{DIST} has {found} for {pattern}: run 'make wheel'"
    return found[0]


def platform_wheel() -> Path:
    return made("*-manylinux_*.whl")


def client_wheel() -> Path:
    return made("*-none-any.whl")


class Place:
    """A folder of an ordinary user, who has the wheels and a fresh virtual environment in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mbw-"))  # short: it holds socket paths
        self.folder.chmod(0o755)
        self.venv = self.folder / "venv"
        self.instance = f"t{uuid.uuid4().hex[:12]}"
        self.wheels = self.folder / "wheels"
        self.wheels.mkdir()
        for wheel in [platform_wheel(), client_wheel(), *WHEELHOUSE.glob("*.whl")]:
            shutil.copy(wheel, self.wheels)
        if _IDS:
            os.chown(self.folder, 1500, 1500)
        self.run([PYTHON, "-m", "venv", "--without-pip", self.venv])

    def environment(self, **more: object) -> dict[str, str]:
        """Nothing but this environment is on the path."""
        run = self.folder / "run"
        own = {
            "PATH": self.venv / "bin",
            "HOME": self.folder,
            "TMPDIR": self.folder,
            "MODELBROKER_RUN_DIRECTORY": run,
            "MODELBROKER_ENDPOINT": f"ipc://{run}/broker.sock",
            "MODELBROKER_INSTANCE": self.instance,
            "MODELBROKER_RAM_BUDGET": "256MiB",
            "PYTHONWARNINGS": "error",
        }
        return {name: str(value) for name, value in {**own, **more}.items()}

    def start(self, command: list[str | Path], **more: object) -> subprocess.Popen[str]:
        """As the user, in the folder."""
        return subprocess.Popen(
            [
                shutil.which(str(command[0]), path=str(self.venv / "bin")) or command[0],
                *command[1:],
            ],
            cwd=self.folder,
            env=self.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **_IDS,
        )

    def run(self, command: list[str | Path], status: int = 0, **more: object) -> str:
        """Runs it to its end, and gives what it printed."""
        process = self.start(command, **more)
        try:
            output = process.communicate(timeout=120)[0]
        finally:
            process.kill()
        assert process.returncode == status, f"{command} gave {process.returncode}: {output}"
        return output

    def install(self, *what: str | Path) -> None:
        """By the pip that Debian's venv would put there: unpacking it first takes 5 s."""
        (pip,) = Path("/usr/share/python-wheels").glob("pip-*.whl")
        command: list[str | Path] = ["python", pip / "pip", "install", "--quiet", "--no-compile"]
        offline: list[str | Path] = ["--no-index", "--find-links", self.wheels]
        self.run([*command, *offline, *what], PYTHONWARNINGS="default")

    def remove(self) -> None:
        for path in Path("/dev/shm").glob(f"modelbroker.*.{self.instance}.*"):
            path.unlink()
        shutil.rmtree(self.folder)


@contextmanager
def place() -> Iterator[Place]:
    """A place, until the end of the block."""
    made = Place()
    try:
        yield made
    finally:
        made.remove()
