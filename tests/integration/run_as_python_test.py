"""`python -m modelbroker.run PROGRAM` is `python PROGRAM`: output, traceback, status, __main__.

No program here imports torch: what sharing does to those that do is tested elsewhere.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FACTS = """
import pickle, sys, __main__
simple = (str, type(None), dict)
for name, value in sorted(globals().items()):
    if name not in ("pickle", "sys", "simple", "name", "value"):
        print(name, value if isinstance(value, simple) else type(value).__name__)
print(sys.argv, sys.path, sys.flags, sys.dont_write_bytecode)
print(__main__.__dict__ is globals(), __builtins__.__name__, sys.excepthook is sys.__excepthook__)
print(__spec__ and (__spec__.name, __spec__.origin, __spec__.parent, __spec__.cached))
print([getattr(__loader__, name, None) for name in ("__name__", "name", "path", "archive")])
class Thing: pass
print(type(pickle.loads(pickle.dumps(Thing()))) is Thing, Thing.__module__)
print(sys._getframe().f_code.co_filename, sys.exc_info())
"""
FAILS = """
def inner(x):
    return x / 0

def outer():
    try:
        inner(1)
    except ZeroDivisionError as error:
        raise ValueError("from the program") from error

print("before", flush=True)
outer()
"""
HOOK = """
import sys
def hook(kind, value, trace):
    import traceback
    print("hook", kind, value, sys.exc_info(), value.__traceback__ is trace)
    print(sys.last_type, sys.last_value, sys.last_traceback is trace)
    print([(f.filename, f.lineno, f.name) for f in traceback.extract_tb(trace)])
    {more}
sys.excepthook = hook
def f():
    1 / 0
f()
"""
AT_THE_END = """
import atexit, sys, threading, time
def wait():
    time.sleep(0.05)
    print("thread ends")
atexit.register(lambda: print("atexit", sys.excepthook is sys.__excepthook__))
threading.Thread(target=wait).start()
class Last:
    def __del__(self): print("del", __name__)
last = Last()
{more}
"""
KILLS_ITSELF = """
import os, signal, time
print("before", flush=True)
os.kill(os.getpid(), signal.{name})
time.sleep(10)
"""
WRITES_TWICE = """
import multiprocessing, os, sys
class Result:
    def __init__(self, n): self.n = n
def work(n): return Result(n * n), __name__, sys.argv, os.path.basename(__file__)
if __name__ == "__main__":
    for method in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            [(result, name, argv, file)] = pool.map(work, [3])
            print(method, result.n, type(result) is Result, name, argv, file)
"""
CHILD = """
import subprocess, sys
code = "import sys; print(sys.path, sys.argv, sys.modules.get('sitecustomize'))"
print(subprocess.run([sys.executable, "-c", code, "x"], capture_output=True, text=True))
"""
SITE_CUSTOMIZE = "import sys\nsys.stderr.write('custom %s\\n' % __file__)\nsys.customized = True\n"

FILES = {
    "facts.py": FACTS,
    "folder/deep.py": FACTS,
    "module.py": FACTS,
    "package/__init__.py": "print('package', __name__)\n",
    "package/__main__.py": FACTS,
    "package/part.py": FACTS,
    "no_main/__init__.py": "",
    "broken/__init__.py": "import nothing_of_this_name\n",
    "program/__main__.py": FACTS + "import sibling\n",
    "program/sibling.py": "print(__name__, __file__)\n",
    "failing_program/__main__.py": FAILS,
    "empty/readme.txt": "",
    "fails.py": FAILS,
    "chained.py": "try:\n    import nothing_of_this_name\nfinally:\n    1 / 0\n",
    "imports_fails.py": "import fails\n",
    "syntax.py": "print('never')\ndef f(:\n    pass\n",
    "null.py": "x = 'ä'\n",
    "group.py": "raise RuntimeError('multi\\nline', 'ä')\n",
    "exit_3.py": "import sys\nsys.exit(3)\n",
    "exit_text.py": "import sys\nprint('out')\nsys.exit('text')\n",
    "exit_none.py": "raise SystemExit\n",
    "exit_odd.py": "raise SystemExit((1, 2))\n",
    "exit_in_function.py": "import sys\ndef f(): sys.exit(True)\nf()\n",
    "exit_hard.py": "import os\nos._exit(7)\n",
    "generator_exit.py": "raise GeneratorExit('odd')\n",
    "interrupt.py": "raise KeyboardInterrupt\n",
    "sigint.py": KILLS_ITSELF.format(name="SIGINT"),
    "sigterm.py": KILLS_ITSELF.format(name="SIGTERM"),
    "sigkill.py": KILLS_ITSELF.format(name="SIGKILL"),
    "hook.py": HOOK.format(more="pass"),
    "hook_fails.py": HOOK.format(more="value.nothing"),
    "hook_exits.py": HOOK.format(more="sys.exit(5)"),
    "hook_default.py": HOOK.format(more="sys.__excepthook__(kind, value, trace)"),
    "hook_interrupt.py": "import sys\nsys.excepthook = lambda *what: print(what[:2])\n"
    "raise KeyboardInterrupt\n",
    "hook_gone.py": "import sys\ndel sys.excepthook\n1 / 0\n",
    "end.py": AT_THE_END.format(more=""),
    "end_fails.py": AT_THE_END.format(more="1 / 0"),
    "end_exits.py": AT_THE_END.format(more="sys.exit(4)"),
    "future.py": "x: undefined_name = 1\nprint(__annotations__)\n",
    "dataclass.py": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "from typing import get_type_hints\n@dataclass\nclass A:\n    x: B\nclass B: pass\n"
    "print(get_type_hints(A))\n",
    "inspects.py": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))\n"
    "print(inspect.getmodule(f).__name__, inspect.getsourcefile(f))\n",
    "stdin.py": "import sys\nprint(sys.stdin.read())\n",
    "processes.py": WRITES_TWICE,
    "child.py": CHILD,
    "latin.py": "# coding: latin-1\nprint(ascii('\xe4'))\n",
    "custom/sitecustomize.py": SITE_CUSTOMIZE,
    "custom_fails/sitecustomize.py": SITE_CUSTOMIZE + "1 / 0\n",
    "custom_imports/sitecustomize.py": "import nothing_of_this_name\n",
    "customized.py": "import sys\nprint(sys.customized, sys.modules['sitecustomize'])\n" + CHILD,
    "-odd.py": FACTS,
}

ROWS: dict[str, list[str]] = {
    "script": ["facts.py", "a", "--report", "-m", "--", "--help"],
    "script by ./": ["./facts.py"],
    "script by ..": ["folder/../facts.py"],
    "script in a folder": ["folder/deep.py"],
    "script by a link": ["link.py"],
    "script without a suffix": ["program_file"],
    "script of bytecode": ["compiled.pyc"],
    "script from stdin": ["-", "a"],
    "script after --": ["--", "facts.py", "--", "x"],
    "script with a dash": ["--", "-odd.py"],
    "-m module": ["-m", "module", "a", "--only", "b"],
    "-mmodule": ["-mmodule"],
    "-m package": ["-m", "package", "-c"],
    "-m package.part": ["-m", "package.part"],
    "-c": ["-c", FACTS, "--report", "-c", "x"],
    "-ccode": ["-cprint(1)"],
    "folder": ["program", "a"],
    "folder by ./": ["./program/"],
    "zip": ["program.zip", "a"],
    "latin-1": ["latin.py"],
    "future annotations": ["future.py"],
    "dataclass": ["dataclass.py"],
    "inspect": ["inspects.py"],
    "stdin": ["stdin.py"],
    "fails": ["fails.py"],
    "fails in an import": ["imports_fails.py"],
    "chained": ["chained.py"],
    "long message": ["group.py"],
    "-m fails": ["-m", "fails"],
    "-c fails": ["-c", FAILS],
    "-c fails in a file": ["-c", "import fails"],
    "folder fails": ["failing_program"],
    "syntax error": ["syntax.py"],
    "-m syntax error": ["-m", "syntax"],
    "-c syntax error": ["-c", "def f(:\n  pass"],
    "missing file": ["nothing.py", "a"],
    "missing folder": ["nothing/nothing.py"],
    "missing module": ["-m", "nothing_of_this_name"],
    "module with its suffix": ["-m", "module.py"],
    "package without main": ["-m", "no_main"],
    "package that fails": ["-m", "broken.part"],
    "folder without main": ["empty"],
    "exit 3": ["exit_3.py"],
    "-m exit 3": ["-m", "exit_3"],
    "-c exit 3": ["-c", "raise SystemExit(3)"],
    "exit text": ["exit_text.py"],
    "exit none": ["exit_none.py"],
    "exit odd": ["exit_odd.py"],
    "exit in a function": ["exit_in_function.py"],
    "exit hard": ["exit_hard.py"],
    "generator exit": ["generator_exit.py"],
    "interrupt": ["interrupt.py"],
    "-m interrupt": ["-m", "interrupt"],
    "SIGINT": ["sigint.py"],
    "-m SIGINT": ["-m", "sigint"],
    "-c SIGINT": ["-c", KILLS_ITSELF.format(name="SIGINT")],
    "SIGTERM": ["sigterm.py"],
    "SIGKILL": ["sigkill.py"],
    "hook": ["hook.py"],
    "hook fails": ["hook_fails.py"],
    "hook exits": ["hook_exits.py"],
    "hook shows": ["hook_default.py"],
    "-m hook": ["-m", "hook"],
    "hook of an interrupt": ["hook_interrupt.py"],
    "hook gone": ["hook_gone.py"],
    "the end": ["end.py"],
    "the end of a failure": ["end_fails.py"],
    "the end of an exit": ["end_exits.py"],
    "processes": ["processes.py", "x"],
    "-m processes": ["-m", "processes"],
    "child": ["child.py"],
}

FLAGS = [["-O"], ["-W", "error", "-X", "dev"], ["-B", "-s"]]
if sys.version_info >= (3, 11):
    FLAGS.append(["-P"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="latin-1" if name == "latin.py" else "utf-8")
    (folder / "link.py").symlink_to("folder/deep.py")
    (folder / "program_file").write_text(FACTS)
    with zipfile.ZipFile(folder / "program.zip", "w") as archive:
        for path in (folder / "program").iterdir():
            archive.write(path, path.name)
    compileall.compile_file(folder / "facts.py", quiet=1, legacy=True)
    (folder / "facts.pyc").rename(folder / "compiled.pyc")
    return folder


def outcome(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> tuple[str, str, int]:
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", **(environment or {})}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        input=FACTS if "-" in command else "given\n",
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


def compare(
    program: list[str],
    folder: Path,
    python_flags: list[str] | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[str, str, int]:
    """Runs it both ways; returns what both did."""
    flags = python_flags or []
    stock = outcome([*flags, *program], folder, environment)
    ours = outcome([*flags, "-m", "modelbroker.run", *program], folder, environment)
    assert ours == stock
    return stock


@pytest.mark.parametrize("row", ROWS)
def test_it_runs_a_program_as_python_does(folder: Path, row: str) -> None:
    assert any(compare(ROWS[row], folder)) or row in ("exit none",)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("row", ["script", "-m module", "-c", "folder", "fails"])
def test_it_runs_with_pythons_own_options(folder: Path, flags: list[str], row: str) -> None:
    compare(ROWS[row], folder, flags)


@pytest.mark.parametrize("custom", ["custom", "custom_fails", "custom_imports"])
def test_a_sitecustomize_of_the_user_runs_in_it_and_in_children(folder: Path, custom: str) -> None:
    path = f"{folder / custom}:{os.environ.get('PYTHONPATH', '')}"
    program = ["customized.py" if custom == "custom" else "child.py"]
    output, errors, status = compare(program, folder, environment={"PYTHONPATH": path})
    assert status == 0
    assert errors
    assert output.count("custom") >= 2 or custom == "custom_imports"


def test_what_comes_after_a_closed_stdout_is_the_same(folder: Path) -> None:
    code = "import sys; print('x' * 100000); sys.stdout.flush()"
    done = [
        subprocess.run(
            f'{sys.executable} {way} -c "{code}" | head -c 1; echo ${{PIPESTATUS[0]}}',
            cwd=folder,
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        for way in ("", "-m modelbroker.run")
    ]
    assert (done[0].stdout, done[0].stderr) == (done[1].stdout, done[1].stderr)
