"""modelbroker.run prepares sharing in its process and in its children, and in no other.

A package named torch, which is not the real one, records who would share, and how.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelbroker._sharing import launcher
from modelbroker._sharing.settings import Settings

# As the real one, it knows nothing of modelbroker; the record stands for modelbroker's door.
TORCH = """
import os, sys, types
VALUE = 1
def double(x):
    return 2 * x
if "modelbroker" in sys.modules:
    import multiprocessing
    def install(settings):
        with open(os.environ["RECORD"], "a") as record:
            record.write(f"{ROLE} {multiprocessing.current_process().name} {settings}\\n")
    ROLE = os.environ["ROLE"]
    door = types.ModuleType("modelbroker._sharing.door")
    door.install = install
    sys.modules[door.__name__] = door
"""
APP = """
import multiprocessing, os, subprocess, sys
def work(_):
    import torch
    return torch.VALUE
if __name__ == "__main__":
    for method in sys.argv[1:]:
        os.environ["ROLE"] = method
        if method == "self":
            import torch
        elif method == "subprocess":
            code = "import sys, torch; print(sys.path, 'sitecustomize' in sys.modules)"
            subprocess.run([sys.executable, "-c", code], check=True)
        elif method == "executable":
            subprocess.run("exec python -c 'import torch'", shell=True, check=True)
        elif method == "nested":
            run = ["-m", "modelbroker.run", "--skip=b", "-c", "import torch"]
            subprocess.run([sys.executable, *run])
        elif method == "isolated":
            code = "import sys; sys.path.append('.'); import torch"
            subprocess.run([sys.executable, "-E", "-c", code])
        else:
            multiprocessing.set_start_method(method, force=True)
            with multiprocessing.Pool(1, maxtasksperchild=1) as pool:
                print(pool.map(work, [1]))
"""
TRACELESS = """
import importlib.resources, importlib.util, inspect, pkgutil, sys
spec = importlib.util.find_spec("torch")
def kinds(values):
    return [getattr(value, "__name__", type(value).__name__) for value in values]
def facts(spec):
    return spec.name, spec.origin, spec.cached, spec.submodule_search_locations, type(spec.loader)
print(facts(spec), sorted(m.name for m in pkgutil.iter_modules(["."])))
import torch
print(facts(torch.__spec__), torch.__spec__.loader is torch.__loader__, vars(torch.__loader__))
print(inspect.getsource(torch.double), inspect.getfile(torch))
print(importlib.resources.files(torch).joinpath("data.txt").read_text())
print(sys.path, kinds(sys.meta_path), kinds(sys.path_hooks))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(TORCH)
    (tmp_path / "torch/data.txt").write_text("data")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "traceless.py").write_text(TRACELESS)
    (tmp_path / "pass.py").write_text("import sys; print(sorted(sys.modules))")
    return tmp_path


def run(
    folder: Path, arguments: Sequence[str], environment: dict[str, str] | None = None
) -> tuple[str, str, int]:
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": binaries, "RECORD": str(folder / "record"), "ROLE": "program"}
    variables.update(environment or {})
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


def recorded(folder: Path) -> dict[str, str]:
    """The settings of each role that would share."""
    if not (folder / "record").exists():
        return {}
    lines = (folder / "record").read_text().splitlines()
    return {line.split()[0]: line.split(maxsplit=2)[2] for line in lines}


KINDS = ["self", "fork", "spawn", "forkserver", "subprocess", "executable"]


def test_this_process_and_each_kind_of_child_share_as_the_options_say(folder: Path) -> None:
    options = ["--skip", "*lora*", "--min-size", "2KB", "--resident-only", "--report=r.jsonl"]
    kinds = KINDS[1:] + KINDS[:1]  # a fork of a process that has torch imports nothing
    output, errors, status = run(folder, ["-m", "modelbroker.run", *options, "app.py", *kinds])
    assert (errors, status) == ("", 0)
    settings = Settings(
        skip=("*lora*",), min_size=2000, resident_only=True, report=str(folder / "r.jsonl")
    )
    assert recorded(folder) == dict.fromkeys(KINDS, repr(settings))
    assert (output, errors, status) == run(folder, ["app.py", *kinds])


def test_a_fork_of_a_process_that_shares_shares(folder: Path) -> None:
    run(folder, ["-m", "modelbroker.run", "app.py", "self", "fork"])
    assert list(recorded(folder)) == ["self"]


def test_a_run_inside_a_run_has_both_options(folder: Path) -> None:
    _, errors, _ = run(folder, ["-m", "modelbroker.run", "--only=a", "app.py", "nested"])
    assert errors == ""
    assert recorded(folder) == {"nested": repr(Settings(only=("a",), skip=("b",)))}
    assert (folder / "record").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "roles"),
    [
        (["--this-process-only"], {}, ["self"]),
        (["--this-process-only"], {"MODELBROKER_AUTO": "1"}, ["self"]),
        (["--report"], {"MODELBROKER_AUTO": "0"}, []),
        ([], {"MODELBROKER_AUTO": ""}, ["subprocess", "self"]),
    ],
)
def test_who_shares_can_be_chosen(
    folder: Path, arguments: list[str], environment: dict[str, str], roles: list[str]
) -> None:
    if environment.get("MODELBROKER_AUTO") == "1":  # as in a child of modelbroker.run
        paths = [launcher._SITE, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = ":".join(paths)
    program = ["app.py", "subprocess", "self"]
    ours = run(folder, ["-m", "modelbroker.run", *arguments, *program], environment)
    assert list(recorded(folder)) == roles
    assert ours == run(folder, program)


def test_a_program_can_switch_it_off_before_it_imports_torch(folder: Path) -> None:
    code = "import os; os.environ['MODELBROKER_AUTO'] = '0'; import torch; print(torch.VALUE)"
    assert run(folder, ["-m", "modelbroker.run", "-c", code]) == ("1\n", "", 0)
    assert recorded(folder) == {}


def test_python_that_ignores_its_environment_is_stock(folder: Path) -> None:
    _, errors, status = run(folder, ["-m", "modelbroker.run", "app.py", "isolated"])
    assert (errors, status, recorded(folder)) == ("", 0, {})


def test_torch_shows_no_trace(folder: Path) -> None:
    ours = run(folder, ["-m", "modelbroker.run", "traceless.py"])
    assert list(recorded(folder)) == ["program"]
    assert ours == run(folder, ["traceless.py"])


NEVER = {"argparse", "dataclasses", "logging", "msgpack", "numpy", "re", "typing", "zmq"}


@pytest.mark.parametrize("way", ["launched", "child"])
def test_a_program_that_never_imports_torch_imports_next_to_nothing(folder: Path, way: str) -> None:
    if way == "launched":
        stock, ours = ["-m", "pass"], ["-m", "modelbroker.run", "-m", "pass"]
        environment = {}
    else:
        stock = ours = ["pass.py"]
        path = f"{launcher._SITE}:{os.environ.get('PYTHONPATH', '')}"
        environment = {"MODELBROKER_AUTO": "1", "PYTHONPATH": path}
    before, after = (
        set(eval(run(folder, arguments, variables)[0]))
        for arguments, variables in ((stock, {}), (ours, environment))
    )
    assert before - after == set()
    added = after - before
    assert not added & NEVER
    assert {name.partition(".")[0] for name in added} == {"modelbroker"}
    assert len(added) <= 6


@pytest.mark.parametrize("missing", ["zmq", "numpy", "msgpack"])
def test_without_our_packages_it_is_stock_and_a_child_is_silent(folder: Path, missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import torch; print(torch.VALUE)"
    output, errors, status = run(folder, ["-m", "modelbroker.run", "-c", code])
    assert (output, status) == ("1\n", 0)
    assert errors.startswith(f"weights are not shared: {missing} cannot be imported: pip install")
    path = f"{launcher._SITE}:{os.environ.get('PYTHONPATH', '')}"
    child = run(folder, ["-c", code], {"MODELBROKER_AUTO": "1", "PYTHONPATH": path})
    assert child == ("1\n", "", 0)
    assert recorded(folder) == {}


def test_a_child_of_an_old_python_is_stock(folder: Path) -> None:
    code = (
        f"import sys; sys.version_info = (3, 9); sys.path.insert(0, {launcher._SITE!r})\n"
        "try:\n    import sitecustomize\n"
        "except ImportError as error:\n    print(error.name)\n"
        f"print([m for m in sys.modules if 'modelbroker' in m], {launcher._SITE!r} in sys.path)"
    )
    done = run(folder, ["-S", "-c", code], {"MODELBROKER_AUTO": "1", "PYTHONPATH": ""})
    assert done == ("sitecustomize\n[] False\n", "", 0)


def test_a_child_finds_our_package_without_having_it_on_its_path(folder: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {launcher._SITE!r})\n"
        "try:\n    import sitecustomize\nexcept ImportError:\n    pass\n"
        "print([path for path in sys.path if 'python_client' in path or 'site' in path])\n"
        "print('modelbroker' in sys.modules)\n"
        "sys.path.insert(0, '.')\nimport torch\nprint(torch.VALUE)"
    )
    done = run(folder, ["-I", "-S", "-c", code], {"MODELBROKER_AUTO": "1"})
    assert done == ("[]\nTrue\n1\n", "", 0)
    assert recorded(folder) == {}  # no site-packages: none of the packages that ours needs


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "usage: python [python's options] -m modelbroker.run [options] PROGRAM"),
        (["--version"], 0, "modelbroker "),
        ([], 2, "modelbroker.run: no program given: a script, a folder, -m module or -c code; "),
        (["--nothing", "pass.py"], 2, "modelbroker.run: unknown option '--nothing' (python's own"),
        (["--min-size=1XB", "pass.py"], 2, "modelbroker.run: --min-size: '1XB' is not a size: "),
    ],
)
def test_its_own_command_line(folder: Path, arguments: list[str], status: int, text: str) -> None:
    output, errors, found = run(folder, ["-m", "modelbroker.run", *arguments])
    assert found == status
    assert (output + errors).startswith(text)
    assert not (output and errors)
    assert status == 0 or errors.endswith("; see python -m modelbroker.run --help\n")
