"""One Broker in many threads."""

from __future__ import annotations

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.offers import meet_after_offers


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


def test_many_threads_hand_in_their_files_at_once_and_load_them_all(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 128
    meet_after_offers(monkeypatch, number)
    paths = [files.write_random(tmp_path / f"m{n}", 0.01, seed=n) for n in range(number)]
    with broker.connect() as client, ThreadPoolExecutor(number) as threads:
        loads = [threads.submit(client.load, path) for path in paths]
        assert {load.result(120).outcome for load in loads} == {"loaded"}
