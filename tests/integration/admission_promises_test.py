"""Room that was promised and does not come, and a limit that was lowered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelbroker import CancelledError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until
from support.features import needs
from support.hanging_files import hanging_file
from support.tight import loading, make_tight

MIB = 1 << 20
READS = 20  # then some of a load's pages exist
MakeBroker = Callable[..., BrokerProcess]


def test_a_cancelled_load_whose_read_hangs_keeps_nobody_from_evicting(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
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


@needs("write_lease")  # else nobody sees who has it open
def test_a_block_that_was_open_is_evicted_for_who_waits_as_soon_as_it_is_not(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    tight = make_tight(make_broker, tmp_path)
    with tight.broker.connect() as client, ThreadPoolExecutor(1) as pool:
        client.load(tight.first)
        held = os.open(tight.broker.cli_json("show", "first")["block_path"], os.O_RDONLY)
        waiting = pool.submit(client.load, tight.second, timeout=300)
        wait_until(lambda: loading(tight.broker) == ["second"])
        os.close(held)
        assert waiting.result(60).outcome == "loaded"


# ---- a limit that was lowered


class Lowered:
    """Three models of 25 MiB each below a limit of 100 MiB, which can be lowered."""

    def __init__(self, make_broker: MakeBroker, folder: Path) -> None:
        self.file = folder / "broker.toml"
        self.file.write_text("[ram]\nbudget = '100MiB'\n")
        self.broker = make_broker("--config", str(self.file)).start()
        self.sources = [
            files.write_random(folder / f"m{i}.safetensors", 25, seed=i) for i in range(3)
        ]

    def lower(self, mebibytes: int) -> None:
        self.file.write_text(f"[ram]\nbudget = '{mebibytes}MiB'\n")
        os.kill(self.broker.pid, signal.SIGHUP)
        wait_until(lambda: self.broker.books()["limit"] == mebibytes * MIB)

    def names(self) -> set[str]:
        return {model["name"] for model in self.broker.cli_json("ps")}


@pytest.fixture
def lowered(make_broker: MakeBroker, tmp_path: Path) -> Lowered:
    return Lowered(make_broker, tmp_path)


@needs("write_lease")  # else nobody sees who has it open
def test_a_lower_limit_is_kept_as_far_as_that_goes_and_then_wholly(lowered: Lowered) -> None:
    broker = lowered.broker
    for source in lowered.sources:
        broker.cli("load", source)
    first = broker.cli_json("show", "m0")["block_path"]
    held = os.open(first, os.O_RDONLY)
    lowered.lower(20)
    wait_until(lambda: lowered.names() == {"m0"})
    os.close(held)
    wait_until(lambda: lowered.names() == set())
    wait_until(broker.is_empty)


def test_what_was_used_when_the_limit_was_lowered_goes_with_its_last_lease(
    lowered: Lowered,
) -> None:
    with lowered.broker.connect() as client:
        weights = [client.attach(source) for source in lowered.sources]
        lowered.lower(60)
        assert lowered.names() == {"m0", "m1", "m2"}
        weights[0].release()
        wait_until(lambda: lowered.names() == {"m1", "m2"})
        weights[1].release()
        assert lowered.names() == {"m1", "m2"}, "there is room for both"


def test_above_a_lower_limit_nothing_goes_for_what_cannot_fit(
    lowered: Lowered, tmp_path: Path
) -> None:
    wanted = files.write_random(tmp_path / "wanted.safetensors", 20, seed=9)
    with lowered.broker.connect() as client, client.attach(lowered.sources[0]):
        client.unload("m0")  # drains: still counted
        with client.attach(lowered.sources[1]):
            client.load(lowered.sources[2])
            lowered.lower(60)
            with pytest.raises(ResourceExhaustedError):
                client.load(wanted)
            assert {model.name for model in client.list()} == {"m1", "m2"}


def test_a_broker_that_starts_above_its_limit_goes_below_it(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--grace", "1s").start("--ram-budget", "100MiB")
    with broker.connect() as client:
        weights = client.attach(files.write_random(tmp_path / "used.safetensors", 25, seed=1))
        client.load(files.write_random(tmp_path / "idle.safetensors", 25, seed=2))
        broker.kill()
        broker.start("--ram-budget", "20MiB")
        wait_until(lambda: [model.name for model in client.list()] == ["used"])
        weights.release()
        wait_until(broker.is_empty)
