"""`python -m modelbroker` where the package has no program, or one that cannot be run."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from modelbroker import _program
from modelbroker._program import absent


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package looks for it; the folder is empty."""
    monkeypatch.setattr(_program, "bundled", lambda: str(tmp_path / "modelbroker"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return tmp_path / "modelbroker"


@pytest.mark.parametrize(
    ("machine", "libc", "words"),
    [
        ("x86_64", ("glibc", "2.35"), "manylinux_2_35_x86_64.whl"),
        ("x86_64", ("glibc", "2.31"), "needs glibc 2.35 or newer and this machine has 2.31"),
        ("x86_64", ("", ""), "needs glibc, which this Python does not use"),
        ("aarch64", ("glibc", "2.36"), "for Linux on x86-64 and this is linux on aarch64"),
    ],
)
def test_what_is_missing_and_the_remedy(
    machine: str,
    libc: tuple[str, str],
    words: str,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    told = absent.explanation(str(program))
    assert words in told
    assert "docs/install.md" in told


def test_a_program_that_is_installed_elsewhere_is_named(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "bin/modelbroker"
    other.parent.mkdir()
    other.touch(0o755)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{other.parent}")
    assert f"run '{other}'" in absent.explanation(str(program))


@pytest.mark.parametrize(
    ("text", "mode", "status", "words"),
    [
        (None, 0, 127, "the client alone"),
        (b"#!/no/such/linker\n", 0o755, 127, "needs glibc, which this machine does not have"),
        (b"\x7fELF of another machine", 0o755, 126, "cannot run '{program}': Exec format error"),
        (b"#!/bin/sh\n", 0o644, 126, "cannot run '{program}': Permission denied"),
    ],
    ids=["missing", "without its linker", "of another machine", "not executable"],
)
def test_the_exit_status_is_as_shells_have_it(
    text: bytes | None, mode: int, status: int, words: str, tmp_path: Path
) -> None:
    program = tmp_path / "modelbroker"
    if text is not None:
        program.write_bytes(text)
        program.chmod(mode)
    script = "import sys\nfrom modelbroker import _program\n_program.bundled = lambda: sys.argv[1]"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n_program.main()", program],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert words.format(program=program) in done.stderr
    assert len(done.stderr.splitlines()) <= 4  # no traceback


def test_the_client_is_not_imported() -> None:
    script = "import sys\nfrom modelbroker import _program\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"numpy", "zmq", "msgpack"} & {*done.stdout.split()}
