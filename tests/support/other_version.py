"""A wheel of another version: the same but for what its program and its metadata say."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write(wheel: Path, folder: Path, version: str) -> Path:
    """The wheel as `version`, which has as many characters as its own."""
    name, own, *rest = wheel.name.split("-")
    assert len(own) == len(version)
    target = folder / "-".join([name, version, *rest])
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(target, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            entry.filename = entry.filename.replace(own, version)
            if entry.filename.endswith("_program/modelbroker"):
                text = f"\0{own}\0".encode()
                assert data.count(text) == 1, "the program says its version once"
                data = data.replace(text, f"\0{version}\0".encode())
            elif entry.filename.endswith(("/METADATA", "/RECORD")):
                data = data.replace(own.encode(), version.encode())
            after.writestr(entry, data)
    return target
