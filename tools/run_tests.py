"""Runs ctest or pytest; a test that fails is run once more alone, and is flaky if it passes then.

    run_tests.py [--flaky FILE] [--note TEXT] ctest ARGUMENT...
    run_tests.py [--flaky FILE] [--note TEXT] pytest ARGUMENT...
    run_tests.py [--flaky FILE] report

The names of flaky tests are added to FILE, and `report` prints them: `FLAKY <name>`. A run fails at
once, without a second try, where more than a few tests fail, where one crashed or was stopped by a
sanitizer, and where the runner itself failed (a file that cannot be collected, say): none of these
is flakiness.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_RERUN = 5
_FLAKY_FILE = Path("build/flaky.txt")

# How ctest calls an end with a status or a timeout; anything else is the name of a signal.
_CTEST_FAILURES = ("Failed", "Timeout")
_CTEST_SUMMARY = re.compile(r"\s+\d+ - (?P<name>.+) \((?P<how>[^()]+)\)(?:\s|$)")
_SANITIZER = re.compile(
    r"(?:Address|Leak|Memory|Thread|UndefinedBehavior)Sanitizer|: runtime error: "
)
_XDIST_CRASH = re.compile(r"worker '\w+' crashed")


@dataclass(frozen=True)
class Outcome:
    """What a JUnit file says of one test."""

    name: str
    passed: bool
    failed: bool
    crash: str = ""  # why it must not be tried again


def _text(case: ElementTree.Element) -> str:
    return "\n".join(
        part for element in case.iter() for part in (element.get("message"), element.text) if part
    )


def _crash(text: str) -> str:
    found = _SANITIZER.search(text) or _XDIST_CRASH.search(text)
    return found.group().strip(" :") if found else ""


def _ctest_outcome(case: ElementTree.Element, how: str) -> Outcome:
    name = case.get("name", "?")
    if case.find("failure") is None:
        return Outcome(name, case.get("status") == "run", failed=False)
    crash = "" if how in _CTEST_FAILURES else how or "a crash"
    return Outcome(name, passed=False, failed=True, crash=crash or _crash(_text(case)))


def _pytest_outcome(case: ElementTree.Element) -> Outcome:
    """The name is the node's id: the file's path, the classes, the function and its parameters."""
    file, classes = case.get("file", ""), case.get("classname", "").split(".")
    module = file.removesuffix(".py").split("/")
    name = "::".join([file, *classes[len(module) :], case.get("name", "?")])
    if case.find("failure") is None and case.find("error") is None:
        return Outcome(name, case.find("skipped") is None, failed=False)
    return Outcome(name, passed=False, failed=True, crash=_crash(_text(case)))


@dataclass(frozen=True)
class Run:
    """How the runner ended, and every test of it."""

    status: int
    outcomes: list[Outcome]


class Runner:
    """One of the two test programs."""

    some_failed: int  # its exit status when tests failed and nothing else did

    def run(self, arguments: Sequence[str], junit: Path) -> Run:
        """Runs it to its end, on our output; `junit` is a file that it may write."""
        raise NotImplementedError

    def rerun(self, arguments: Sequence[str], failed: Sequence[str], junit: Path, /) -> Run:
        """Runs those tests alone, one after the other."""
        raise NotImplementedError


class _Ctest(Runner):
    some_failed = 8

    def run(self, arguments: Sequence[str], junit: Path) -> Run:
        command = ["ctest", *arguments, "--output-junit", str(junit)]
        lines = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        # How a test failed stands in the summary alone: "    3 - Name (SEGFAULT)".
        found = (_CTEST_SUMMARY.match(line) for line in lines)
        how = {match["name"]: match["how"] for match in found if match}
        outcomes = [
            _ctest_outcome(case, how.get(case.get("name", ""), "")) for case in _cases(junit)
        ]
        return Run(process.returncode, outcomes)

    def rerun(self, arguments: Sequence[str], _failed: Sequence[str], junit: Path, /) -> Run:
        # It remembers which failed. The last of two --parallel counts.
        return self.run([*arguments, "--rerun-failed", "--parallel", "1"], junit)


class _Pytest(Runner):
    some_failed = 1

    def run(self, arguments: Sequence[str], junit: Path) -> Run:
        # This family of JUnit files tells where a test stands.
        family = ["-o", "junit_family=xunit1"]
        command = [sys.executable, "-m", "pytest", *arguments, *family, "--junit-xml", str(junit)]
        status = subprocess.run(command, check=False).returncode
        return Run(status, [_pytest_outcome(case) for case in _cases(junit)])

    def rerun(self, _arguments: Sequence[str], failed: Sequence[str], junit: Path, /) -> Run:
        # The names say it all: no choice by marks, no further processes.
        return self.run(["-p", "no:cacheprovider", "-m", "", *failed], junit)


RUNNERS: dict[str, Runner] = {"ctest": _Ctest(), "pytest": _Pytest()}


def _cases(junit: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.parse(junit).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []  # the runner ended before it wrote it


def _say(text: str) -> None:
    print(f"run_tests: {text}", flush=True)


def run(runner: Runner, arguments: Sequence[str], flaky_file: Path, note: str = "") -> int:
    """The exit status: 0 if each test passed, at the second try at the latest."""
    with tempfile.TemporaryDirectory(prefix="run-tests-") as folder:
        first = runner.run(arguments, Path(folder, "first.xml"))
        if first.status != runner.some_failed:
            return first.status
        failed = [outcome for outcome in first.outcomes if outcome.failed]
        names = list(dict.fromkeys(outcome.name for outcome in failed))  # a teardown has its own
        crashed = [outcome for outcome in failed if outcome.crash]
        if crashed:
            _say(f"not run again, it crashed: {crashed[0].name}: {crashed[0].crash}")
            return first.status
        if not 0 < len(names) <= MAX_RERUN:
            _say(f"not run again: {len(names)} failed, and only 1 to {MAX_RERUN} may be flaky")
            return first.status
        _say(f"once more, alone: {', '.join(names)}")
        second = runner.rerun(arguments, names, Path(folder, "second.xml"))
    passed = {outcome.name for outcome in second.outcomes if outcome.passed}
    passed -= {outcome.name for outcome in second.outcomes if not outcome.passed}
    _record(flaky_file, [name for name in names if name in passed], note)
    lost = [name for name in names if name not in passed]
    if lost or second.status != 0:
        _say(f"failed again: {', '.join(lost) or f'exit status {second.status}'}")
        return second.status or first.status
    return 0


def _record(file: Path, names: Sequence[str], note: str) -> None:
    if not names:
        return
    lines = [f"FLAKY {name}{f' ({note})' if note else ''}" for name in names]
    print("\n".join(lines), flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:  # several runs may end at once: one write each
        out.write("\n".join(lines) + "\n")


def report(file: Path) -> None:
    """Prints what was flaky since FILE was removed, each once."""
    if file.exists():
        print("\n".join(dict.fromkeys(file.read_text().splitlines())))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--flaky", type=Path, default=_FLAKY_FILE, help="file of the flaky tests' names"
    )
    parser.add_argument(
        "--note", default="", help="printed behind each name: which of several runs it was"
    )
    parser.add_argument("runner", choices=[*RUNNERS, "report"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    if given.runner == "report":
        report(given.flaky)
        return 0
    return run(RUNNERS[given.runner], given.arguments, given.flaky, given.note)


if __name__ == "__main__":
    sys.exit(main())
