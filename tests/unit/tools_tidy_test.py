"""tools/tidy.py finds in a group of units what clang-tidy finds in each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import tidy

pytestmark = pytest.mark.skipif(shutil.which("clang-tidy") is None, reason="no clang-tidy here")

CONFIGURATION = """
Checks: '-*,bugprone-*,readability-identifier-naming'
WarningsAsErrors: '*'
HeaderFilterRegex: '/room/'
CheckOptions:
  - { key: readability-identifier-naming.FunctionCase, value: lower_case }
"""
GOOD = "namespace {\nint twice(int x) { return 2 * x; }\n}  // namespace\n"


def project(folder: Path, **units: str) -> list[Path]:
    """A build of these units, and where they lie."""
    (folder / ".clang-tidy").write_text(CONFIGURATION)
    entries, paths = [], []
    for name, text in units.items():
        path = folder / "room" / f"{name}.cc"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        command = f"c++ -std=c++20 -o {name}.o -c {path}"
        entries.append({"directory": str(folder), "file": str(path), "command": command})
        paths.append(path)
    (folder / "compile_commands.json").write_text(json.dumps(entries))
    return paths


def run(folder: Path, paths: list[Path]) -> tuple[bool, str, int]:
    """Whether all passed, what was said, and how many groups there were."""
    groups = tidy.grouped(tidy.read_units(folder, paths))
    files = tidy.write_groups(groups, folder / "tidy")
    found = [tidy.check(folder, file, group) for file, group in zip(files, groups, strict=True)]
    return all(ok for ok, _ in found), "".join(said for _, said in found), len(groups)


def test_units_that_share_no_name_are_checked_as_one(tmp_path: Path) -> None:
    other = "namespace {\nint thrice(int x) { return 3 * x; }\n}  // namespace\n"
    assert run(tmp_path, project(tmp_path, a=GOOD, b=other)) == (True, "", 1)


def test_a_name_of_two_units_keeps_them_apart(tmp_path: Path) -> None:
    later = GOOD.replace("{\nint", "{\nint once(int x) {\n  return x;\n}\nint")
    assert run(tmp_path, project(tmp_path, a=GOOD, b=later)) == (True, "", 2)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("int BadName() { return 1; }\n", "readability-identifier-naming"),
        ("int same(int x) { if (x) { return 1; } else { return 1; } }\n", "bugprone-branch-clone"),
        ("unsigned long wide(int x) { return sizeof(sizeof(x)); }\n", "bugprone-sizeof-expression"),
        ("int unknown() { return gone; }\n", "clang-diagnostic-error"),
    ],
)
def test_a_fault_in_any_unit_of_a_group_is_found_in_its_own_file(
    tmp_path: Path, fault: str, check: str
) -> None:
    paths = project(tmp_path, a=GOOD, b="\n" + fault)
    passed, said, groups = run(tmp_path, paths)
    assert (passed, groups) == (False, 1)
    assert f"[{check}" in said
    assert f"{paths[1]}:2:" in said
    assert "group0.cc" not in said


def test_units_that_fail_only_as_one_pass_and_are_named(tmp_path: Path) -> None:
    shadow = (
        "#define thrice twice\nnamespace {\nint thrice(int x) { return 3 * x; }\n}  // namespace\n"
    )
    passed, said, _ = run(tmp_path, project(tmp_path, a=GOOD, b=shadow))
    assert passed
    assert "pass one by one, but not as one" in said


def test_what_has_passed_is_checked_again_only_where_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "room" / "twice.h"
    text = '#include "twice.h"\n' + GOOD
    (path,) = project(tmp_path, a=text)
    header.write_text("int thrice(int x);\n")
    passed = tmp_path / "passed"
    passed.mkdir()
    checked: list[bool] = []
    real = tidy.run_clang_tidy

    def counting(database: Path, file: Path) -> tuple[bool, str]:
        checked.append(True)
        return real(database, file)

    monkeypatch.setattr(tidy, "run_clang_tidy", counting)

    def check() -> tuple[bool, int]:
        """Whether it passed, and how often clang-tidy was run for that."""
        checked.clear()
        (unit,) = tidy.read_units(tmp_path, [path])
        return tidy.check(tmp_path, path, [unit], passed)[0], len(checked)

    assert check() == (True, 1)
    assert check() == (True, 0)
    header.write_text("int thrice(int y);\n")
    assert check() == (True, 1)
    header.write_text("int Thrice(int x);\n")
    assert check() == (False, 1)
    assert check() == (False, 1)  # what failed is not remembered
    header.write_text("int thrice(int x);\n")
    assert check() == (True, 0)
    path.write_text(text + "int BadName() { return 1; }\n")
    assert check() == (False, 1)
    path.write_text(text)
    (tmp_path / ".clang-tidy").write_text(CONFIGURATION.replace("lower_case", "CamelCase"))
    assert check() == (False, 1)
    # Of two clones one tells the other.
    (tmp_path / ".clang-tidy").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    assert check() == (True, 1)
    clone = tmp_path.with_name("clone")
    shutil.copytree(tmp_path, clone)
    (path,) = project(clone, a=text)
    monkeypatch.chdir(clone)
    (unit,) = tidy.read_units(clone, [path])
    checked.clear()
    assert tidy.check(clone, path, [unit], passed) == (True, "")
    assert checked == []
    # One that nobody asked for is forgotten.
    for remembered in passed.iterdir():
        os.utime(remembered, (0, 0))
    tidy.forget_old(passed)
    assert list(passed.iterdir()) == []


def test_a_unit_that_is_not_built_is_named(tmp_path: Path) -> None:
    project(tmp_path, a=GOOD)
    with pytest.raises(SystemExit, match=r"does not compile .*b\.cc"):
        tidy.read_units(tmp_path, [tmp_path / "room/b.cc"])
