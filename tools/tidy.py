"""clang-tidy on many units, several at a time: most of its time goes into the headers they share.

    tidy.py [--jobs N] [--passed FOLDER] BUILD UNIT...

Units of one folder that the build in BUILD compiles alike are checked as one, which includes them
all; so HeaderFilterRegex in .clang-tidy must match the units too. Units that may declare the same
name in their unnamed namespaces are kept apart. Where a group fails, its units are checked one by
one, and only what is found then counts.

What has passed is remembered in the folder of --passed, if one is given, by all that the result
depends on: clang-tidy and its configuration, the command, every file that the unit includes. So a
clean clone checks what has changed, as ccache compiles it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_MAX_UNITS = 8  # in a group: more save little, and every core needs work until the end

_KEPT_SECONDS = 60 * 24 * 3600  # what passed, since it was last of use

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


def _output(command: Iterable[str], directory: str = ".") -> str:
    """Of a command that ends well; CalledProcessError where it does not."""
    return subprocess.run(
        list(command), cwd=directory, check=True, capture_output=True, text=True
    ).stdout


def all_it_depends_on(database: Path, file: Path, group: list[Unit]) -> str | None:
    """A digest of whatever the findings follow from; None where the compiler cannot tell.

    The same in another clone: folders below the current one are told from there.
    """
    first = group[0]
    try:
        rule = _output([*first.command, "-M", str(file)], first.directory)
        settings = _output(["clang-tidy", "--dump-config", "-p", str(database), str(file)])
        facts = [_output(["clang-tidy", "--version"]), settings, *first.command]
        included = rule.partition(":")[2].replace("\\\n", " ").split()
        for path in sorted((Path(first.directory) / word).resolve() for word in included):
            if path != file.resolve() or path == first.path:  # our own file names the units alone
                facts += [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    except (OSError, subprocess.CalledProcessError):
        return None
    text = "\0".join(facts).replace(f"{Path.cwd()}/", "")
    return hashlib.sha256(text.encode()).hexdigest()


def tidy(database: Path, file: Path, group: list[Unit], passed: Path | None) -> tuple[bool, str]:
    """Whether it found nothing, and what it says."""
    digest = all_it_depends_on(database, file, group) if passed is not None else None
    known = passed / digest if passed is not None and digest is not None else None
    if known is not None and known.exists():
        known.touch()
        return True, ""
    found_nothing, said = run_clang_tidy(database, file)
    if found_nothing and known is not None:
        known.touch()
    return found_nothing, said


def run_clang_tidy(database: Path, file: Path) -> tuple[bool, str]:
    done = subprocess.run(
        ["clang-tidy", "--quiet", "-p", str(database), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode == 0, done.stdout


def forget_old(passed: Path) -> None:
    """Removes what no run asked for in two months."""
    for path in passed.iterdir():
        if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
            path.unlink(missing_ok=True)


def check(
    build: Path, file: Path, group: list[Unit], passed: Path | None = None
) -> tuple[bool, str]:
    """One group, and its units one by one where the group fails."""
    said = ""
    if len(group) > 1:
        found_nothing, said = tidy(file.parent, file, group, passed)
        if found_nothing:
            return True, ""
    found = [tidy(build, unit.path, [unit], passed) for unit in group]
    if all(found_nothing for found_nothing, _ in found):  # it took longer than it should
        return True, f"These units pass one by one, but not as one:\n{said}" if said else ""
    return False, "".join(text for found_nothing, text in found if not found_nothing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--passed", type=Path, help="a folder that remembers what has passed")
    parser.add_argument("build", type=Path, help="a build folder with a compile_commands.json")
    parser.add_argument("unit", type=Path, nargs="+")
    given = parser.parse_args()
    groups = grouped(read_units(given.build, given.unit))
    files = write_groups(groups, given.build.resolve() / "tidy")
    if given.passed is not None:
        given.passed.mkdir(parents=True, exist_ok=True)
        forget_old(given.passed)
    failed = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        checks = [
            pool.submit(check, given.build, file, group, given.passed)
            for file, group in zip(files, groups, strict=True)
        ]
        for one in checks:
            found_nothing, said = one.result()
            failed += not found_nothing
            print(said, end="", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
