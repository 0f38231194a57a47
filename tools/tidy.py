"""clang-tidy on many units, several at a time: most of its time goes into the headers they share.

    tidy.py [--jobs N] BUILD UNIT...

Units of one folder that the build in BUILD compiles alike are checked as one, which includes them
all; so HeaderFilterRegex in .clang-tidy must match the units too. Units that may declare the same
name in their unnamed namespaces are kept apart. Where a group fails, its units are checked one by
one, and only what is found then counts.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_MAX_UNITS = 8  # in a group: more save little, and every core needs work until the end

_UNNAMED_NAMESPACE = re.compile(r"^namespace \{\n(.*?)^\}  // namespace$", re.DOTALL | re.MULTILINE)
# clang-format puts what a namespace declares at the left edge. A word too many does no harm.
_DECLARED = re.compile(
    r"^(?! |return|template|using namespace)[\w:<>,&*\[\] ]*?(\w+)(?: ?[({=;]|\[)", re.MULTILINE
)


@dataclass(frozen=True)
class Unit:
    """A source file, and the command that compiles it: without the file, and what it writes."""

    path: Path
    directory: str
    command: tuple[str, ...]

    def own_names(self) -> set[str]:
        """Those that another unit may have too."""
        text = self.path.read_text()
        names = {
            name for body in _UNNAMED_NAMESPACE.findall(text) for name in _DECLARED.findall(body)
        }
        return names | ({"main"} if re.search(r"^int main\(", text, re.MULTILINE) else set())


def read_units(build: Path, wanted: Iterable[Path]) -> list[Unit]:
    """The wanted files as the build compiles them; ends the program for one that it does not."""
    known: dict[Path, Unit] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = (Path(entry["directory"]) / entry["file"]).resolve()
        words = iter(shlex.split(entry["command"]))
        command = []
        for word in words:
            if word in ("-o", "-c"):
                next(words)
            else:
                command.append(word)
        known.setdefault(path, Unit(path, entry["directory"], tuple(command)))
    missing = [str(path) for path in wanted if path.resolve() not in known]
    if missing:
        sys.exit(f"{build} does not compile {', '.join(missing)}: run cmake there first")
    return [known[path.resolve()] for path in wanted]


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    groups: list[tuple[list[Unit], set[str]]] = []
    for unit in units:
        names = unit.own_names()
        for group, taken in groups:
            same_room = (unit.path.parent, unit.command) == (group[0].path.parent, group[0].command)
            if same_room and len(group) < _MAX_UNITS and not names & taken:
                group.append(unit)
                taken |= names
                break
        else:
            groups.append(([unit], names))
    # The longest first: no core is left with one at the end.
    return sorted((group for group, _ in groups), key=len, reverse=True)


def write_groups(groups: list[list[Unit]], folder: Path) -> list[Path]:
    """A file for each group that includes its units, and the database of how these are compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, files = [], []
    for number, group in enumerate(groups):
        file = folder / f"group{number}.cc"
        # That a .cc file is included is a finding of its own.
        file.write_text("".join(f'#include "{unit.path}"  // NOLINT\n' for unit in group))
        command = shlex.join([*group[0].command, "-c", str(file)])
        entries.append({"directory": group[0].directory, "file": str(file), "command": command})
        files.append(file)
    (folder / "compile_commands.json").write_text(json.dumps(entries))
    return files


def tidy(database: Path, file: Path) -> tuple[bool, str]:
    """Whether it found nothing, and what it says."""
    done = subprocess.run(
        ["clang-tidy", "--quiet", "-p", str(database), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode == 0, done.stdout


def check(build: Path, file: Path, group: list[Unit]) -> tuple[bool, str]:
    """One group, and its units one by one where the group fails."""
    said = ""
    if len(group) > 1:
        passed, said = tidy(file.parent, file)
        if passed:
            return True, ""
    found = [tidy(build, unit.path) for unit in group]
    if all(passed for passed, _ in found):  # it took longer than it should
        return True, f"These units pass one by one, but not as one:\n{said}" if said else ""
    return False, "".join(text for passed, text in found if not passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("build", type=Path, help="a build folder with a compile_commands.json")
    parser.add_argument("unit", type=Path, nargs="+")
    given = parser.parse_args()
    groups = grouped(read_units(given.build, given.unit))
    files = write_groups(groups, given.build.resolve() / "tidy")
    failed = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        checks = [pool.submit(check, given.build, *one) for one in zip(files, groups, strict=True)]
        for one in checks:
            passed, said = one.result()
            failed += not passed
            print(said, end="", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
