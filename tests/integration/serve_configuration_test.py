"""File, environment and flags, and what SIGHUP makes of them in a running broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbroker._sharing.settings import Settings
from support import files
from support.broker import BrokerProcess, wait_until
from support.workers import HOLDER, assert_right_bytes, crcs, workers

INVALID, NOT_FOUND, PRECONDITION = 10, 11, 13
MIB = 1 << 20

MakeBroker = Callable[..., BrokerProcess]


def ended(broker: BrokerProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    """A `serve` that ends by itself."""
    return broker.cli(*broker.serve_command()[1:], *flags, check=False)


def hup(broker: BrokerProcess, expect: str) -> str:
    """Sends SIGHUP and waits for a line with `expect`; returns what was logged since."""
    before = len(broker.output())
    os.kill(broker.pid, signal.SIGHUP)
    wait_until(lambda: expect in broker.output()[before:])
    return broker.output()[before:]


# ---- who is stronger


def test_a_flag_beats_the_environment_and_that_beats_the_file(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100 MiB'\n")
    for environment, flags, wanted in [
        ({}, [], 100),
        ({"MODELBROKER_RAM_BUDGET": "200MiB"}, [], 200),
        ({"MODELBROKER_RAM_BUDGET": ""}, [], 100),
        ({"MODELBROKER_RAM_BUDGET": "200MiB"}, ["--ram-budget", "300MiB"], 300),
        ({}, ["--ram-budget", "300MiB"], 300),
    ]:
        broker = make_broker("--config", str(file), *flags, environment=environment).start()
        assert broker.books()["limit"] == wanted * MIB, (environment, flags)
        assert broker.terminate() == 0


def test_the_file_alone_can_say_everything(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    (broker.folder / "ram").mkdir()
    (broker.folder / "broker.toml").write_text(
        f"""
[server]
run_directory = "{broker.run}"
instance = "{broker.instance}"
log_level = "debug"
log_format = "json"
[ram]
directory = "{broker.folder}/ram"
any_file_system = true
budget = "64MiB"
on_stop = "keep"
huge_pages = "off"
"""
    )
    broker.ram = broker.folder / "ram"
    with broker.log.open("wb") as log:
        broker.process = subprocess.Popen(
            [broker.serve_command()[0], "serve"],
            env={**broker.environment, "MODELBROKER_CONFIG": str(broker.folder / "broker.toml")},
            stderr=log,
        )
    path = files.write_random(tmp_path / "m.safetensors", 5)
    assert broker.cli_json("load", path)["page_kind"] == "4KiB"
    status = broker.cli_json("status")
    assert status["instance"] == broker.instance
    assert status["ram_directory"] == str(broker.ram)
    assert status["tiers"]["ram"]["limit"] == 64 * MIB
    assert broker.terminate() == 0
    assert len(broker.blocks()) == 1
    for line in broker.output().splitlines():
        assert json.loads(line).keys() == {"time", "level", "pid", "message"}


@pytest.mark.parametrize("place", ["systemd", "xdg", "home"])
def test_the_usual_places_are_read_if_something_is_there(
    make_broker: MakeBroker, place: str
) -> None:
    broker = make_broker()
    folders = {"systemd": "etc", "xdg": "xdg/modelbroker", "home": "home/.config/modelbroker"}
    variables = {"systemd": "CONFIGURATION_DIRECTORY", "xdg": "XDG_CONFIG_HOME", "home": "HOME"}
    for variable in variables.values():
        broker.environment.pop(variable, None)
    folder = broker.folder / folders[place]
    folder.mkdir(parents=True)
    broker.environment[variables[place]] = str(
        folder if place == "systemd" else broker.folder / place
    )
    broker.ram = Path("/no/such/folder")
    # As anybody but root, whose place is the machine's: a user namespace makes us that.
    as_somebody = [] if os.geteuid() != 0 else ["unshare", "--user", "--map-user=1234", "--"]

    def serve() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*as_somebody, *broker.serve_command()],
            env=broker.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert "/no/such/folder" in serve().stderr  # nothing there, nothing wrong
    (folder / "config.toml").write_text("[ram]\nbudget = 'some'\n")
    done = serve()
    assert done.returncode == INVALID, done.stderr
    assert f"{folder}/config.toml:2: ram.budget: 'some' is not allowed" in done.stderr


def test_clean_finds_its_instance_by_the_same_file(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker().start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    broker.kill()
    (tmp_path / "c.toml").write_text(
        f"[server]\ninstance = '{broker.instance}'\n[ram]\ndirectory = '{broker.ram}'\n"
    )
    assert len(broker.blocks()) == 1
    assert broker.cli_json("clean", "--config", tmp_path / "c.toml")["blocks"] == 1
    assert broker.blocks() == []


# ---- what is wrong


def test_what_is_wrong_is_named_with_its_place(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '1GiB'\nbugdet = 2\n")
    done = ended(broker, "--config", str(file))
    assert done.returncode == INVALID
    assert f"{file}:3: unknown key 'bugdet': [ram] has any_file_system, budget," in done.stderr
    file.write_text("[lease]\ngrace = 'soon'\n")
    done = ended(broker, "--config", str(file))
    assert f"{file}:2: lease.grace: 'soon' is not allowed: seconds" in done.stderr
    broker.environment["MODELBROKER_GRACE"] = "-1"
    done = ended(broker)
    assert done.returncode == INVALID
    assert "MODELBROKER_GRACE: '-1' is not allowed: seconds" in done.stderr
    del broker.environment["MODELBROKER_GRACE"]
    done = ended(broker, "--ram-budget", "much")
    assert done.returncode == INVALID
    assert "--ram-budget: 'much' is not allowed: bytes" in done.stderr


def test_a_variable_that_is_no_setting_is_told(make_broker: MakeBroker) -> None:
    environment = {
        "MODELBROKER_RAM_BUGDET": "1GiB",
        "MODELBROKER_CONFIG": "",
        "MODELBROKER_SERVICE_HOST": "10.0.0.1",
        "MODELBROKER_PORT_5555_TCP": "tcp://10.0.0.1:5555",
        "MODELBROKER_RAM_BUDGET": "100MiB",
        **Settings(("a",), ("b",), 5, True, "ipc:///r/broker.sock", "-").to_environment(),
        "MODELBROKER_AUTO": "1",
    }
    broker = make_broker(environment=environment).start()
    assert broker.books()["limit"] == 100 * MIB
    told = [line for line in broker.output().splitlines() if "is not a setting" in line]
    assert len(told) == 1
    assert "MODELBROKER_RAM_BUGDET" in told[0]


def test_help_says_what_can_be_chosen(make_broker: MakeBroker) -> None:
    text = make_broker().cli("serve", "--help").stdout
    for choice in ("--huge-pages off|auto", "--on-stop free|keep", "--log-format text|json"):
        assert choice in text


def test_a_file_that_is_named_must_be_a_small_text(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    done = ended(broker, "--config", str(tmp_path / "nowhere.toml"))
    assert done.returncode == NOT_FOUND
    assert str(tmp_path / "nowhere.toml") in done.stderr
    os.mkfifo(tmp_path / "fifo")  # must not hang
    large = tmp_path / "large.toml"
    large.write_text("# filler\n" * 10000)
    for path in (tmp_path, tmp_path / "fifo", large):
        done = ended(broker, "--config", str(path))
        assert done.returncode == INVALID, done.stderr
        assert str(path) in done.stderr


# ---- SIGHUP


def test_sighup_changes_what_can_change_and_names_the_rest(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100MiB'\n")
    broker = make_broker("--config", str(file)).start()
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.cli("load", path)
    before = broker.cli_json("status")
    with workers(broker, 1, HOLDER, "m"):
        file.write_text(
            "[server]\nlog_format = 'json'\n[ram]\nbudget = '200MiB'\nhuge_pages = 'off'\n"
            "keep_alive = '10m'\n[lease]\ngrace = 5\nhung = 6\n[scrub]\nrate = 0\n"
            f"[models]\nfolders = ['{tmp_path}']\n"
        )
        said = hup(broker, "needs a restart")
        assert "needs a restart: ram.huge_pages" in said
        for name in (
            "server.log_format",
            "ram.budget",
            "ram.keep_alive",
            "lease.grace",
            "lease.hung",
            "scrub.rate",
            "models.folders",
        ):
            assert name in said.split("changed: ")[1], name
        assert broker.books()["limit"] == 200 * MIB
        assert broker.books()["leases"] == 1
    after = broker.cli_json("status")
    assert (after["boot_id"], after["pid"]) == (before["boot_id"], before["pid"])
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    json.loads(broker.output().splitlines()[-1])
    file.write_text("[ram]\nbudget = '100MiB'\n")
    hup(broker, "configuration read again")
    assert broker.books()["limit"] == 100 * MIB


@pytest.mark.parametrize(
    "broken", ["[ram\n", "[ram]\nbudget = 'x'\n", "[ram]\nbudget = '900TiB'\n", None]
)
def test_a_broken_file_leaves_all_as_it_is(
    make_broker: MakeBroker, tmp_path: Path, broken: str | None
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100MiB'\n")
    broker = make_broker("--config", str(file)).start()
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    said = hup(broker, "the configuration stays as it was")
    assert "error" in said
    assert broker.books()["limit"] == 100 * MIB
    file.write_text("[ram]\nbudget = '50MiB'\n")
    hup(broker, "configuration read again")
    assert broker.books()["limit"] == 50 * MIB


def test_flags_and_variables_go_on_being_stronger_at_sighup(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[lease]\ngrace = 5\n")
    broker = make_broker(
        "--config", str(file), "--ram-budget", "100MiB", environment={"MODELBROKER_HUNG": "7"}
    ).start()
    file.write_text("[ram]\nbudget = '1GiB'\n[lease]\nhung = 3\n")
    said = hup(broker, "configuration read again")
    assert said.split("changed: ")[1].strip() == "lease.grace"
    assert broker.books()["limit"] == 100 * MIB


def test_sighup_computes_the_default_budget_anew(make_broker: MakeBroker, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100MiB'\n")
    broker = make_broker("--config", str(file)).start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    file.write_text("")
    hup(broker, "configuration read again")
    computed = broker.books()["limit"]
    assert computed > 100 * MIB
    fresh = make_broker().start()  # what the same machine gives to another
    assert abs(fresh.books()["limit"] - computed) < 0.5 * computed


def test_a_storm_of_sighups_hurts_nobody(make_broker: MakeBroker, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("")
    broker = make_broker("--config", str(file)).start()
    path = files.write_random(tmp_path / "m.safetensors", 5)
    for round_ in range(200):
        file.write_text(f"[ram]\nbudget = '{100 + round_}MiB'\n")
        os.kill(broker.pid, signal.SIGHUP)
    broker.cli("load", path)
    wait_until(lambda: broker.books()["limit"] == 299 * MIB)
    assert broker.terminate() == 0
    assert broker.blocks() == []
