"""What to do on an installation without the program."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

# The wheel with the program asks for this much.
_GLIBC = (2, 35)
_REMEDY = "build the program from source (docs/install.md) and put it on the PATH"


def explanation(program: str) -> str:
    """Why there is no program at `program`, and how to get one."""
    if os.path.exists(program):  # glibc's dynamic linker is what was not found
        return f"'{program}' needs glibc, which this machine does not have: {_REMEDY}"
    alone = "this Python package has the client alone"
    elsewhere = shutil.which("modelbroker", path=_path_without_scripts())
    if elsewhere is not None:
        return f"{alone}; a program is installed: run '{elsewhere}'"
    reason = _why_not_here()
    if reason:
        return f"{alone}, since {reason}: {_REMEDY}"
    return (
        f"{alone}. The wheel for Linux on x86-64 has the program:\n"
        f"  {sys.executable} -m pip install --force-reinstall --no-deps "
        "modelbroker-<version>-py3-none-manylinux_2_35_x86_64.whl\n"
        "A package that pip installed from the sources never has it: build the program with\n"
        "'make build' (docs/install.md)."
    )


def _path_without_scripts() -> str:
    """PATH without this environment's own scripts: the console script leads here again."""
    own = Path(sys.executable).parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if Path(folder) != own)


def _why_not_here() -> str:
    """What keeps this machine from the wheel with the program; empty: nothing."""
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        return f"the program is for Linux on x86-64 and this is {sys.platform} on {machine}"
    name, version = platform.libc_ver()
    if name != "glibc":
        return "the program needs glibc, which this Python does not use"
    if tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        return f"the program needs glibc 2.35 or newer and this machine has {version}"
    return ""
