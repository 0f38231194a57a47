"""The options of modelbroker.run. Imports nothing: every program that it runs waits for this."""

import os

TYPE_CHECKING = False  # as type checkers know it; typing takes long to import

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SEPARATOR = ":"


class UsageError(Exception):
    """Of the command line; the text says which word and what to write instead."""


class Options:
    """A command line that was read."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        """What the options say, as MODELBROKER_* for this process and its children."""
        self.this_process_only = False
        self.asked = ""
        """--help or --version."""
        self.way = ""
        """How the program is given: "-m", "-c", or "" for a path."""
        self.program: list[str] = []
        """The module, code or path, and the program's arguments."""


def read(arguments: "Sequence[str]") -> Options:
    """Options stand before the program; from its name on all belongs to the program."""
    options = Options()
    rest = list(arguments)
    while rest:
        word = rest[0]
        if word[:2] in ("-m", "-c"):
            options.way = word[:2]
            rest[:1] = [word[2:]] if word[2:] else []
            if not rest:
                raise UsageError(f"{options.way} needs a value")
            break
        if word == "-" or not word.startswith("-"):
            break
        rest.pop(0)
        if word == "--":
            break
        _read_one(word, rest, options)
        if options.asked:
            return options
    if not rest:
        raise UsageError("no program given: a script, a folder, -m module or -c code")
    options.program = rest
    return options


def _read_one(word: str, rest: "list[str]", options: Options) -> None:
    name, equals, value = word.partition("=")
    if name in _VALUES:
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value")
            value = rest.pop(0)
        variable, check = _VALUES[name]
        check(name, value)
        before = options.variables.get(variable)
        repeats = before is not None and name in _REPEATED
        options.variables[variable] = f"{before}{_SEPARATOR}{value}" if repeats else value
    elif name == "--report":
        if equals and not value:
            raise UsageError("--report= needs a file; --report alone writes to stderr")
        to_file = equals and value != "-"
        options.variables["MODELBROKER_REPORT"] = os.path.abspath(value) if to_file else "-"
    elif equals or name not in _SWITCHES:
        raise UsageError(
            f"unknown option {word!r} (python's own options stand before -m modelbroker.run)"
        )
    elif name == "--resident-only":
        options.variables["MODELBROKER_RESIDENT_ONLY"] = "1"
    elif name == "--this-process-only":
        options.this_process_only = True
    else:
        options.asked = "--help" if name == "-h" else name


def _check_glob(name: str, value: str) -> None:
    if not value or _SEPARATOR in value:
        raise UsageError(
            f"{name} {value!r}: a glob must not be empty nor contain {_SEPARATOR!r}; "
            "'?' matches any one character"
        )


def _check_size(name: str, value: str) -> None:
    from .sizes import bytes_of

    try:
        bytes_of(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_endpoint(name: str, value: str) -> None:
    if value.startswith("ipc:///") and value.endswith("/broker.sock") and len(value) < 100:
        return
    from .._endpoint import parse

    try:
        parse(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


_VALUES: "dict[str, tuple[str, Callable[[str, str], None]]]" = {
    "--only": ("MODELBROKER_ONLY", _check_glob),
    "--skip": ("MODELBROKER_SKIP", _check_glob),
    "--min-size": ("MODELBROKER_MIN_SIZE", _check_size),
    "--endpoint": ("MODELBROKER_ENDPOINT", _check_endpoint),
}
_REPEATED = ("--only", "--skip")
_SWITCHES = ("--resident-only", "--this-process-only", "--help", "-h", "--version")

HELP = """\
usage: python [python's options] -m modelbroker.run [options] PROGRAM [arguments]

Runs a Python program as `python PROGRAM` does. Weights that it loads from .safetensors
files into torch come from the broker's memory: one copy for all processes of this host.
Without a broker, and for files that cannot be shared, it runs as without modelbroker.

PROGRAM is a script, a folder or zip file with a __main__.py, -m MODULE, or -c CODE.

options:
  --report              at exit, say on stderr what was shared, what was not, and why
  --report=FILE         append that to FILE as JSON lines, one a file and process
  --only GLOB           share only files whose path matches; may be repeated
  --skip GLOB           never share files whose path matches; may be repeated
  --min-size SIZE       share no smaller files (default 1MiB; 500MB, 2GiB, bytes)
  --resident-only       attach to models that are in memory; load none
  --endpoint ENDPOINT   the broker's socket, ipc:///<run directory>/broker.sock
  --this-process-only   child processes run as without modelbroker
  -h, --help            show this text
  --version             show the version

Child processes share too: the options are passed to them as MODELBROKER_REPORT,
MODELBROKER_ONLY and MODELBROKER_SKIP (globs separated by ':'), MODELBROKER_MIN_SIZE,
MODELBROKER_RESIDENT_ONLY and MODELBROKER_ENDPOINT. Such variables can be set instead of
options; an option is stronger. MODELBROKER_AUTO=0 switches all sharing off.

examples:
  modelbroker serve &
  python -m modelbroker.run --report embed.py ./bert
  python -m modelbroker.run --skip '*/lora/*' --min-size 100MB paint.py
  python -m modelbroker.run -m gunicorn --workers 4 app:app
"""
