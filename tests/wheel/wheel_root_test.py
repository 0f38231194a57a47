"""The wheel on a Debian with nothing but libc, libstdc++ and Python: no library of our build."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import files, installed

pytestmark = pytest.mark.slow

# As Debian's packages have them on this machine. Python with its modules, and what those need.
PACKAGES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "python3-minimal",
    "libexpat1",
    "libffi8",
    "libssl3",
    "zlib1g",
)


def copy_package(root: Path, paths: list[str]) -> None:
    for path in paths:
        source, target = Path(path), root / path.lstrip("/")
        if path.startswith("/usr/share/") or target.exists():
            continue  # documentation; and a folder that several packages have
        if source.is_dir() and not source.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mbr-"))
    folder.chmod(0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "run", "tmp"):
        (folder / name).mkdir()
    (folder / "tmp").chmod(0o1777)
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], check=True, capture_output=True, text=True)
    copy_package(folder, [line for line in listed.stdout.splitlines() if line.startswith("/")])
    yield folder
    shutil.rmtree(folder)


def unshare(*options: str) -> list[str]:
    """A command's start: mounts of its own, for which an ordinary user needs ids of its own."""
    ids = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *ids, "--mount", *options]


def inside(root: Path, *command: str, environment: dict[str, str]) -> str:
    """Runs it as an ordinary user, with this root, the machine's /dev, and a /proc of its own."""
    user = ["--userspec=1500:1500"] if os.geteuid() == 0 else []
    script = (
        f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && "
        f"exec {shlex.join(['chroot', *user, str(root), *command])}"
    )
    done = subprocess.run(
        [*unshare("--pid", "--fork", "--kill-child"), "sh", "-c", script],
        env={"PATH": "/usr/local/bin:/usr/bin:/usr/sbin", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(root: Path) -> None:
    """As `pip install` would by the root's own Python, which has no pip."""
    pip = [sys.executable, "-m", "pip", "--python", installed.PYTHON, "install", "--no-index"]
    for folder in (installed.DIST, installed.WHEELHOUSE):
        pip += ["--find-links", str(folder)]
    how = ["--quiet", "--no-compile", "--ignore-installed", "--break-system-packages"]
    subprocess.run(
        [*pip, *how, "--no-warn-script-location", "--root", str(root), "modelbroker"],
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        check=True,
    )


def test_a_debian_without_our_packages(root: Path) -> None:
    if subprocess.run([*unshare(), "true"]).returncode != 0:
        pytest.skip("no mounts of our own on this machine: unshare is not allowed")
    for name in ("zmq", "fmt", "spdlog", "sqlite3", "xxhash", "tomlplusplus"):
        assert not list(root.rglob(f"lib{name}*")), name
    install(root)
    model = files.write_random(root / "tmp/model.safetensors", 2)
    model.chmod(0o644)
    shutil.copy(Path(__file__).with_name("scenario.py"), root / "tmp")
    instance = f"t{uuid.uuid4().hex[:12]}"
    total = str(files.sum_of_bytes(model))
    scenario = ["/tmp/scenario.py", "/tmp/model.safetensors", total, "modelbroker"]
    try:
        output = inside(
            root,
            *("python3", "-W", "error", *scenario),
            environment={
                "MODELBROKER_INSTANCE": instance,
                "MODELBROKER_RUN_DIRECTORY": "/tmp/run",
                "MODELBROKER_ENDPOINT": "ipc:///tmp/run/broker.sock",
                "MODELBROKER_RAM_BUDGET": "256MiB",
            },
        )
    finally:
        for path in Path("/dev/shm").glob(f"modelbroker.*.{instance}.*"):
            path.unlink()
    seen = json.loads(output.splitlines()[-1])
    assert seen["program"].startswith("/usr/local/lib/python3.11/")
