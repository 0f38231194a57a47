"""Hooks of the Python build (pyproject.toml): the wheel with the program.

With MODELBROKER_PROGRAM_FOLDER, which tools/make_wheels.py sets, the wheel is one for this
platform: it has the programs of that folder in `modelbroker/_program/`, and the console script.
Without, it has the Python client alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

FOLDER = "MODELBROKER_PROGRAM_FOLDER"


def _programs() -> list[Path]:
    folder = os.environ.get(FOLDER)
    return sorted(Path(folder).iterdir()) if folder else []


class ProgramMetadata(MetadataHookInterface):
    """The console script, where there is a program for it."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the scripts, which pyproject.toml leaves to us."""
        metadata["scripts"] = {"modelbroker": "modelbroker._program:main"} if _programs() else {}


class ProgramInWheel(BuildHookInterface[Any]):
    """The programs, and a tag that keeps the wheel from other platforms."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds them to the wheel that is about to be built."""
        programs = _programs()
        if not programs or version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
        for program in programs:
            build_data["force_include"][str(program)] = f"modelbroker/_program/{program.name}"
