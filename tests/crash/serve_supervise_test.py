"""`serve --supervise`: a broker that dies is started again, with every block."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.workers import HOLDER, assert_right_bytes, crcs, identities, workers

USAGE, INVALID, PRECONDITION = 2, 10, 13

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def supervised(make_broker: MakeBroker) -> Iterator[BrokerProcess]:
    """A broker under a supervisor; broker.pid is the supervisor's."""
    broker = make_broker("--supervise").start()
    yield broker
    end_serving(broker)


def serving_pid(broker: BrokerProcess) -> int:
    broker.connect().close()  # waits longer than the CLI
    return int(broker.cli_json("status")["pid"])


def end_serving(broker: BrokerProcess) -> None:
    """Also of a broker whose supervisor is gone."""
    if broker.alive():
        broker.terminate()
    try:
        modelbroker.connect(broker.endpoint, timeout=0.2).close()
    except modelbroker.UnavailableError:
        return
    os.kill(serving_pid(broker), signal.SIGKILL)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # before or after the open
        return True


def model(broker: BrokerProcess, folder: Path) -> Path:
    path = files.write_random(folder / "m.safetensors", 5)
    broker.cli("load", path)
    return path


@pytest.mark.parametrize(
    ("how", "times"), [(signal.SIGKILL, 5), (signal.SIGABRT, 1), (signal.SIGSEGV, 1)]
)
def test_a_broker_that_dies_comes_back_with_every_block(
    supervised: BrokerProcess, tmp_path: Path, how: signal.Signals, times: int
) -> None:
    path = model(supervised, tmp_path)
    before = identities(supervised)
    pids = [serving_pid(supervised)]
    with workers(supervised, 2, HOLDER, "m"):
        for _ in range(times):
            os.kill(pids[-1], how)
            wait_until(lambda pid=pids[-1]: gone(pid))
            pids.append(serving_pid(supervised))
            assert identities(supervised) == before
            assert supervised.bytes_in_ram() == supervised.books()["made"]
            wait_until(lambda: supervised.books()["leases"] == 2)
    assert len(set(pids)) == times + 1
    with supervised.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    assert supervised.output().count(f"was killed by {how.name}: the next one starts") == times


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_supervisor_is_a_clean_stop(
    supervised: BrokerProcess, tmp_path: Path, how: signal.Signals
) -> None:
    model(supervised, tmp_path)
    child = serving_pid(supervised)
    assert supervised.process is not None
    supervised.process.send_signal(how)
    assert supervised.process.wait(60) == 0
    assert gone(child)
    assert supervised.blocks() == []
    assert not (supervised.run / "broker.sock").exists()


def test_a_stop_while_no_broker_runs_still_frees_the_blocks(
    supervised: BrokerProcess, tmp_path: Path
) -> None:
    model(supervised, tmp_path)
    assert supervised.process is not None
    for _ in range(4):  # until the pause is long
        pid = serving_pid(supervised)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: gone(pid))
    assert len(supervised.blocks()) == 1
    assert supervised.terminate() == 0, supervised.output()
    assert supervised.blocks() == []


def test_a_stopped_broker_stays_stopped(supervised: BrokerProcess, tmp_path: Path) -> None:
    """Who stops the broker itself, cleanly, means it."""
    model(supervised, tmp_path)
    os.kill(serving_pid(supervised), signal.SIGTERM)
    assert supervised.process is not None
    assert supervised.process.wait(60) == 0
    assert supervised.blocks() == []


def test_a_broker_whose_supervisor_is_killed_goes_on_serving(
    supervised: BrokerProcess, make_broker: MakeBroker, tmp_path: Path
) -> None:
    path = model(supervised, tmp_path)
    child = serving_pid(supervised)
    with workers(supervised, 1, HOLDER, "m"):
        supervised.kill()
        assert serving_pid(supervised) == child
        with supervised.connect() as client:
            assert_right_bytes(client, "m", crcs(path))
        # A second supervisor is refused, and says what is in its way.
        second = make_broker("--supervise")
        second.run, second.instance = supervised.run, supervised.instance
        done = second.cli(*second.serve_command()[1:], check=False)
        assert done.returncode == PRECONDITION
        assert "another broker" in done.stderr
        assert serving_pid(supervised) == child
    os.kill(child, signal.SIGTERM)
    wait_until(lambda: gone(child))
    assert supervised.blocks() == []


def test_sighup_reaches_the_broker(make_broker: MakeBroker, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("[ram]\nbudget = '100MiB'\n")
    broker = make_broker("--supervise", "--config", str(file)).start()
    file.write_text("[ram]\nbudget = '200MiB'\n")
    os.kill(broker.pid, signal.SIGHUP)
    wait_until(lambda: broker.books()["limit"] == 200 << 20)
    # A broken file hinders neither the running broker nor the next one.
    file.write_text("[ram\n")
    pid = serving_pid(broker)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))
    assert serving_pid(broker) != pid
    assert (
        broker.books()["limit"] == 200 << 20
    )  # what held last, not what the supervisor began with
    assert "the configuration stays as it was" in broker.output()
    file.write_text("[ram]\nbudget = '300MiB'\n")
    os.kill(serving_pid(broker), signal.SIGKILL)
    wait_until(lambda: broker.books()["limit"] == 300 << 20)
    assert broker.terminate() == 0


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (["--ram-budget", "x"], INVALID),
        (["--on-stop", "perhaps"], USAGE),
        (["--config", "/no/such.toml"], 11),
    ],
)
def test_what_can_never_work_is_not_tried_again(
    make_broker: MakeBroker, flags: list[str], status: int
) -> None:
    broker = make_broker()
    done = broker.cli(*broker.serve_command()[1:], "--supervise", *flags, check=False)
    assert done.returncode == status
    assert "starts in" not in done.stderr


def test_a_refusal_at_the_first_start_is_the_supervisors_own(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    broker.ram = tmp_path  # no tmpfs
    done = broker.cli(*broker.serve_command()[1:], "--supervise", check=False)
    assert done.returncode == PRECONDITION
    assert "--any-file-system" in done.stderr


def test_a_log_that_nobody_reads_does_not_stop_the_supervisor(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--supervise")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    broker.process = subprocess.Popen(broker.serve_command(), env=broker.environment, stderr=writer)
    model(broker, tmp_path)
    for _ in range(3):
        pid = serving_pid(broker)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: gone(pid))
    assert [one["name"] for one in broker.cli_json("ps")] == ["m"]
    assert broker.terminate() == 0
    assert broker.blocks() == []
    os.close(reader)
    os.close(writer)
