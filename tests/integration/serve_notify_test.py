"""What a service manager hears, on a socket of ours, and the units that are installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess, wait_until

MakeBroker = Callable[..., BrokerProcess]
ROOT = Path(__file__).parents[2]


class Manager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.variable = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(60)

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def hear_until(self, word: str) -> dict[str, str]:
        while True:
            if word in (heard := self.hear()):
                return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@modelbroker-test-{uuid.uuid4().hex}"
    made = Manager(str(tmp_path / "notify") if request.param == "path" else name)
    yield made
    made.close()


def test_a_manager_hears_ready_reloading_and_stopping(
    manager: Manager, make_broker: MakeBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100MiB'\n")
    broker = make_broker(
        "--config", str(file), environment={"NOTIFY_SOCKET": manager.variable}
    ).start()
    heard = manager.hear()
    assert heard["READY"] == "1"
    assert broker.endpoint in heard["STATUS"]
    for text, budget in (("[ram]\nbudget = '200MiB'\n", "200.0 MiB"), ("[ram\n", "200.0 MiB")):
        file.write_text(text)
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        os.kill(broker.pid, signal.SIGHUP)
        heard = manager.hear()
        assert heard["RELOADING"] == "1"
        stamp = int(heard["MONOTONIC_USEC"]) / 1e6
        assert before - 0.001 <= stamp <= time.clock_gettime(time.CLOCK_MONOTONIC)
        heard = manager.hear()
        assert heard["READY"] == "1"
        assert budget in heard["STATUS"]
    assert broker.terminate() == 0
    assert manager.hear()["STOPPING"] == "1"


def test_the_watchdog_is_patted_by_the_loop_alone(
    manager: Manager, make_broker: MakeBroker
) -> None:
    broker = make_broker(
        environment={"NOTIFY_SOCKET": manager.variable, "WATCHDOG_USEC": "100000"}
    ).start()
    for _ in range(5):
        assert manager.hear_until("WATCHDOG") == {"WATCHDOG": "1"}
    assert broker.alive()
    # A broker that does not run says nothing: what is on its way is read, then nothing comes.
    broker.freeze()
    manager._socket.settimeout(1)
    with suppress(TimeoutError):
        while manager.hear():
            pass
    broker.thaw()
    manager._socket.settimeout(60)
    manager.hear_until("WATCHDOG")


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "often"},
        {},
    ],
    ids=str,
)
def test_a_watchdog_that_is_not_ours_is_left_alone(
    manager: Manager, make_broker: MakeBroker, environment: dict[str, str]
) -> None:
    broker = make_broker(environment={"NOTIFY_SOCKET": manager.variable, **environment}).start()
    assert manager.hear()["READY"] == "1"
    assert broker.terminate() == 0
    assert "STOPPING" in manager.hear()


@pytest.mark.parametrize("address", ["/no/such/socket", "", "@", "x" * 200, "relative"])
def test_a_manager_that_is_not_there_changes_nothing(make_broker: MakeBroker, address: str) -> None:
    broker = make_broker(environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000"}).start()
    assert broker.cli_json("ps") == []
    assert broker.terminate() == 0


def test_a_manager_that_never_reads_stops_nobody(make_broker: MakeBroker, tmp_path: Path) -> None:
    deaf = Manager(str(tmp_path / "deaf"))
    broker = make_broker(
        environment={"NOTIFY_SOCKET": deaf.variable, "WATCHDOG_USEC": "2000"}
    ).start()
    wait_until(lambda: broker.cli_json("status")["uptime_ms"] > 1500)  # far more than a queue holds
    assert broker.cli_json("ps") == []
    assert broker.terminate() == 0
    deaf.close()


# ---- the units


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    build = Path(BINARY).parents[1]
    if not (build / "CMakeCache.txt").exists():
        pytest.skip(f"{BINARY} is not in the folder of a build: nothing to install from")
    command = ["cmake", "--install", str(build), "--prefix", str(tmp_path / "prefix")]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "prefix"


def test_make_install_puts_units_that_start_what_it_installed(installed: Path) -> None:
    for kind in ("system", "user"):
        unit = (installed / f"lib/systemd/{kind}/modelbroker.service").read_text()
        (start,) = re.findall(r"^ExecStart=(\S+) serve", unit, re.MULTILINE)
        assert Path(start) == installed / "bin/modelbroker"
        version = subprocess.run([start, "--version"], check=True, capture_output=True, text=True)
        assert version.stdout.startswith("modelbroker ")
        assert "Type=notify" in unit
        assert "RuntimeDirectoryPreserve=yes" in unit
        assert "--on-stop keep" in unit
        assert ("--group modelbroker" in unit) == (kind == "system")
    assert "u modelbroker " in (installed / "lib/sysusers.d/modelbroker.conf").read_text()


def test_systemd_finds_nothing_wrong_in_the_units(installed: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here: the units were not verified")
    for kind in ("system", "user"):
        unit = installed / f"lib/systemd/{kind}/modelbroker.service"
        done = subprocess.run(
            [analyze, "verify", "--man=no", *(["--user"] if kind == "user" else []), str(unit)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(installed)},
        )
        complaints = [line for line in done.stderr.splitlines() if "modelbroker.service" in line]
        assert (done.returncode, complaints) == (0, []), done.stderr


def test_the_command_line_of_the_unit_serves_and_keeps(
    installed: Path, make_broker: MakeBroker, tmp_path: Path
) -> None:
    unit = (installed / "lib/systemd/system/modelbroker.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    broker = make_broker()
    manager = Manager(str(tmp_path / "notify"))
    line = line.replace("--group modelbroker", f"--group {os.getegid()}")
    words = line.replace("%t/modelbroker", str(broker.run)).split()
    broker.process = subprocess.Popen(
        words,
        env={
            **broker.environment,
            "MODELBROKER_INSTANCE": broker.instance,
            "NOTIFY_SOCKET": manager.variable,
        },
        stderr=subprocess.DEVNULL,
    )
    assert manager.hear()["READY"] == "1"
    path = tmp_path / "m.safetensors"
    broker.cli("load", files.write_random(path, 5))
    assert broker.terminate() == 0
    assert len(broker.blocks()) == 1
    manager.close()
