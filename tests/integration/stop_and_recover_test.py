"""What is left after a stop, a lost state database and a load that was given up."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BINARY, BrokerProcess, running, wait_until
from support.tight import loading

UNAVAILABLE = 18


def test_a_clean_stop_among_many_loads_leaves_no_block(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 1, n) for n in range(12)]
    broker = make_broker()
    for _ in range(5):
        broker.start()
        commands = [[BINARY, "load", str(path)] for path in paths]
        loads = [
            subprocess.Popen(
                command,
                env=broker.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for command in commands
        ]
        wait_until(broker.blocks, every=0)
        assert broker.process is not None
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(60) == 0
        broker.process = None
        for load in loads:
            load.wait(60)
        assert broker.blocks() == []


def test_a_load_that_waits_is_asked_again_after_a_clean_restart(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "40MiB", "--on-stop", "keep").start()
    first, second = (files.write_random(tmp_path / name, 25) for name in ("first", "second"))
    with (
        broker.connect() as holder,
        broker.connect() as client,
        ThreadPoolExecutor(1) as thread,
    ):
        weights = holder.attach(first)
        load = thread.submit(client.load, second, timeout=120)
        wait_until(lambda: loading(broker) == ["second"])  # it waits for room
        broker.terminate()
        broker.start()
        weights.release()
        del weights
        assert load.result(120).outcome == "loaded"


def test_who_waits_for_a_broker_that_stops_for_good_is_told_what_to_do(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1), "--name", "m")
    with broker.connect() as client, client.attach("m"), ThreadPoolExecutor(1) as thread:
        unload = thread.submit(client.unload, "m", wait=True, timeout=3)
        wait_until(lambda: client.list() == [])
        broker.terminate()
        with pytest.raises(modelbroker.UnavailableError, match="modelbroker serve"):
            unload.result(60)


def test_a_command_that_a_stop_interrupts_says_what_to_do(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1), "--name", "m")
    with broker.connect() as client, client.attach("m"):
        with running(broker, "unload", "m", "--wait") as unload:
            wait_until(lambda: client.list() == [])
            broker.terminate()
            out, error = unload.communicate(timeout=60)
        assert (unload.returncode, out) == (UNAVAILABLE, "")
        assert "start it again and retry" in error


def test_blocks_of_one_first_name_are_all_named_after_the_database_is_lost(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    for folder in "abc":
        (tmp_path / folder).mkdir()
        path = files.write_random(tmp_path / folder / "same.safetensors", 1)
        broker.cli("load", path, "--name", "m")
        if folder != "c":
            broker.cli("load", path, "--name", folder)
            broker.cli("unload", "m")
    broker.kill()
    for path in broker.run.glob("state.db*"):
        path.unlink()
    broker.start()
    names = [model["name"] for model in broker.cli_json("ps")]
    assert len(set(names)) == 3
    for name in names:
        broker.cli("pin", name)
        broker.cli("unload", name)
    wait_until(broker.is_empty)


def test_names_of_blocks_that_are_gone_are_forgotten(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    broker.kill()
    for path in broker.blocks():
        path.unlink()
    broker.start()
    assert broker.cli_json("ls") == []
    broker.terminate()
    with sqlite3.connect(broker.run / "state.db") as database:
        for table in ("blocks", "names"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_load_right_after_its_loader_was_killed_is_admitted(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, seed: int
) -> None:
    """The room of the load that is being given up is waited for."""
    broker = make_broker("--ram-budget", "600MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 400, seed)
    loader = subprocess.Popen(
        [BINARY, "load", str(path)], env=broker.environment, stdout=subprocess.DEVNULL
    )
    wait_until(lambda: broker.blocks() or loader.poll() is not None, every=0)
    loader.kill()
    loader.wait()
    assert broker.cli_json("load", path)["outcome"] in ("loaded", "resident")
