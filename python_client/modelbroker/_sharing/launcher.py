"""Runs a program as `python` does, in this process, with sharing prepared for it and its children.

Imports as little as it can: all of it is time before the program's first line. Where `python` and
this could differ, tests/integration/run_as_python_test.py compares them.
"""

import builtins
import os
import sys

from . import options as command_line

TYPE_CHECKING = False  # as type checkers know it; typing takes long to import

if TYPE_CHECKING:
    from types import CodeType, ModuleType, TracebackType
    from typing import Any, NoReturn

_SITE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "site")
_USAGE = 2  # python's exit status for a wrong command line


def main() -> None:
    """Of `python -m modelbroker.run`."""
    try:
        options = command_line.read(sys.argv[1:])
    except command_line.UsageError as error:
        sys.stderr.write(f"modelbroker.run: {error}; see python -m modelbroker.run --help\n")
        sys.exit(_USAGE)
    if options.asked:
        sys.stdout.write(_answer(options.asked))
        return
    if os.environ.get("MODELBROKER_AUTO") != "0":
        _prepare(options)
    _run(options.way, options.program)


def _answer(asked: str) -> str:
    if asked == "--help":
        return command_line.HELP
    from .. import __version__

    return f"modelbroker {__version__}\n"


def _prepare(options: command_line.Options) -> None:
    from .install import install_for_this_process

    if options.this_process_only:
        install_for_this_process(options.variables)
        os.environ.pop("MODELBROKER_AUTO", None)  # of a modelbroker.run around this one
        return
    install_for_this_process()
    os.environ.update(options.variables)
    os.environ["MODELBROKER_AUTO"] = "1"
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != _SITE]
    os.environ["PYTHONPATH"] = os.pathsep.join([_SITE, *others] if any(others) else [_SITE])


# ---- as python does it


def _run(way: str, program: "list[str]") -> None:
    main_module = _new_main_module()
    failure: BaseException | None = None
    try:
        _execute(way, program, main_module)
    except SystemExit:
        raise
    except BaseException as error:
        failure = error
    if failure is not None:  # after the handler: a hook sees no exception under way
        _end_by(failure)


_ours: "ModuleType"  # keeps what python began with as __main__: our frames stand on it


def _new_main_module() -> "ModuleType":
    global _ours
    _ours = sys.modules["__main__"]
    new = type(sys)("__main__")
    new.__dict__["__builtins__"] = builtins
    if "__annotations__" in vars(_ours):
        new.__annotations__ = {}
    sys.modules["__main__"] = new
    return new


def _execute(way: str, program: "list[str]", main_module: "ModuleType") -> None:
    sys.argv = [way or program[0], *program[1:]]
    if way == "-m":
        _execute_module(program[0])
    elif way == "-c":
        _execute_code(program[0], main_module)
    elif program[0] == "-":
        _execute_stdin(main_module)
    else:
        _execute_path(program[0], main_module)


def _execute_module(name: str) -> None:
    import runpy

    runpy._run_module_as_main(name)  # type: ignore[attr-defined]  # as python calls it


def _execute_code(code: str, main_module: "ModuleType") -> None:
    from importlib.machinery import BuiltinImporter

    main_module.__loader__ = BuiltinImporter
    _set_path("")
    if sys.version_info >= (3, 13):  # whose tracebacks show this code
        import linecache

        lines = [line + "\n" for line in code.splitlines()]
        linecache.cache["<string>"] = (len(code), None, lines, "<string>")
    exec(_compiled(code + "\n", "<string>"), main_module.__dict__)


def _execute_stdin(main_module: "ModuleType") -> None:
    from importlib.machinery import BuiltinImporter

    main_module.__loader__ = BuiltinImporter
    main_module.__file__ = "<stdin>"
    main_module.__dict__["__cached__"] = None
    _set_path("")
    exec(_compiled(sys.stdin.buffer.read(), "<stdin>"), main_module.__dict__)


def _execute_path(given: str, main_module: "ModuleType") -> None:
    path = os.path.join(os.getcwd(), given)  # as __file__ has it, with "./" and ".."
    if _is_importable(path):  # a folder or an archive
        import runpy

        _set_path(path, always=True)
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]  # as python calls it
        return
    from importlib.machinery import SourceFileLoader, SourcelessFileLoader
    from importlib.util import MAGIC_NUMBER

    content = _read(path)
    compiled = content.startswith(MAGIC_NUMBER)
    main_module.__loader__ = (SourcelessFileLoader if compiled else SourceFileLoader)(
        "__main__", path
    )
    main_module.__file__ = path
    main_module.__dict__["__cached__"] = None
    _set_path(os.path.dirname(os.path.realpath(path)))
    exec(_code_of(content) if compiled else _compiled(content, path), main_module.__dict__)


def _is_importable(path: str) -> bool:
    for hook in sys.path_hooks:
        try:
            sys.path_importer_cache[path] = hook(path)
        except ImportError:
            continue
        return True
    return False


def _set_path(first: str, always: bool = False) -> None:
    """Puts `first` where python has put the working folder for the sake of our -m."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        if always:
            sys.path.insert(0, first)
    else:
        sys.path[0] = first


def _read(path: str) -> bytes:
    from io import open_code

    try:
        with open_code(path) as file:
            return file.read()
    except OSError as error:
        why = f"[Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.orig_argv[0]}: can't open file {path!r}: {why}\n")
        sys.exit(_USAGE)


def _compiled(source: "str | bytes", name: str) -> "CodeType":
    code: CodeType = compile(source, name, "exec", dont_inherit=True)
    return code


def _code_of(content: bytes) -> "CodeType":
    import marshal

    code: CodeType = marshal.loads(content[16:])  # past magic, flags, and time or hash
    return code


# ---- how it ends


def _end_by(failure: BaseException) -> "NoReturn":
    """As the interpreter ends with it, but without our frames in the traceback.

    They would come back if it went through them once more: so it is shown here.
    """
    trace = failure.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    _show(failure.with_traceback(trace), trace)
    if isinstance(failure, KeyboardInterrupt):  # python ends itself by the signal then
        sys.excepthook = lambda *_: None
        raise failure
    sys.exit(1)


def _show(failure: BaseException, trace: "TracebackType | None") -> None:
    what: Any = (type(failure), failure, trace)
    sys.last_type, sys.last_value, sys.last_traceback = what
    if sys.version_info >= (3, 12):
        sys.last_exc = failure
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        sys.stderr.write("sys.excepthook is missing\n")
        sys.__excepthook__(*what)
        return
    try:
        hook(*what)
    except SystemExit:
        raise
    except BaseException as error:
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        sys.stderr.write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(error), error.with_traceback(inner), inner)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(*what)
