"""One Broker in many threads."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import files
from support.broker import BrokerProcess, wait_until


def test_sixteen_threads_share_one_broker(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m", 2)
    own = [files.write_random(tmp_path / f"own{n}", 0.05, seed=n) for n in range(16)]
    barrier = threading.Barrier(16)
    with broker.connect() as client, ThreadPoolExecutor(16) as threads:
        client.load(path, "m")
        with client.attach("m") as weights:
            right = {name: zlib.crc32(weights.raw(name).data) for name in weights}

        def work(number: int) -> None:
            barrier.wait()
            for _ in range(15):
                name = f"own{number}"
                assert client.load(own[number], name).outcome == "loaded"
                with client.attach("m") as weights, client.attach(name) as mine:
                    assert {n: zlib.crc32(weights.raw(n).data) for n in weights} == right
                    assert mine.metadata == {"seed": str(number)}
                    assert {"m", name} <= {model.name for model in client.list()}
                    client.pin(name)
                del weights, mine
                assert client.load(path, "m").outcome == "resident"
                client.unload(name, wait=True)

        for future in [threads.submit(work, number) for number in range(16)]:
            future.result(120)
        wait_until(lambda: broker.books()["leases"] == 0)
        client.unload("m", wait=True)
    assert broker.is_empty()


def test_a_load_by_sixteen_threads_is_one_load(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m", 20)
    barrier = threading.Barrier(16)
    with broker.connect() as client, ThreadPoolExecutor(16) as threads:

        def load() -> str:
            barrier.wait()
            return client.load(path, "m").outcome

        outcomes = [future.result(60) for future in [threads.submit(load) for _ in range(16)]]
        assert sorted(outcomes) == ["loaded"] + ["resident"] * 15
        assert client.status().tiers["ram"].loads == 1


def test_weights_attached_in_one_thread_are_released_in_another(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 2), "--name", "m")
    with (
        broker.connect() as client,
        ThreadPoolExecutor(1) as first,
        ThreadPoolExecutor(1) as second,
    ):
        held = [first.submit(client.attach, "m").result(60) for _ in range(5)]
        tensors = [second.submit(weights.numpy).result(60) for weights in held]
        for weights in held:
            first.submit(weights.release).result(60)
        del weights
        assert broker.books()["leases"] == 5
        second.submit(tensors.clear).result(60)
        wait_until(lambda: broker.books()["leases"] == 0)


def test_more_threads_than_the_broker_keeps_files_for_load_them_all(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    number = 128  # the broker keeps 64 files of a session
    paths = [files.write_random(tmp_path / f"m{n}", 0.01, seed=n) for n in range(number)]
    socket, aside = broker.run / "broker.sock", broker.run / "aside"
    with broker.connect() as client, ThreadPoolExecutor(number) as threads:
        before = broker.descriptors()
        socket.rename(aside)  # files come to the broker, and no request that uses them
        loads = [threads.submit(client.load, path) for path in paths]
        wait_until(lambda: broker.descriptors() >= before + 32)
        time.sleep(0.2)  # if more are to come, they come now
        aside.rename(socket)
        assert {load.result(120).outcome for load in loads} == {"loaded"}


def test_loads_that_wait_for_room_hold_up_no_other(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "40MiB").start()
    small, first, big = (
        files.write_random(tmp_path / name, size)
        for name, size in (("small", 1), ("first", 25), ("big", 25))
    )
    with broker.connect() as client, ThreadPoolExecutor(40) as threads:
        client.load(small)
        weights = client.attach(first)
        waiting = [threads.submit(client.load, big, timeout=120) for _ in range(40)]
        time.sleep(0.5)  # most of them have handed in their file
        assert client.load(small).outcome == "resident"
        weights.release()
        del weights
        assert {future.result(120).model for future in waiting} == {"big"}
