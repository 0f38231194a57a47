"""`modelbroker completion`: scripts from the command table, asked in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.broker import BINARY, BrokerProcess

SHELLS = ("bash", "zsh", "fish")
# What is typed, its last word being completed, and what is offered.
OFFERED = [
    ("st", {"stop", "status"}),
    ("--v", {"--version"}),
    ("serve --log-", {"--log-level", "--log-format"}),
    ("serve --log-level ", {"debug", "info", "warning", "error"}),
    ("serve --on-stop k", {"keep"}),
    ("--json load --ti", {"--timeout"}),
    ("--endpoint ipc:///x/broker.sock unl", {"unload"}),
    ("completion f", {"fish"}),
    ("config ", {"show"}),
    ("config show --ram-b", {"--ram-budget"}),
    ("help ver", {"version"}),
    ("show ", {"m"}),
    ("unload ", {"m"}),
    ("load mod", {"model.safetensors"}),
    ("bench mod", {"model.safetensors"}),
    ("serve --ram-directory fol", {"folder"}),
]
BASH = """
source "$1"
compopt() { :; }
read -ra COMP_WORDS <<< "$2"
case $2 in *' ') COMP_WORDS+=('') ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_modelbroker
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        done = subprocess.run([BINARY, "completion", shell], capture_output=True, check=True)
        (folder / shell).write_bytes(done.stdout)
    return {shell: folder / shell for shell in SHELLS}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_takes_the_script(shell: str, scripts: dict[str, Path]) -> None:
    assert shutil.which(shell), f"{shell} is in packaging/apt.txt: make deps"
    done = subprocess.run([shell, "-n", scripts[shell]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_is_offered(
    shell: str, scripts: dict[str, Path], loaded: BrokerProcess, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "folder").mkdir()
    environment = dict(loaded.environment)
    environment["PATH"] = f"{Path(BINARY).parent}:{environment['PATH']}"
    environment["HOME"] = str(tmp_path)
    for typed, offered in OFFERED:
        if shell == "bash":
            command = ["bash", "-c", BASH, "bash", str(scripts["bash"]), f"modelbroker {typed}"]
        else:
            script = 'source $argv[1]; complete --do-complete "modelbroker $argv[2]"'
            command = ["fish", "--no-config", "-c", script, str(scripts["fish"]), typed]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
        )
        assert done.stderr == "", typed
        found = {line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()}
        assert found == offered, typed


def test_every_command_and_flag_is_in_every_script(scripts: dict[str, Path]) -> None:
    help_ = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    _, commands = help_.split("Subcommands:")
    names = [line.split()[0] for line in commands.splitlines() if line.startswith("  ")]
    assert "serve" in names
    texts = {shell: path.read_text() for shell, path in scripts.items()}
    for shell, text in texts.items():
        for name in ("serve", "completion", "config", "version"):
            assert name in text, shell
        assert ("as-worker" in text) is False, "a hidden flag stays hidden"
        assert ("-l supervise" if shell == "fish" else "--supervise") in text


def test_models_without_a_broker_are_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [BINARY, "completion", "models", "--endpoint", f"ipc://{tmp_path}/broker.sock"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
