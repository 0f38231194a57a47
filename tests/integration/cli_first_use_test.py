"""The command line as somebody meets it who does not know it yet, on a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess, wait_until
from support.workers import HOLDER, workers

USAGE, NOT_FOUND, PRECONDITION, UNAVAILABLE = 2, 11, 13, 18

MakeBroker = Callable[..., BrokerProcess]


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The program without a word about where a broker is."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELBROKER_")}
    return subprocess.run(
        [BINARY, *arguments],
        env={**clean, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- words


def test_without_arguments_it_prints_its_help() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout == run("help").stdout


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lod", "load"),
        ("laod", "load"),
        ("unlaod", "unload"),
        ("statsu", "status"),
        ("stat", "status"),
        ("l", "ls"),
        ("Load", "load"),
        ("list", "ls"),
        ("rm", "unload"),
        ("start", "serve"),
        ("versoin", "version"),
        ("explode", ""),
        ("x", ""),
        ("m.safetensors", ""),
    ],
)
def test_a_mistyped_command_is_named_with_the_nearest(word: str, meant: str) -> None:
    hint = f": did you mean '{meant}'?" if meant else ""
    wanted = f"modelbroker: there is no command '{word}'{hint} ('modelbroker --help' lists all)\n"
    for arguments in ([word], ["--json", word, "m"], ["--endpoint", "load", word], ["help", word]):
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (USAGE, "", wanted)


def test_help_of_a_command_is_the_same_both_ways() -> None:
    for command in ("load", "serve", "doctor", "stop"):
        done = run("help", command)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == run(command, "--help").stdout
        assert f"Usage: modelbroker {command}" in done.stdout


def test_a_name_that_is_also_a_command_is_just_a_name(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 0.1)
    broker.cli("load", path, "--name", "ls")
    assert broker.cli_json("show", "ls")["name"] == "ls"


def test_endpoint_and_json_stand_in_any_place(loaded: BrokerProcess) -> None:
    at = ["--endpoint", loaded.endpoint]
    joined = f"--endpoint={loaded.endpoint}"
    for arguments in (
        [*at, "--json", "show", "m"],
        [*at, "show", "--json", "m"],
        ["show", "m", "--json", *at],
        ["--json", "show", *at, "m"],
        ["--json", joined, "show", "m"],
        ["show", joined, "m", "--json"],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert json.loads(done.stdout)["name"] == "m"


@pytest.mark.parametrize("command", ["serve", "clean", "bench"])
def test_an_endpoint_that_would_be_ignored_is_refused(command: str) -> None:
    for arguments in (
        ["--endpoint", "ipc:///x/broker.sock", command],
        [command, "--endpoint", "ipc:///x/broker.sock"],
    ):
        done = run(*arguments, *(["m"] if command == "bench" else []))
        assert (done.returncode, done.stdout) == (USAGE, "")
        assert "--endpoint" in done.stderr


# ---- what it prints


@pytest.fixture
def filled(broker: BrokerProcess, tmp_path: Path) -> BrokerProcess:
    """With short and long names, an alias, a pin, a time to live and a holder."""
    path = files.write_random(tmp_path / "m.safetensors", 5)
    long = "organization/a-very-long-name-of-a-repository-" + "x" * 60 + "-1.0/unet"
    broker.cli("load", path, "--name", long, "--type", "unet", "--keep-alive", "10m")
    broker.cli("load", path, "--name", "second")
    other = files.write_random(tmp_path / "other.safetensors", 5, seed=1)
    broker.cli("load", other, "--name", "größe", "--pin")
    return broker


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_ps_and_status_fit_a_terminal(filled: BrokerProcess) -> None:
    with workers(filled, 2, HOLDER, "second") as (holder, _):
        for command in ("ps", "status"):
            assert widest(filled.cli(command).stdout) <= 80, command
        shown = filled.cli("ps").stdout
        heading, *rows = shown.splitlines()
        assert heading.split() == ["NAME", "STATE", "SIZE", "PAGES", "EXPIRES", "LEASES"]
        assert "pinned" in shown
        assert re.search(r"^organization/\S+…\S+-1\.0/unet +resident ", shown, re.MULTILINE)
        positions = {row.index("resident") for row in rows}
        assert positions == {heading.index("STATE")}, "columns are not aligned"
        wide = filled.cli("ps", "--wide").stdout
        assert "x" * 60 in wide
        assert str(holder.pid) in wide
        (block,) = {model["block"] for model in filled.cli_json("ps") if model["pinned"]}
        assert block in wide
        assert block not in shown
    assert "EVICTIONS" in filled.cli("status", "--wide").stdout


def test_ls_has_size_and_state(filled: BrokerProcess) -> None:
    heading, *rows = filled.cli("ls").stdout.splitlines()
    assert heading.split() == ["NAME", "ALIASES", "TYPE", "SIZE", "STATE", "PATH"]
    (row,) = (row for row in rows if "größe" in row)
    assert re.search(r" \d+\.\d MiB +resident +/", row)
    found = {model["name"]: model for model in filled.cli_json("ls")}["größe"]
    assert found["state"] == "resident"
    assert found["bytes"] >= 5_000_000


def test_show_is_for_people(filled: BrokerProcess, tmp_path: Path) -> None:
    with workers(filled, 1, HOLDER, "second") as (holder,):
        text = filled.cli("show", "second").stdout
    facts = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith(" "))
    assert facts["name"].startswith("organization/")
    assert facts["aliases"] == "second"
    assert facts["file"] == str(tmp_path / "m.safetensors")
    assert facts["state"] == "resident"
    assert facts["weights"] == "4.8 MiB in 4 tensors (safetensors)"
    assert re.fullmatch(r"\d+\.\d MiB, (2MiB|4KiB) pages", facts["memory"])
    assert facts["pinned"] == "no"
    assert f"pid {holder.pid}, uid {os.geteuid()}, for " in text
    assert not re.search(r"[{}\[\]\"]", text), "no JSON"
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in text.splitlines()}) <= 2
    tensors = filled.cli("show", "second", "--tensors").stdout
    assert re.search(r"^t0 +F16 +\[625000\] +1\.2 MiB +\d+$", tensors, re.MULTILINE)


# ---- where clients look


@pytest.mark.parametrize("named", ["--endpoint", "MODELBROKER_ENDPOINT"])
def test_doctor_looks_where_clients_look(broker: BrokerProcess, named: str) -> None:
    """The places that nobody named: rights_service_test.py."""
    flag = named == "--endpoint"
    arguments = [named, broker.endpoint] if flag else []
    environment = {} if flag else {named: broker.endpoint}
    assert run(*arguments, "status", environment=environment).returncode == 0
    (line,) = lines_of_doctor(*arguments, environment=environment)
    assert line.startswith("ok")
    assert line.endswith(f"answers at {broker.endpoint} ({named})")


def lines_of_doctor(*arguments: str, environment: dict[str, str]) -> list[str]:
    """What it says of the broker, the lines below included."""
    lines = run("doctor", *arguments, environment=environment).stdout.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.split()[1:2] == ["broker"])
    below = [line for line in lines[at + 1 : at + 3] if line.startswith(" ")]
    return [lines[at], *below]


def test_doctor_says_why_no_broker_answers(make_broker: MakeBroker) -> None:
    broker = make_broker()
    found, _, fix = lines_of_doctor(environment={"MODELBROKER_ENDPOINT": broker.endpoint})
    assert found.startswith("note")
    assert f"{broker.endpoint}: no broker was started there" in found
    assert "MODELBROKER_ENDPOINT names the only place" in found
    assert "modelbroker serve" in fix
    broker.start().kill()
    found, _, _ = lines_of_doctor("--endpoint", broker.endpoint, environment={})
    assert "a broker was there and has ended" in found
    found, *_ = lines_of_doctor(environment={"MODELBROKER_ENDPOINT": "tcp://x"})
    assert found.startswith("problem")
    assert "ipc:///" in found


def test_doctor_finds_one_where_only_the_configuration_looks(make_broker: MakeBroker) -> None:
    broker = make_broker().start()
    elsewhere = {"MODELBROKER_ENDPOINT": make_broker().endpoint}
    run_directory = ["--run-directory", str(broker.run)]
    found, _, fix = lines_of_doctor(*run_directory, environment=elsewhere)
    assert found.startswith("note")
    assert f"one answers at {broker.endpoint}, where clients" in found
    assert f"export MODELBROKER_ENDPOINT={broker.endpoint}" in fix


# ---- stop


def test_stop_is_a_clean_stop_and_waits_for_it(loaded: BrokerProcess) -> None:
    assert loaded.blocks()
    process = loaded.process
    assert process is not None
    assert loaded.cli("stop").stdout == (
        f"stopped the broker at {loaded.endpoint} (pid {process.pid})\n"
    )
    assert process.wait(0) == 0, "it returned before the broker had ended"
    assert loaded.blocks() == []
    loaded.process = None


def test_stop_leaves_the_blocks_where_that_was_asked_for(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--on-stop", "keep").start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    pid = broker.pid
    process = broker.process
    assert broker.cli_json("stop") == {"pid": pid, "endpoint": broker.endpoint}
    assert process is not None
    assert process.wait(0) == 0
    broker.process = None
    assert len(broker.blocks()) == 1


def test_a_supervised_broker_that_is_stopped_stays_stopped(make_broker: MakeBroker) -> None:
    broker = make_broker("--supervise").start()
    supervisor = broker.process
    assert supervisor is not None
    broker.cli("stop")
    assert supervisor.wait(60) == 0
    broker.process = None
    assert "starts" not in broker.output()


def test_stop_without_a_broker_says_that_there_is_none(make_broker: MakeBroker) -> None:
    broker = make_broker()
    done = broker.cli("stop", check=False)
    assert done.returncode == UNAVAILABLE
    assert done.stderr == (
        f"modelbroker: unavailable: no broker answers at {broker.endpoint}: there is none to stop\n"
    )


def test_stop_does_not_wait_for_a_broker_that_never_ends(loaded: BrokerProcess) -> None:
    """It goes on when its stop is interrupted; Ctrl-C ends the waiting."""
    loaded.freeze()
    process = subprocess.Popen(
        [BINARY, "stop"], env=loaded.environment, stderr=subprocess.PIPE, text=True
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    loaded.thaw()
    wait_until(loaded.alive)


def test_a_broker_in_another_pid_namespace_is_not_stopped_blindly(loaded: BrokerProcess) -> None:
    probe = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no pid namespace can be made here")
    done = subprocess.run(
        [*probe, BINARY, "stop"],
        env=loaded.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == PRECONDITION
    assert "another pid namespace" in done.stderr
    assert loaded.alive()
    inside = [*probe, *loaded.serve_command()]
    inside[inside.index(str(loaded.run))] = str(loaded.folder / "inside")
    inside[inside.index(loaded.instance)] = f"{loaded.instance}-inside"
    with subprocess.Popen(inside, env=loaded.environment, stderr=subprocess.DEVNULL) as outer:
        endpoint = f"ipc://{loaded.folder}/inside/broker.sock"
        wait_until(lambda: (loaded.folder / "inside/fds.sock").exists())
        # From outside it can be seen.
        assert loaded.cli("--endpoint", endpoint, "stop").returncode == 0
        assert outer.wait(60) == 0
