"""The command line of modelbroker.run: what is read and refused, what belongs to the program."""

from __future__ import annotations

import os

import pytest

from modelbroker._sharing import options
from modelbroker._sharing.settings import Settings

APP = ["app.py"]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], Settings()),
        (["--report"], Settings(report="-")),
        (["--report=-"], Settings(report="-")),
        (["--report=r.jsonl"], Settings(report=os.path.abspath("r.jsonl"))),
        (["--report=/tmp/r"], Settings(report="/tmp/r")),
        (["--only", "*/unet/*"], Settings(only=("*/unet/*",))),
        (["--only=a=b", "--only", "c"], Settings(only=("a=b", "c"))),
        (["--skip", "a", "--skip", "b", "--only", "c"], Settings(only=("c",), skip=("a", "b"))),
        (["--skip", "--only"], Settings(skip=("--only",))),
        (["--min-size", "500MB"], Settings(min_size=500_000_000)),
        (["--min-size=0", "--min-size=1"], Settings(min_size=1)),
        (["--resident-only"], Settings(resident_only=True)),
        (["--endpoint", "ipc:///r/broker.sock"], Settings(endpoint="ipc:///r/broker.sock")),
    ],
)
def test_options_say_what_the_variables_say(arguments: list[str], settings: Settings) -> None:
    read = options.read([*arguments, *APP])
    assert Settings.from_environment(read.variables) == settings
    assert (read.way, read.program, read.asked) == ("", APP, "")
    assert not read.this_process_only


@pytest.mark.parametrize(
    ("arguments", "way", "program"),
    [
        (["app.py", "--report", "--", "-m"], "", ["app.py", "--report", "--", "-m"]),
        (["--report", "app.py"], "", ["app.py"]),
        (["--", "--report"], "", ["--report"]),
        (["--", "-m", "x"], "", ["-m", "x"]),
        (["-"], "", ["-"]),
        (["-m", "module", "--help"], "-m", ["module", "--help"]),
        (["-mmodule"], "-m", ["module"]),
        (["--report", "-c", "pass", "-c"], "-c", ["pass", "-c"]),
        (["-cpass"], "-c", ["pass"]),
    ],
)
def test_from_its_name_on_all_belongs_to_the_program(
    arguments: list[str], way: str, program: list[str]
) -> None:
    read = options.read(arguments)
    assert (read.way, read.program) == (way, program)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "no program given: a script, a folder, -m module or -c code"),
        (["--report"], "no program given"),
        (["--"], "no program given"),
        (["-m"], "-m needs a value"),
        (["-c"], "-c needs a value"),
        (["--only"], "--only needs a value"),
        (["--only", "", "app.py"], "--only '': a glob must not be empty nor contain ':'"),
        (["--skip=a:b", "app.py"], "--skip 'a:b': a glob must not be empty nor contain ':'"),
        (["--min-size", "big", "app.py"], "--min-size: 'big' is not a size: write bytes, or a"),
        (["--report=", "app.py"], "--report= needs a file; --report alone writes to stderr"),
        (["--endpoint", "tcp://h:1", "app.py"], "--endpoint: the endpoint 'tcp://h:1' must have"),
        (["--endpoint", f"ipc:///{'x' * 120}/broker.sock", "app.py"], "--endpoint: the socket"),
        (["--resident", "app.py"], "unknown option '--resident' (python's own options stand"),
        (["--resident-only=1", "app.py"], "unknown option '--resident-only=1'"),
        (["-u", "app.py"], "unknown option '-u' (python's own options stand before -m"),
    ],
)
def test_a_wrong_command_line_is_named(arguments: list[str], why: str) -> None:
    with pytest.raises(options.UsageError) as refused:
        options.read(arguments)
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_need_no_program(word: str) -> None:
    assert options.read(["--report", word, "--nothing"]).asked == {"-h": "--help"}.get(word, word)


def test_the_help_has_every_option_and_variable() -> None:
    words = [*options._VALUES, *options._SWITCHES, "--report"]
    variables = [name for name, _ in options._VALUES.values()]
    for word in [*words, *variables, "MODELBROKER_REPORT", "MODELBROKER_RESIDENT_ONLY"]:
        assert word in options.HELP
    assert max(map(len, options.HELP.splitlines())) <= 90
