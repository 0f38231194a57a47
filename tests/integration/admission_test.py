"""Loads beside each other: joined, queued with a deadline, cancelled, stopped in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import modelbroker
from modelbroker import (
    CancelledError,
    DeadlineExceededError,
    NotFoundError,
    ResourceExhaustedError,
)
from support import files
from support.broker import COUNTED, BrokerProcess, wait_until
from support.hanging_files import hanging_file
from support.listener import sparse_model
from support.raw_wire import code_of, dealer, frame, received
from support.small_tmpfs import with_folder
from support.tight import Tight, loading, make_tight

MIB = 1 << 20
READS = 20  # then some of a load's pages exist
MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture
def tight(make_broker: MakeBroker, tmp_path: Path) -> Tight:
    return make_tight(make_broker, tmp_path)


def test_twenty_who_want_one_file_are_one_load(broker: BrokerProcess, tmp_path: Path) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 40)
    clients = [broker.connect() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda client: client.load(source), clients))
    assert len({loaded.block for loaded in got}) == 1
    assert broker.books()["loads"] == 1
    assert len(broker.blocks()) == 1
    for client in clients:
        client.close()


def test_who_has_time_waits_for_room_and_who_has_none_is_refused(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with broker.connect() as client, broker.connect() as other:
        weights = client.attach(first)
        with pytest.raises(ResourceExhaustedError):
            other.load(second)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.load, second, timeout=60)
            wait_until(lambda: loading(broker) == ["second"])
            time.sleep(0.3)
            assert not waiting.done()
            weights.release()
            assert waiting.result(60).outcome == "loaded"
        assert [model.name for model in client.list()] == ["second"]


def test_a_deadline_ends_with_the_numbers_of_the_refusal(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with broker.connect() as client, client.attach(first):
        began = time.monotonic()
        with pytest.raises((ResourceExhaustedError, DeadlineExceededError)) as caught:
            client.load(second, timeout=1.0)
        assert time.monotonic() - began >= 0.5, "it waited"
        assert isinstance(caught.value, ResourceExhaustedError)
        assert caught.value.details["leased"] > 0
        assert loading(broker) == []


def test_who_cannot_be_served_yet_holds_up_nobody(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker("--ram-budget", "48MiB").start()
    held = files.write_random(tmp_path / "held.safetensors", 25, seed=1)
    large = files.write_random(tmp_path / "large.safetensors", 40, seed=2)
    small = files.write_random(tmp_path / "small.safetensors", 5, seed=3)
    with broker.connect() as client, broker.connect() as one, ThreadPoolExecutor(1) as pool:
        weights = client.attach(held)
        first = pool.submit(one.load, large, timeout=60)
        wait_until(lambda: loading(broker) == ["large"])
        assert client.load(small, timeout=60).outcome == "loaded"  # there is room for it
        assert not first.done()
        weights.release()  # now the first in the queue may evict both
        assert first.result(60).outcome == "loaded"
        assert "held" not in {model.name for model in client.list()}


def test_a_waiting_load_is_cancelled_by_another_client(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with broker.connect() as client, broker.connect() as other, client.attach(first):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.load, second, timeout=60)
            wait_until(lambda: loading(broker) == ["second"])
            assert client.cancel("second") == 1
            with pytest.raises(CancelledError):
                waiting.result(60)
        with pytest.raises(NotFoundError):
            client.cancel("second")
        assert broker.books()["reserved"] == 0


def test_a_running_load_is_cancelled_and_its_memory_given_back(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    with (
        hanging_file(tmp_path / "fuse", content, READS) as slow,
        broker.connect() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.load, slow.path)
        assert slow.hanging.wait(60)
        wait_until(lambda: broker.bytes_in_ram() > 0)
        broker.cli("cancel", slow.path.stem)
        with pytest.raises(CancelledError):
            running.result(60)
        slow.go_on()
        wait_until(broker.is_empty)
        assert client.load(slow.path).outcome == "loaded"


def test_a_load_that_nobody_waits_for_any_more_is_given_up(tight: Tight) -> None:
    broker, first, second = tight.broker, tight.first, tight.second
    with broker.connect() as client, client.attach(first):
        command = broker.cli  # a process of its own, to be ended
        thread = threading.Thread(
            target=command, args=("load", second, "--timeout", "60"), kwargs={"check": False}
        )
        thread.start()
        wait_until(lambda: loading(broker) == ["second"])
        assert client.cancel("second") == 1
        thread.join()
        assert loading(broker) == []


@pytest.mark.parametrize("what", ["load", "attach"])
def test_past_its_deadline_a_load_is_given_up(
    broker: BrokerProcess, tmp_path: Path, what: str
) -> None:
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    with hanging_file(tmp_path / "fuse", content, READS) as slow, broker.connect() as client:
        with pytest.raises(DeadlineExceededError):
            getattr(client, what)(slow.path, timeout=2.0)
        assert slow.hanging.is_set(), "it was being read"
        assert loading(broker) == []
        slow.go_on()
        wait_until(broker.is_empty)
        assert broker.books()["loads"] == 0


def test_an_attach_that_was_given_up_before_it_was_sent_loads_nothing(tight: Tight) -> None:
    broker = tight.broker
    with broker.connect() as client, broker.connect() as late:
        client.load(tight.first)
        client.load(tight.second)  # in its place
        broker.freeze()  # and no socket of the other client's is connected yet
        with pytest.raises(DeadlineExceededError):
            late.attach("first", timeout=0.1)
        time.sleep(0.5)  # a thread of ZeroMQ's closes its socket
        broker.thaw()
        assert late.load(tight.second).outcome == "resident"
        assert broker.books()["loads"] == 2
        assert [model.name for model in client.list()] == ["second"]


def test_unload_during_a_load_and_load_during_a_drain(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 200, tensors=4)
    broker = make_broker("--load-threads", "1").start()
    with broker.connect() as client, broker.connect() as other, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.load, source)
        wait_until(lambda: broker.bytes_in_ram() > 0 or running.done(), every=0.001)
        if not running.done():
            with pytest.raises(NotFoundError):  # cancel is the word for that
                other.unload("m")
        running.result(60)
        with client.attach("m") as weights:
            assert other.unload("m").draining > 0
            again = other.load(source)
            assert (again.outcome, again.generation) == ("revived", weights.generation)
        assert broker.books()["draining"] == 0


def test_attach_and_evict_in_turn_from_many_threads(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    """Whoever attaches gets right bytes or a refusal; the books are exact at the end."""
    sources = [
        files.write_random(tmp_path / f"m{i}.safetensors", 5, seed=i, tensors=2) for i in range(8)
    ]
    right = [source.read_bytes()[-1000:] for source in sources]
    broker = make_broker("--ram-budget", "24MiB").start()
    refused, right_ones = [0], [0]

    def work(seed: int) -> None:
        with broker.connect() as client:
            for step in range(40):
                i = (seed * 3 + step * 5) % len(sources)
                try:
                    with client.attach(sources[i], timeout=20) as weights:
                        # No name for the array: it would hold the lease into the next attach.
                        assert weights.numpy()["t1"].tobytes()[-1000:] == right[i]
                        right_ones[0] += 1
                except ResourceExhaustedError:
                    refused[0] += 1

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work, seed) for seed in range(6)]:
            future.result(200)
    assert right_ones[0] > 100
    with broker.connect() as client:
        for model in client.list():
            client.unload(model.name, wait=True)
    assert broker.is_empty()


def test_a_load_stops_below_the_memory_reserve_and_gives_back_what_it_made(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--memory-reserve", "1000TiB").start()
    with broker.connect() as client:
        with pytest.raises(ResourceExhaustedError) as caught:
            client.load(files.write_random(tmp_path / "m.safetensors", 20))
        details = caught.value.details
        assert details["memory_reserve"] == 1000 << 40
        assert 0 < details["available"] < details["memory_reserve"]
        assert "memory" in str(caught.value)
    wait_until(broker.is_empty)


class Limited(BrokerProcess):
    """In a control group whose files are ours to write."""

    def __init__(self, group: Path, *flags: str) -> None:
        super().__init__(*flags)
        self.group = group
        self.group.mkdir()
        (group / "memory.current").write_text("0\n")

    def serve_command(self) -> list[str]:
        return with_folder(self.group, Path("/sys/fs/cgroup"), super().serve_command())


def test_the_reserve_is_looked_at_again_while_a_load_goes_on(tmp_path: Path) -> None:
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    limit = tmp_path / "group" / "memory.max"
    broker = Limited(limit.parent, "--memory-reserve", "64MiB", "--load-threads", "1")
    limit.write_text(f"{1 << 40}\n")
    try:
        broker.start()
        with (
            hanging_file(tmp_path / "fuse", content, READS) as slow,
            broker.connect() as client,
            ThreadPoolExecutor(1) as pool,
        ):
            running = pool.submit(client.load, slow.path)
            assert slow.hanging.wait(60)
            wait_until(lambda: broker.bytes_in_ram() > 0)
            limit.write_text(f"{65 * MIB}\n")
            slow.go_on()
            with pytest.raises(ResourceExhaustedError, match="control group") as caught:
                running.result(60)
            assert caught.value.details["available"] == 65 * MIB
            wait_until(broker.is_empty)
            limit.write_text("max\n")
            assert client.load(slow.path).outcome == "loaded"
    finally:
        broker.stop()


QUEUE = 256  # kMostWaiting


def test_the_queue_has_an_end_and_who_is_in_it_is_served(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "16MiB").start()
    broker.cli("load", sparse_model(tmp_path / "pinned.safetensors", 12), "--pin")
    with dealer(broker) as peer:
        for number in range(QUEUE + 3):
            path = sparse_model(tmp_path / f"m{number}.safetensors", 6)
            peer.send(
                frame("model.load_model", {"path": str(path)}, f"{number}", deadline_ms=300_000)
            )
        refused = [received(peer.recv()) for _ in range(3)]
        assert [code_of(reply) for reply in refused] == ["resource_exhausted"] * 3
        wait_until(lambda: len(loading(broker)) == QUEUE)
        assert peer.poll(0) == 0, "and nobody else"
        broker.cli("unload", "pinned")
        replies = [received(peer.recv()) for _ in range(QUEUE)]
        assert all(reply["success"] for reply in replies), replies
        assert {reply["data"]["outcome"] for reply in replies} == {"loaded"}
    assert broker.books()["loads"] == QUEUE + 1


CLIENTS = 8


def test_ten_thousand_attaches_and_detaches_leave_nothing(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker(environment=COUNTED).start()
    source = files.write_random(tmp_path / "m.safetensors", 1)
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [stack.enter_context(broker.connect()) for _ in range(CLIENTS)]
        clients[0].load(source)

        def attach(client: modelbroker.Broker, times: int) -> None:
            for _ in range(times):
                client.attach("m").release()

        list(pool.map(attach, clients, [125] * CLIENTS))
        before = broker.own_memory()
        list(pool.map(attach, clients, [1125] * CLIENTS))
        assert broker.own_memory() < before + 4 * MIB, "the broker grew"
        wait_until(lambda: broker.books()["leases"] == 0)
        assert broker.descriptors() < 64 + 4 * CLIENTS
        clients[0].unload("m", wait=True)
    assert broker.is_empty()
