"""The clock jumps (a suspended machine wakes up): nobody who is alive loses anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import wait_until
from support.faults import FaultyBroker


@pytest.fixture
def faulty() -> Iterator[FaultyBroker]:
    broker = FaultyBroker()
    yield broker
    broker.stop()


@pytest.mark.parametrize("jump", [60.0, 86400.0, 1e9, -60.0, -86400.0])
def test_leases_loads_and_generations_outlive_a_jump(
    faulty: FaultyBroker, tmp_path: Path, jump: float
) -> None:
    now = 1e6
    faulty.faults.set_clock(now)
    faulty.start()
    first = files.write_random(tmp_path / "first.safetensors", 2, seed=1)
    second = files.write_random(tmp_path / "second.safetensors", 2, seed=2)
    with faulty.connect() as client:
        weights = client.attach(first)
        bytes_before = weights.numpy()["t0"].tobytes()
        generation = weights.generation
        faulty.faults.set_clock(now + jump)
        later = client.load(second, timeout=60)
        assert later.generation > generation
        books = client.status().tiers["ram"]
        assert (books.leases, books.models) == (1, 2)
        assert weights.numpy()["t0"].tobytes() == bytes_before
        client.unload("second", wait=True)
        faulty.kill()
        faulty.faults.set_clock(now + 2 * jump if now + 2 * jump > 0 else now)
        faulty.launch()
        wait_until(lambda: (faulty.run / "fds.sock").exists())
        faulty.faults.set_clock(0)  # time goes on
        wait_until(lambda: client.status().tiers["ram"].leases == 1)
        assert client.load(second).generation > generation
