"""What a command sees of file systems, in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def _unshare() -> list[str] | None:
    """How this user gets a mount namespace, or nothing."""
    ways = [["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]]
    for way in ways if os.geteuid() == 0 else ways[1:]:
        probe = [*way, "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"]
        try:
            done = subprocess.run(probe, capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return way
    return None


def with_tmpfs(folder: Path, size: str, command: list[str]) -> list[str]:
    """The command, to be run with a tmpfs of `size` ("64m") over `folder`, which must exist."""
    way = _unshare()
    if way is None:
        pytest.skip("no small tmpfs can be mounted here: neither as root nor in a user namespace")
    mount = 'mount -t tmpfs -o "size=$1,mode=1777" none "$2" && shift 2 && exec "$@"'
    return [*way, "sh", "-c", mount, "sh", size, str(folder), *command]


def with_folder(folder: Path, over: Path, command: list[str]) -> list[str]:
    """The command, to be run with our `folder` in the place of another."""
    way = _unshare()
    if way is None:
        pytest.skip("no folder can be mounted here: neither as root nor in a user namespace")
    mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
    return [*way, "sh", "-c", mount, str(folder), str(over), *command]
