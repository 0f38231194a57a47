"""A failing test is run once more alone: one that passes then is named, any other fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import run_tests

_TOOL = Path(run_tests.__file__)

# A test that fails until it has failed as often as its name's number says.
_PYTEST_HEAD = """
import os, pathlib

def fail_times(name, count):
    file = pathlib.Path(__file__).with_name(name)
    failed = len(file.read_text()) if file.exists() else 0
    if failed < count:
        file.write_text("x" * (failed + 1))
        raise AssertionError(f"{name} failed")
"""


@dataclass
class Ran:
    """What the tool did."""

    status: int
    output: str
    flaky: list[str]


def _run(folder: Path, *arguments: str) -> Ran:
    flaky = folder / "flaky.txt"
    done = subprocess.run(
        [sys.executable, _TOOL, "--flaky", str(flaky), *arguments],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Ran(
        done.returncode, done.stdout, flaky.read_text().splitlines() if flaky.exists() else []
    )


def _pytest(folder: Path, body: str, *arguments: str, note: str = "") -> Ran:
    (folder / "pytest.ini").write_text("[pytest]\npython_files = *_test.py\n")
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub/a_test.py").write_text(_PYTEST_HEAD + body)
    return _run(folder, "--note", note, "pytest", "-p", "no:cacheprovider", *arguments)


_ONCE = """
import pytest
class TestIt:
    @pytest.mark.parametrize("x", ["a.b", "c d"])
    def test_once(self, x):
        fail_times("once" + x, 1 if x == "a.b" else 0)
"""


@pytest.mark.parametrize("arguments", [[], ["--numprocesses", "2", "--dist", "loadfile"]])
def test_a_flaky_python_test_is_named_and_the_run_goes_on(
    tmp_path: Path, arguments: list[str]
) -> None:
    ran = _pytest(tmp_path, _ONCE, *arguments, note="Python 9")
    name = "FLAKY sub/a_test.py::TestIt::test_once[a.b] (Python 9)"
    assert (ran.status, ran.flaky) == (0, [name]), ran.output
    assert name in ran.output
    assert _run(tmp_path, "report").output.splitlines() == [name]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("def test_x(): fail_times('x', 2)\n", 1, "failed again: sub/a_test.py::test_x"),
        ("import no_such_module\n", 2, "no_such_module"),
        ("def test_x(): pass\n", 0, "1 passed"),
        ("", 5, "no tests ran"),
        ("".join(f"def test_{i}(): fail_times('{i}', 1)\n" for i in range(6)), 1, "6 failed"),
        (
            "def test_x(): fail_times('AddressSanitizer: heap-use-after-free', 1)\n",
            1,
            "crashed: sub/a_test.py::test_x: AddressSanitizer",
        ),
    ],
    ids=["again", "not collected", "all passed", "none", "many", "sanitizer"],
)
def test_what_is_not_flaky_in_python(tmp_path: Path, body: str, status: int, words: str) -> None:
    ran = _pytest(tmp_path, body)
    assert (ran.status, ran.flaky) == (status, []), ran.output
    assert words in ran.output


def test_an_error_of_a_fixture_is_tried_again_too(tmp_path: Path) -> None:
    body = """
import pytest
@pytest.fixture
def ended():
    yield
    fail_times("end", 1)
def test_end(ended): pass
"""
    ran = _pytest(tmp_path, body)
    assert (ran.status, ran.flaky) == (0, ["FLAKY sub/a_test.py::test_end"]), ran.output


def test_a_python_process_that_crashes_is_not_tried_again(tmp_path: Path) -> None:
    body = """
def test_dies():
    import signal
    try:
        fail_times("dies", 1)
    except AssertionError:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = _pytest(tmp_path, body, "--numprocesses", "1")
    assert ran.status != 0, ran.output
    assert ran.flaky == []
    assert "crashed" in ran.output


def _ctest(folder: Path, commands: dict[str, str], *arguments: str) -> Ran:
    """A suite of shell commands, described as CMake would; no build is needed for that."""
    lines = [f"add_test([==[{name}]==] sh -c [==[{text}]==])" for name, text in commands.items()]
    (folder / "CTestTestfile.cmake").write_text("\n".join(lines) + "\n")
    return _run(folder, "ctest", "--no-tests=error", *arguments)


_FIRST_TIME = "test -e seen-{0} && exit 0; touch seen-{0}; "


@pytest.mark.parametrize("arguments", [[], ["--parallel", "4"], ["--tests-regex", "Block"]])
def test_a_flaky_program_is_named_and_the_run_goes_on(tmp_path: Path, arguments: list[str]) -> None:
    commands = {
        "Block.Flaky/0(x)": _FIRST_TIME.format(1) + "echo bad; exit 1",
        "Block.Good": "echo x >> good",
    }
    ran = _ctest(tmp_path, commands, *arguments)
    assert (ran.status, ran.flaky) == (0, ["FLAKY Block.Flaky/0(x)"]), ran.output
    assert (tmp_path / "good").read_text() == "x\n", "a good one was run again"


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ({"Bad": "exit 1"}, "failed again: Bad"),
        ({"Bad": "exit 1", "Once": _FIRST_TIME.format(1) + "exit 1"}, "failed again: Bad"),
        ({"Dies": _FIRST_TIME.format(1) + "kill -SEGV $$"}, "crashed: Dies: SEGFAULT"),
        ({"Dies": _FIRST_TIME.format(1) + "kill -ABRT $$"}, "crashed: Dies: Subprocess aborted"),
        (
            {"Race": _FIRST_TIME.format(1) + "echo WARNING: ThreadSanitizer: data race; exit 66"},
            "crashed: Race: ThreadSanitizer",
        ),
        ({f"T{i}": _FIRST_TIME.format(i) + "exit 1" for i in range(6)}, "6 failed"),
        ({}, "No tests were found"),
    ],
    ids=["again", "one of two", "segfault", "abort", "sanitizer", "many", "none"],
)
def test_what_is_not_flaky_in_programs(
    tmp_path: Path, commands: dict[str, str], words: str
) -> None:
    ran = _ctest(tmp_path, commands)
    assert ran.status != 0, ran.output
    assert words in ran.output
    assert ran.flaky == (["FLAKY Once"] if "Once" in commands else [])


def test_a_program_that_is_not_there_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "CTestTestfile.cmake").write_text("add_test(Gone /no/such/program)\n")
    ran = _run(tmp_path, "ctest")
    assert ran.status != 0, ran.output
    assert ran.flaky == []


def test_the_report_says_each_name_once_and_nothing_where_nothing_was(tmp_path: Path) -> None:
    assert _run(tmp_path, "report").output == ""
    (tmp_path / "flaky.txt").write_text("FLAKY a\nFLAKY b\nFLAKY a\n")
    assert _run(tmp_path, "report").output == "FLAKY a\nFLAKY b\n"
