"""`modelbroker config show`: a file that says what `serve` would take."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.broker import BINARY


def show(*flags: str | Path, status: int = 0, **variables: str) -> str:
    environment = {"PATH": os.defpath, "HOME": "/nonexistent", **variables}
    done = subprocess.run(
        [BINARY, "config", "show", *flags], env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def settings(*flags: str | Path, **variables: str) -> dict[str, dict[str, Any]]:
    shown = show(*flags, "--json", status=0, **variables)
    return {entry["name"]: entry for entry in json.loads(shown)}


def test_what_is_not_set_is_commented_out(tmp_path: Path) -> None:
    plain = show()
    assert not [line for line in plain.splitlines() if line and line[0] not in "#["]
    (tmp_path / "file.toml").write_text(plain)
    assert all(one["is_default"] for one in settings("--config", tmp_path / "file.toml").values())


def test_every_default_may_be_written_out(tmp_path: Path) -> None:
    written = re.sub(r"^# ([a-z_]+ = )", r"\1", show(), flags=re.MULTILINE)
    written = "".join(line for line in written.splitlines(True) if "an example" not in line)
    (tmp_path / "file.toml").write_text(written)
    assert settings("--config", tmp_path / "file.toml") == settings()


@pytest.mark.parametrize(
    ("name", "flag", "given", "shown"),
    [
        ("ram.budget", "--ram-budget", "1536MiB", '"1536MiB"'),
        ("ram.budget", "--ram-budget", "48GiB", '"48GiB"'),
        ("ram.budget", "--ram-budget", "1000001", "1000001"),
        ("ram.keep_alive", "--keep-alive", "0", "0"),
        ("ram.keep_alive", "--keep-alive", "90m", '"90m"'),
        ("ram.on_stop", "--on-stop", "keep", '"keep"'),
        ("lease.hung", "--hung", "1500ms", '"1500ms"'),
        ("lease.hung", "--hung", "0.0015", "0.001500000"),
        ("scrub.rate", "--scrub-rate", "0", "0"),
        ("models.folders", "--model-folders", '/a b:/c"d', '["/a b", "/c\\"d"]'),
        ("server.group", "--group", "models", '"models"'),
    ],
)
def test_what_is_set_can_be_read_back(
    name: str, flag: str, given: str, shown: str, tmp_path: Path
) -> None:
    seen = settings(flag, given)
    assert seen[name]["value"] == shown
    assert not seen[name]["is_default"]
    assert [other for other, entry in seen.items() if not entry["is_default"]] == [name]
    assert settings(**{seen[name]["variable"]: given}) == seen
    (tmp_path / "file.toml").write_text(show(flag, given))
    assert settings("--config", tmp_path / "file.toml") == seen


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text("[ram]\nbudgte = 1\n")
    assert f"{tmp_path}/file.toml:2" in show("--config", tmp_path / "file.toml", status=10)
