"""Subscribers that do not read, or missed something: nobody waits, and a gap is told and healed."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BINARY, COUNTED, BrokerProcess, wait_until
from support.listener import Listener, listening, seqs_rise
from support.raw_wire import call, dealer, frame, received

BATCH = 250  # exchanges between two looks of the one that reads: the broker keeps 1000 events


def flood(broker: BrokerProcess, exchanges: int, ear: Listener | None = None) -> None:
    """Two events an exchange: a lease that is granted, and released again."""
    with dealer(broker) as peer:
        for first in range(0, exchanges, BATCH):
            count = min(BATCH, exchanges - first)
            leases = []
            for _ in range(count):
                peer.send(frame("model.attach", {"model": "m"}))
            for _ in range(count):
                leases.append(received(peer.recv())["data"]["lease"])
            for lease in leases:
                peer.send(frame("model.detach", {"lease": lease}))
            for _ in leases:
                assert received(peer.recv())["data"] == {"released": True}
            if ear is not None:
                known = call(peer, "session.ping")["data"]["seq"]
                while not ear.heard or ear.heard[-1]["seq"] < known:
                    ear.next()


def test_who_never_reads_costs_a_bounded_amount_and_delays_nobody(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker(environment=COUNTED).start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with listening(broker) as reader, listening(broker, high_water=1) as silent:
        flood(broker, 2_000, reader)  # what a busy broker takes anyway, and the silent one's share
        before = broker.own_memory()
        flood(broker, 20_000, reader)
        grown = broker.own_memory() - before
        assert len(reader.heard) > 44_000
        assert seqs_rise(reader.heard)  # the other one got everything
        # 40,000 events that were kept would be more than 20 MB.
        assert grown < 5 << 20, f"{grown} bytes"
        # Whoever reads at last has the first of them, and then a gap.
        late = silent.drain()
        assert 0 < len(late) < 10_000

        def gap_is_seen() -> bool:
            flood(broker, 1)
            silent.drain()
            return not seqs_rise(silent.heard)

        wait_until(gap_is_seen)
        with broker.connect() as client:
            assert client.list()[0].leases == []


def test_the_iterator_tells_a_gap_and_goes_on(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with broker.connect() as client, client.events() as stream:
        first = next(stream)
        assert (first.type, first.data["reason"]) == ("snapshot", "start")
        flood(broker, 5_000)
        told = [first]
        while told[-1].type != "snapshot" or len(told) == 1:
            told.append(next(stream))
        gap = told[-1]
        assert gap.data["reason"] == "gap"
        assert [model["name"] for model in gap.data["models"]] == ["m"]
        assert [event.seq for event in told[:-1]] == list(
            range(first.seq, first.seq + len(told) - 1)
        )
        assert gap.seq > first.seq + 10_000
        client.pin("m")
        pinned = next(event for event in stream if event.type == "model.pinned")
        assert pinned.seq > gap.seq


def test_a_gap_that_nothing_follows_is_found_too(broker: BrokerProcess, tmp_path: Path) -> None:
    """What was dropped last shows in no later event: the iterator compares in silence."""
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with broker.connect() as client, client.events("model.*") as stream:
        next(stream)
        flood(broker, 5_000)
        event = next(stream)
        assert (event.type, event.data["reason"]) == ("snapshot", "gap")


def test_the_command_tells_a_gap_and_goes_on(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    command = subprocess.Popen(
        [BINARY, "events", "--json"], env=broker.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert command.stdout is not None
        assert json.loads(command.stdout.readline())["data"]["reason"] == "start"
        flood(broker, 5_000)  # its pipe is full long before
        with broker.connect() as client, client.events() as stream:
            last = next(stream).seq
        # On a busy machine there may be a gap before the pipe is full, and another: all is read.
        reasons = []
        for event in map(json.loads, command.stdout):
            if event["type"] == "snapshot":
                reasons.append(event["data"]["reason"])
            if event["seq"] >= last:
                break
        assert set(reasons) == {"gap"}
        broker.cli("pin", "m")
        pinned = next(e for e in map(json.loads, command.stdout) if e["type"] == "model.pinned")
        assert pinned["seq"] > event["seq"]
    finally:
        command.kill()
        command.communicate()


def test_the_iterator_outlives_its_broker(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker().start()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with broker.connect() as client, client.events() as stream:
        first = next(stream)
        client.load(path)
        loaded = next(event for event in stream if event.type == "model.loaded")
        for how in (broker.kill, broker.terminate):
            how()
            if how == broker.terminate:
                assert next(stream).type == "broker.stopping"
            assert stream.next(timeout=0.5) is None
            broker.start("--on-stop", "keep")
            again = next(event for event in stream if event.type == "snapshot")
            assert again.data["reason"] == "restart"
            assert again.boot_id not in (first.boot_id, loaded.boot_id)
            assert [model["block"] for model in again.data["models"]] == [loaded.data["block"]]
            client.pin("m")
            pinned = next(event for event in stream if event.type == "model.pinned")
            assert (pinned.boot_id, pinned.seq > again.seq) == (again.boot_id, True)
            client.unpin("m")
            assert next(stream).type == "model.unpinned"
            first = again


def test_the_iterator_ends_when_it_is_closed_or_has_waited(broker: BrokerProcess) -> None:
    client = broker.connect()
    with client.events("model.*", timeout=0.2) as stream:
        assert [event.type for event in stream] == ["snapshot"]
    assert list(stream) == []
    stream = client.events()
    next(stream)
    client.close()
    assert list(stream) == []
    with pytest.raises(modelbroker.FailedPreconditionError):
        client.events()


def test_close_ends_an_iteration_that_waits_in_another_thread(broker: BrokerProcess) -> None:
    with broker.connect() as client:
        stream = client.events("no.such")
        told: list[str] = []
        thread = threading.Thread(target=lambda: told.extend(event.type for event in stream))
        thread.start()
        wait_until(lambda: told == ["snapshot"])
        stream.close()
        thread.join(30)
        assert not thread.is_alive()


def test_listeners_that_come_and_go_leave_nothing(broker: BrokerProcess) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{broker.pid}/fd").iterdir()))

    with listening(broker):
        pass
    before = descriptors()
    for _ in range(30):
        with listening(broker) as ear, broker.connect() as client:
            next(client.events())
            ear.next()
    wait_until(lambda: descriptors() <= before + 1)
