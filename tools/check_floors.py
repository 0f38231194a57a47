"""Includes go only down the floors: a room may include itself and the rooms below it.

And no two headers define a type of one name in one namespace: a program that links both would
take either's inline functions for the other's, and nothing tells.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# What each folder may include, itself left out. The longest folder that fits a file counts.
BELOW: dict[str, tuple[str, ...]] = {
    "shm": (),
    "unpickle": ("shm",),
    "cuda_ipc": ("shm",),
    "wire": ("shm",),
    "cpp_client": ("shm", "wire"),
    "broker/base": ("shm", "wire"),
    "broker/formats": ("shm", "broker/base"),
    "broker/workers": ("shm", "broker/base"),
    "broker/tier": ("shm", "broker/base"),
    "broker/ram": (
        "shm",
        "wire",
        "broker/base",
        "broker/formats",
        "broker/workers",
        "broker/tier",
    ),
    "broker/models": (
        "shm",
        "wire",
        "broker/base",
        "broker/formats",
        "broker/workers",
        "broker/tier",
        "broker/ram",
    ),
    "broker/api": (
        "shm",
        "wire",
        "broker/base",
        "broker/workers",
        "broker/tier",
        "broker/ram",
        "broker/models",
    ),
    "broker/doors": (
        "shm",
        "wire",
        "broker/base",
        "broker/workers",
        "broker/ram",
        "broker/models",
        "broker/api",
    ),
    "broker/server": (
        "shm",
        "wire",
        "broker/base",
        "broker/workers",
        "broker/tier",
        "broker/ram",
        "broker/models",
        "broker/api",
        "broker/doors",
    ),
    "broker/cli": (
        "shm",
        "wire",
        "cpp_client",
        "broker/base",
        "broker/ram",
        "broker/server",
    ),
    "broker": ("broker/cli",),
}
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_OPENS = re.compile(r"namespace(?: ([\w:]+))? \{$")
_CLOSES = re.compile(r"\}  // namespace")
_DEFINES = re.compile(r"(?:struct|class|enum class) (\w+)(?: final)?(?: :.*)? \{")
_GENERATED = ("modelbroker_version.h", "bench_python.h")


def _room_of(path: str) -> str | None:
    fitting = [room for room in BELOW if path == room or path.startswith(room + "/")]
    return max(fitting, key=len, default=None)


def violations(root: Path) -> list[str]:
    """One line for each include that goes up or sideways, or leads out of the rooms."""
    found = []
    for folder in sorted({room.split("/")[0] for room in BELOW}):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cc"):
                continue
            name = path.relative_to(root).as_posix()
            found += [
                f"{name}:{number}: {why}"
                for number, line in enumerate(path.read_text().splitlines(), 1)
                if (why := _wrong(name, line))
            ]
    return found


def _wrong(name: str, line: str) -> str | None:
    include = _INCLUDE.match(line)
    if include is None or include[1] in _GENERATED:
        return None
    here, there = _room_of(name), _room_of(include[1])
    if there is None:
        return f"{include[1]} is in no room: include from the repository root"
    assert here is not None
    if here == there or there in BELOW[here]:
        return None
    return f"{here} may not include {include[1]}"


def _types_of(path: Path) -> list[str]:
    """The types that a header defines, with their namespace."""
    spaces: list[str] = []
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        short = line == "}" and _OPENS.match(lines[number - 2])  # a namespace of one line
        if opened := _OPENS.match(line):
            spaces.append(opened[1] or "")
        elif short or _CLOSES.match(line):
            spaces.pop()
        elif defined := _DEFINES.match(line):
            found.append("::".join([*spaces, defined[1]]))
    return found


def doubles(root: Path) -> list[str]:
    """One line for each type that two headers define."""
    where: dict[str, str] = {}
    found = []
    for folder in sorted({room.split("/")[0] for room in BELOW}):
        for path in sorted((root / folder).rglob("*.h")):
            name = path.relative_to(root).as_posix()
            for type_ in _types_of(path):
                if where.setdefault(type_, name) != name:
                    found.append(f"{name}: {type_} is defined in {where[type_]} too")
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = violations(root) + doubles(root)
    print("\n".join(found) if found else "floors: every include goes down, every type has its name")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
