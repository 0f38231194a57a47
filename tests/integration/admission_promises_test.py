"""Room that was promised and does not come, and a limit that was lowered."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelbroker import CancelledError
from support import files
from support.broker import BrokerProcess
from support.hanging_files import hanging_file

MIB = 1 << 20
READS = 20  # then some of a load's pages exist
MakeBroker = Callable[..., BrokerProcess]


@pytest.mark.parametrize("seconds", [0, 11])
def test_a_cancelled_load_whose_read_hangs_keeps_nobody_from_evicting(
    make_broker: MakeBroker, tmp_path: Path, seconds: int
) -> None:
    """What is wanted waits so long until there is something to evict."""
    broker = make_broker("--ram-budget", "60MiB").start()
    content = files.write_random(tmp_path / "content", 28).read_bytes()
    other = files.write_random(tmp_path / "other.safetensors", 24, seed=1)
    wanted = files.write_random(tmp_path / "wanted.safetensors", 27, seed=2)
    with (
        hanging_file(tmp_path / "fuse", content, READS) as slow,
        broker.connect() as client,
        broker.connect() as hung,
        ThreadPoolExecutor(2) as pool,
    ):
        weights = client.attach(other)
        running = pool.submit(hung.load, slow.path)
        assert slow.hanging.wait(60)
        client.cancel(slow.path.stem)
        with pytest.raises(CancelledError):
            running.result(60)
        if seconds > 0:
            waiting = pool.submit(hung.load, wanted, timeout=60)
            time.sleep(seconds)
            weights.release()
            assert waiting.result(60).outcome == "loaded"
        else:
            weights.release()
            assert client.load(wanted).outcome == "loaded"
        books = broker.books()
        assert books["evictions"] == 1
        assert books["reserved"] > 0, "the room of what hangs is not free yet"


def test_while_a_cancelled_load_may_still_end_it_is_waited_for(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "60MiB").start()
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    wanted = files.write_random(tmp_path / "wanted.safetensors", 27)
    with (
        hanging_file(tmp_path / "fuse", content, READS) as slow,
        broker.connect() as client,
        ThreadPoolExecutor(2) as pool,
    ):
        running = pool.submit(client.load, slow.path)
        assert slow.hanging.wait(60)
        client.cancel(slow.path.stem)
        with pytest.raises(CancelledError):
            running.result(60)
        waiting = pool.submit(client.load, wanted)
        time.sleep(2)
        slow.go_on()
        assert waiting.result(60).outcome == "loaded"
