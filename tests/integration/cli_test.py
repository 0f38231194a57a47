"""The command line: its words, its JSON, its exit codes, and how it begins and ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import modelbroker
from support import files
from support.broker import BINARY, BrokerProcess, running, wait_until
from support.workers import HOLDER, workers

CLIENT_COMMANDS = ["load", "unload", "ls", "ps", "show", "pin", "unpin", "cancel", "status"]
OTHERS = [
    "serve",
    "stop",
    "clean",
    "events",
    "scrub",
    "doctor",
    "bench",
    "version",
    "config",
    "completion",
    "help",
]
COMMANDS = [*CLIENT_COMMANDS, *OTHERS]
ARGUMENTS = {"load": ["/no/such.safetensors"]} | {
    command: ["m"] for command in ("unload", "show", "pin", "unpin", "cancel")
}
USAGE, INVALID, NOT_FOUND, TAKEN, EXHAUSTED = 2, 10, 11, 12, 15
DATA_LOSS, UNAVAILABLE, UNIMPLEMENTED = 17, 18, 21

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def loaded(broker: BrokerProcess, tmp_path: Path) -> BrokerProcess:
    """With one model, "m", of 5 MB."""
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.cli("load", path, "--type", "unet")
    return broker


# ---- words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(make_broker: MakeBroker, command: str) -> None:
    for flag in ("--help", "-h"):
        done = make_broker().cli(command, flag)
        assert f"Usage: modelbroker {command}" in done.stdout
        _, examples = done.stdout.split("Examples:")
        assert f"  modelbroker {command}" in examples
        assert done.stderr == ""
        assert max(map(len, done.stdout.splitlines())) < 160


def test_the_program_itself_has_help_examples_and_a_version(make_broker: MakeBroker) -> None:
    done = make_broker().cli("--help")
    assert "Examples:" in done.stdout
    for command in COMMANDS:
        assert f"  {command} " in done.stdout
    version = Path(__file__).parents[2].joinpath("VERSION").read_text().strip()
    assert make_broker().cli("--version").stdout == f"modelbroker {version}\n"


def test_version_names_the_program_and_the_broker(broker: BrokerProcess) -> None:
    told = broker.cli_json("version")
    program, serving = told["program"], told["broker"]
    assert program["path"] == serving["path"] == os.path.realpath(BINARY)
    assert program["version"] == serving["version"]
    assert (serving["pid"], serving["instance"]) == (broker.pid, broker.instance)
    assert serving["endpoint"] == broker.endpoint
    text = broker.cli("version").stdout
    assert f"pid {broker.pid}" in text
    broker.terminate()
    assert broker.cli_json("version")["broker"] is None
    assert "broker   none: no broker answers" in broker.cli("version").stdout


WRONG_USE: list[list[str]] = [
    ["--json"],
    ["explode"],
    ["--no-such-flag"],
    *([command, "--no-such-flag"] for command in COMMANDS),
    *([command] for command in ARGUMENTS),
    *([command, "a", "b"] for command in ARGUMENTS),
    ["ls", "extra"],
    ["serve", "extra"],
    ["load", "a", "--name"],
    ["serve", "--on-stop", "perhaps"],
    ["serve", "--huge-pages", "1"],
    ["serve", "--grace", "soon"],
    ["serve", "--log-level", "loud"],
]


@pytest.mark.parametrize("arguments", WRONG_USE, ids=" ".join)
def test_wrong_usage_ends_with_2_and_says_why(
    make_broker: MakeBroker, arguments: list[str]
) -> None:
    done = make_broker().cli(*arguments, check=False)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert "--help" in done.stderr


# ---- answers


def test_errors_have_their_exit_codes_and_their_json(loaded: BrokerProcess, tmp_path: Path) -> None:
    other = files.write_random(tmp_path / "other.safetensors", 5, seed=3)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    zipped = tmp_path / "model.ckpt"
    zipped.write_bytes(b"PK\x03\x04" + bytes(100))
    cases: list[tuple[int, str, list[str | Path]]] = [
        (INVALID, "invalid_argument", ["load", tmp_path]),
        (INVALID, "invalid_argument", ["load", other, "--name", "a\nb"]),
        (INVALID, "invalid_argument", ["load", other, "--name", "n" * 256]),
        (NOT_FOUND, "not_found", ["load", tmp_path / "nobody.safetensors"]),
        (TAKEN, "already_exists", ["load", other, "--name", "m"]),
        (DATA_LOSS, "data_loss", ["load", bad]),
        (UNIMPLEMENTED, "unimplemented", ["load", zipped]),
    ]
    cases += [(NOT_FOUND, "not_found", [verb, "x"]) for verb in ("unload", "show", "pin", "unpin")]
    for status, code, arguments in cases:
        done = loaded.cli(*arguments, check=False)
        assert done.returncode == status, (arguments, done.stderr)
        assert done.stderr.startswith(f"modelbroker: {code}: ")
        assert done.stdout == ""
        done = loaded.cli(*arguments, "--json", check=False)
        assert done.returncode == status
        error = json.loads(done.stderr)["error"]
        assert error["code"] == code
        assert error["message"]
        assert isinstance(error["details"], dict)


def test_a_file_above_the_budget_gives_15_and_the_numbers(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "10 MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 30)
    done = broker.cli("load", path, "--json", check=False)
    assert done.returncode == EXHAUSTED
    details = json.loads(done.stderr)["error"]["details"]
    assert details["limit"] == 10 << 20
    assert details["needed"] > 30_000_000


def test_json_has_the_documented_fields(loaded: BrokerProcess, tmp_path: Path) -> None:
    path = str(tmp_path / "m.safetensors")
    again = loaded.cli_json("load", path, "--name", "second")
    assert (again["model"], again["outcome"]) == ("second", "alias")
    assert loaded.cli_json("ls") == [
        {
            "name": "m",
            "aliases": ["second"],
            "type": "unet",
            "bytes": again["bytes"],
            "state": "resident",
            "path": path,
        }
    ]
    (model,) = loaded.cli_json("ps")
    wanted = "name block generation bytes page_kind leases pinned expires_at"
    assert set(wanted.split()) <= model.keys()
    assert (model["leases"], model["pinned"], model["expires_at"]) == ([], False, None)
    assert (model["block"], model["bytes"]) == (again["block"], again["bytes"])
    assert model["page_kind"] in ("2MiB", "4KiB")
    shown = loaded.cli_json("show", "m", "--tensors")
    assert (shown["block"], shown["path"], shown["state"]) == (model["block"], path, "resident")
    assert shown["metadata"] == {"seed": "0"}
    assert [(t["name"], t["dtype"], t["shape"]) for t in shown["tensors"]] == [
        (f"t{i}", "F16", [625_000]) for i in range(4)
    ]
    status = loaded.cli_json("status")
    wanted = "boot_id version tiers page_kind pid instance features"
    assert set(wanted.split()) <= status.keys()
    assert len(status["boot_id"]) == 32
    assert status["pid"] == loaded.pid
    ram = status["tiers"]["ram"]
    assert (ram["made"], ram["models"], ram["leases"]) == (model["bytes"], 1, 0)
    assert loaded.cli_json("pin", "m") == {"model": "m", "pinned": True}
    assert loaded.cli_json("unpin", "second")["pinned"] is False
    gone = loaded.cli_json("unload", "m")
    assert gone["remaining_names"] == ["second"]
    assert loaded.cli_json("unload", path)["freed"] == model["bytes"]
    assert loaded.cli_json("ls") == loaded.cli_json("ps") == []


def test_text_output_names_what_it_did(loaded: BrokerProcess, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    assert loaded.cli("load", path).stdout.startswith("m: resident (")
    assert "m" in loaded.cli("ls").stdout
    assert loaded.cli("ps").stdout.splitlines()[0].split()[0] == "NAME"
    assert str(path) in loaded.cli("show", path).stdout
    assert "t3" in loaded.cli("show", "m", "--tensors").stdout
    assert "modelbroker" in loaded.cli("status").stdout
    assert loaded.cli("unload", "m").stdout.startswith("m: freed ")
    assert loaded.cli("load", path).stderr == ""


def test_a_path_relative_to_the_working_directory_is_meant(
    loaded: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert loaded.cli_json("load", "../m.safetensors")["outcome"] == "resident"
    monkeypatch.chdir(tmp_path)
    assert loaded.cli_json("load", "m.safetensors")["outcome"] == "resident"
    assert loaded.cli_json("show", "./m.safetensors")["name"] == "m"
    assert loaded.cli_json("unload", "m.safetensors")["model"] == "m"


def test_strange_text_does_not_reach_the_terminal(loaded: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "esc\x1b[31m\n.safetensors")
    loaded.cli("load", path, "--name", "ok", "--type", "a\x1b[31m")
    for command in (["ls"], ["ps"], ["show", "ok"], ["show", "nobody\x1b[31m"]):
        done = loaded.cli(*command, check=False)
        assert "\x1b" not in done.stdout + done.stderr
    assert loaded.cli_json("ls")


def test_pin_and_unpin_show_in_ps_and_last_over_a_crash(
    loaded: BrokerProcess, tmp_path: Path
) -> None:
    loaded.cli("pin", "m")
    assert [model["pinned"] for model in loaded.cli_json("ps")] == [True]
    assert loaded.books()["pinned"] == loaded.books()["made"]
    loaded.kill()
    loaded.start()
    assert [model["pinned"] for model in loaded.cli_json("ps")] == [True]
    loaded.cli("unpin", "m")
    assert [model["pinned"] for model in loaded.cli_json("ps")] == [False]
    other = files.write_random(tmp_path / "other.safetensors", seed=1)
    loaded.cli("load", other, "--pin")
    assert [model["pinned"] for model in loaded.cli_json("ps")] == [False, True]


# ---- waiting, and its end


def test_without_a_broker_every_command_says_what_to_do(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    arguments = {**ARGUMENTS, "load": [str(files.write_random(tmp_path / "m.safetensors"))]}
    with ExitStack() as stack:
        started = {  # side by side, since each waits for a broker
            command: stack.enter_context(running(broker, command, *arguments.get(command, [])))
            for command in CLIENT_COMMANDS
        }
        for command, process in started.items():
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (UNAVAILABLE, ""), command
            assert "modelbroker serve" in err
            assert str(broker.run) in err


def test_a_command_waits_for_a_broker_that_starts_late(make_broker: MakeBroker) -> None:
    broker = make_broker()
    with running(broker, "status", "--json") as process:
        broker.start()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["pid"] == broker.pid


def test_ctrl_c_ends_a_waiting_unload_and_the_model_still_drains(loaded: BrokerProcess) -> None:
    with workers(loaded, 1, HOLDER, "m") as (holder,):
        with running(loaded, "unload", "m", "--wait") as process:
            wait_until(lambda: loaded.books()["draining"] > 0)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
            assert "terminate" not in err
        assert loaded.cli_json("ps")[0]["leases"] == [{"pid": holder.pid, "uid": os.geteuid()}]
        with running(loaded, "unload", "m", "--wait", "--json") as waiting:
            _, err = waiting.communicate(timeout=30)
            assert waiting.returncode == NOT_FOUND, err  # its name is gone already
        assert holder.poll() is None
    wait_until(loaded.is_empty)


def test_a_waiting_unload_ends_when_the_holder_does(loaded: BrokerProcess) -> None:
    with workers(loaded, 1, HOLDER, "m") as (holder,):
        with running(loaded, "unload", "m", "--wait", "--json") as process:
            wait_until(lambda: loaded.books()["draining"] > 0)
            holder.kill()
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        gone: dict[str, Any] = json.loads(out)
        assert (gone["freed"] > 0, gone["draining"]) == (True, 0)
    assert loaded.is_empty()


# ---- output that goes nowhere


@pytest.mark.parametrize(
    "command",
    [
        "status --json",
        "status",
        "ls",
        "ps --json",
        "show m --tensors",
        "events --snapshot",
        "doctor",
    ],
)
def test_what_could_not_be_printed_is_no_success(loaded: BrokerProcess, command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BINARY, *command.split()],
            env=loaded.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == EXHAUSTED
    assert "writing the output" in done.stderr


# ---- times that are none


@pytest.mark.parametrize("time", ["nan", "inf", "-1", "1e300", "soon", "1x", ""])
def test_a_timeout_that_cannot_be_is_refused(loaded: BrokerProcess, time: str) -> None:
    done = loaded.cli("load", "/no/such", f"--timeout={time}", check=False)
    assert done.returncode == USAGE
    assert "--timeout" in done.stderr
    assert len(done.stderr) < 300


def test_a_keep_alive_that_is_no_number_is_refused_on_the_wire(
    loaded: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "other.safetensors", 0.1)
    with loaded.connect() as client, pytest.raises(modelbroker.InvalidArgumentError):
        client.load(path, keep_alive=math.nan)
    assert [model["name"] for model in loaded.cli_json("ls")] == ["m"]
