"""The broker dies by SIGKILL, again and again: nobody may notice but by waiting a little."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import modelbroker
from support import files
from support.broker import BINARY, BrokerProcess, wait_until
from support.loads_under_way import freeze_in_a_load
from support.workers import (
    assert_books_are_the_kernels,
    assert_right_bytes,
    crcs,
    identities,
    line_of,
    tell,
    workers,
)

SEED = 20240607

# Hashes all that it holds, with a breath between two rounds; a line on stdin makes it attach anew.
WORKER = """
import json, os, sys, threading, time, zlib
import modelbroker

expected = json.loads(sys.argv[1])
client = modelbroker.connect(timeout=30)
held = {model: client.attach(model) for model in expected}
rounds, stopping = 0, False

def check(model, weights):
    for name, crc in expected[model].items():
        if zlib.crc32(weights.raw(name)) != crc:
            print("WRONG", model, name, flush=True)
            os._exit(3)

def hash_all_the_time():
    global rounds
    while not stopping:
        for model, weights in held.items():
            check(model, weights)
        rounds += 1
        time.sleep(0.05)

thread = threading.Thread(target=hash_all_the_time)
thread.start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "quit\\n":
        break
    model = line.strip()
    with client.attach(model) as fresh:
        assert fresh.generation == held[model].generation
        check(model, fresh)
    del fresh
    print("attached", flush=True)
stopping = True
thread.join()
print(rounds, flush=True)
"""


@pytest.mark.slow
def test_a_hundred_kills_cost_three_workers_neither_a_byte_nor_a_lease(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    expected = {}
    for seed, (model, megabytes) in enumerate({"a": 6, "b": 3}.items()):
        path = files.write_random(tmp_path / model, megabytes, seed)
        broker.cli("load", path, "--name", model)
        expected[model] = crcs(path)
        path.unlink()  # from here on there is nothing to read again
    before = identities(broker)
    with workers(broker, 3, WORKER, json.dumps(expected)) as three:
        pids = sorted(worker.pid for worker in three)
        for kill in range(100):
            wait_until(lambda: broker.books()["leases"] == 6)
            if kill % 2:  # in every second round the new attach is under way in the death
                tell(three[kill % 3], "ab"[kill % 4 // 2])
            broker.kill()
            broker.start()
            if kill % 2:
                assert line_of(three[kill % 3]) == "attached"
            wait_until(lambda: broker.books()["leases"] == 6)
            assert identities(broker) == before
            for model in broker.cli_json("ps"):
                assert sorted(lease["pid"] for lease in model["leases"]) == pids
            assert_books_are_the_kernels(broker)
            if not kill % 2:
                tell(three[kill % 3], "ab"[kill % 4 // 2])
                assert line_of(three[kill % 3]) == "attached"
            assert [worker.poll() for worker in three] == [None] * 3
        for worker in three:
            tell(worker, "quit")
            assert int(line_of(worker)) > 0
            assert worker.wait(60) == 0
    wait_until(lambda: broker.books()["leases"] == 0)
    broker.cli("unload", "a")
    broker.cli("unload", "b")
    wait_until(broker.is_empty)


def restart_and_take_stock(broker: BrokerProcess, expected: dict[str, int]) -> None:
    """After a death in a load: all of the block or nothing of it; then an honest load works."""
    broker.start()
    assert_books_are_the_kernels(broker)
    with broker.connect() as client:
        if broker.cli_json("ps"):
            assert_right_bytes(client, "m", expected)
            client.unload("m", wait=True)
    wait_until(broker.is_empty)


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_load_leaves_all_or_nothing(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 60)
    expected = crcs(path)
    chance = random.Random(SEED)
    with broker.connect() as client:
        seconds = client.load(path, "m").seconds
        client.unload("m", wait=True)
    for _ in range(25):
        loader = subprocess.Popen(
            [BINARY, "load", path, "--name", "m", "--retry"],  # however often it was killed
            env=broker.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):  # a moment by chance, nothing to wait for
            subprocess.run(["sleep", "60"], timeout=chance.uniform(0, 1.5 * seconds), check=True)
        broker.kill()
        loader.kill()
        loader.wait()
        restart_and_take_stock(broker, expected)
    with broker.connect() as client:
        assert client.load(path, "m", retry=True).outcome == "loaded"
        assert_right_bytes(client, "m", expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_kill_while_the_list_says_loading_leaves_nothing(
    broker: BrokerProcess, tmp_path: Path, share: float
) -> None:
    path = files.write_random(tmp_path / "small.safetensors", 1)
    expected = crcs(path)
    long = tmp_path / "m.safetensors"
    size = 512 << 20
    long.write_bytes(files.encode({"t": files.entry("U8", [size], 0, size)}))
    os.truncate(long, long.stat().st_size + size)

    def so_far(client: modelbroker.Broker) -> bool:
        enough = any(model.loaded_bytes >= share * size for model in client.list())
        return enough and broker.bytes_in_ram() > 0

    with broker.connect() as client:
        loader = freeze_in_a_load(
            broker,
            client,
            begin=lambda: subprocess.Popen(
                [BINARY, "load", long, "--name", "m"], env=broker.environment
            ),
            end=lambda loader: loader.wait(60),
            due=lambda loader: so_far(client) or loader.poll() is not None,
        )
        broker.kill()
        loader.kill()
        loader.wait()
        broker.start()
        assert broker.is_empty()
        client.load(path, "m")
        assert_right_bytes(client, "m", expected)


@pytest.mark.slow
def test_names_and_pins_survive_a_kill_right_after_they_were_acknowledged(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 0.1)

    def after(act: Callable[[], object]) -> list[tuple[str, list[str], bool]]:
        act()
        broker.kill()
        broker.start()
        assert_books_are_the_kernels(broker)
        return [(model.name, model.aliases, model.pinned) for model in client.list()]

    with broker.connect() as client:
        for _ in range(10):
            assert after(lambda: client.load(path, "m")) == [("m", [], False)]
            assert after(lambda: client.load(path, "alias")) == [("m", ["alias"], False)]
            assert after(lambda: client.pin("alias")) == [("m", ["alias"], True)]
            assert after(lambda: client.unpin("m")) == [("m", ["alias"], False)]
            assert after(lambda: client.unload("m")) == [("alias", [], False)]
            assert after(lambda: client.load(path, "m", pin=True)) == [("alias", ["m"], True)]
            assert after(lambda: client.unload("m")) == [("alias", [], True)]
            assert after(lambda: client.unload("alias")) == []
            wait_until(broker.is_empty)


def calls(client: modelbroker.Broker, path: Path) -> dict[str, Callable[[], Any]]:
    return {
        "list": lambda: [model.name for model in client.list()],
        "status": lambda: client.status().tiers["ram"].models,
        "attach": lambda: client.attach("m").model,
        "attach by path": lambda: client.attach(path).model,
        "load": lambda: client.load(path, "m").outcome,
        "pin": lambda: client.pin("m"),
    }


def test_every_call_in_flight_at_a_death_is_answered_by_the_next_broker(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    expected: dict[str, Any] = {
        "list": ["m"],
        "status": 1,
        "attach": "m",
        "attach by path": "m",
        "load": "resident",
        "pin": None,
    }
    with broker.connect() as client, ThreadPoolExecutor(len(expected)) as threads:
        client.load(path, "m")
        broker.freeze()  # it takes no call any more, and so answers none
        barrier = threading.Barrier(len(expected) + 1)

        def ask(call: Callable[[], Any]) -> Any:
            barrier.wait()
            return call()

        asked: dict[str, Future[Any]] = {
            name: threads.submit(ask, call) for name, call in calls(client, path).items()
        }
        barrier.wait()
        broker.kill()
        assert not any(future.done() for future in asked.values())
        broker.start()
        assert {name: future.result(60) for name, future in asked.items()} == expected
    wait_until(lambda: broker.books()["leases"] == 0)


def test_a_load_under_way_at_a_death_is_done_by_the_next_broker(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    size = 256 << 20
    path = tmp_path / "m.safetensors"
    path.write_bytes(files.encode({"t": files.entry("U8", [size], 0, size)}))
    os.truncate(path, path.stat().st_size + size)
    with broker.connect() as client, ThreadPoolExecutor(1) as threads:
        load = freeze_in_a_load(
            broker,
            client,
            begin=lambda: threads.submit(client.load, path, "m"),
            end=lambda load: load.result(60),
            due=lambda load: bool(broker.blocks()) or load.done(),
        )
        broker.kill()
        broker.start()
        loaded = load.result(60)
        assert (loaded.outcome, loaded.payload_bytes) == ("loaded", size)
    assert_books_are_the_kernels(broker)
