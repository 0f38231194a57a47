"""The checks find what they are for."""

from __future__ import annotations

from pathlib import Path

import check_floors
import check_tests_built


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_an_include_up_the_floors_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "shm/block.cc", '#include "shm/block.h"\n#include "wire/frame.h"\n')
    _write(tmp_path, "wire/frame.cc", '#include "shm/error.h"\n')
    assert check_floors.violations(tmp_path) == ["shm/block.cc:2: shm may not include wire/frame.h"]


def test_an_include_sideways_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "broker/workers/leases.cc", '#include "broker/models/store.h"\n')
    assert len(check_floors.violations(tmp_path)) == 1


def test_a_type_of_two_headers_is_found(tmp_path: Path) -> None:
    inner = "namespace m {\nnamespace c {\nstruct A {\n};\n}  // namespace c\nstruct B {\n"
    _write(tmp_path, "shm/a.h", inner + "};\n}  // namespace m\n")
    _write(tmp_path, "wire/a.h", "namespace m {\nclass A;\nstruct A {};\nclass B final {\n};\n")
    assert check_floors.doubles(tmp_path) == ["wire/a.h: m::B is defined in shm/a.h too"]


def test_an_include_that_leaves_the_root_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "shm/block.cc", '#include "block.h"\n')
    assert "in no room" in check_floors.violations(tmp_path)[0]


def test_a_test_file_without_a_program_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "tests/unit/built_test.cc", "")
    _write(tmp_path, "tests/unit/forgotten_test.cc", "")
    _write(tmp_path, "build/bin/built_test", "")
    found = check_tests_built.missing_programs(tmp_path, tmp_path / "build")
    assert len(found) == 1
    assert found[0].startswith("tests/unit/forgotten_test.cc")


def test_tests_in_files_that_no_runner_takes_are_found(tmp_path: Path) -> None:
    _write(tmp_path, "tests/unit/blocks.py", "\ndef test_something():\n    pass\n")
    _write(tmp_path, "tests/unit/blocks.cc", "TEST(Block, Works) {}\n")
    assert len(check_tests_built.misnamed(tmp_path)) == 2
