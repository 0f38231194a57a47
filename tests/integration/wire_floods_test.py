"""More connections than descriptors, on every socket: the broker lives, and serves who is there."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.offers import meet_after_offers
from support.raw_wire import call, code_of, dealer, frame, open_session, packet, packets
from support.workers import assert_right_bytes, crcs

LIMIT = 256
FLOOD = 2000
SOCKETS = {
    "broker.sock": socket.SOCK_STREAM,
    "events.sock": socket.SOCK_STREAM,
    "fds.sock": socket.SOCK_SEQPACKET,
}


class SmallBroker(BrokerProcess):
    """May have so many descriptors, and no more."""

    def serve_command(self) -> list[str]:
        limited = f'ulimit -n {LIMIT}; exec "$0" "$@"'
        return ["sh", "-c", limited, *super().serve_command()]


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * FLOOD:
        pytest.skip(f"this process may have {before[1]} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return files.write_random(tmp_path / "m.safetensors", 3)


@pytest.fixture
def broker(model: Path) -> Iterator[BrokerProcess]:
    started = SmallBroker().start()
    started.cli("load", model)
    yield started
    started.stop()


def connected(path: Path, kind: int, stack: ExitStack) -> socket.socket:
    """One connection, whether the broker keeps it or not."""
    one = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
    one.connect(str(path))
    return one


@contextmanager
def flood(broker: BrokerProcess, *names: str) -> Iterator[list[socket.socket]]:
    """Silent connections; those that the broker hangs up on are held all the same."""
    with ExitStack() as stack:
        made = []
        for _ in range(FLOOD):
            for name in names:
                made.append(connected(broker.run / name, SOCKETS[name], stack))
        yield made


def assert_served(broker: BrokerProcess, client: modelbroker.Broker, model: Path) -> None:
    assert broker.alive(), broker.output()
    assert_right_bytes(client, "m", crcs(model))
    assert client.load(model, "m").outcome == "resident"


@pytest.mark.parametrize(
    "names", [("broker.sock",), ("events.sock",), ("fds.sock",), tuple(SOCKETS)]
)
def test_a_flood_of_silent_connections_harms_nobody(
    broker: SmallBroker, model: Path, names: tuple[str, ...]
) -> None:
    with broker.connect() as client, client.attach("m") as weights:
        before = broker.descriptors()
        with flood(broker, *names):
            assert broker.descriptors() < LIMIT
            assert_served(broker, client, model)
            # They say nothing, so their places are taken from them, and a newcomer gets one.
            with broker.connect(timeout=60) as newcomer:
                assert_served(broker, newcomer, model)
        wait_until(lambda: broker.descriptors() <= before + 1)
        assert "refused" in broker.output()
        assert len(weights) == 4
    with broker.connect() as later:
        assert_served(broker, later, model)


def test_more_sessions_than_descriptors(broker: SmallBroker, model: Path) -> None:
    """Each one opened properly: as many as there is room for, and the others are hung up on."""
    with broker.connect() as client:
        with ExitStack() as stack:
            opened = 0
            for _ in range(LIMIT):
                one = connected(broker.run / "fds.sock", socket.SOCK_SEQPACKET, stack)
                with suppress(OSError):
                    one.send(frame("session.open"))
                    opened += bool(one.recv(1 << 16))
            assert LIMIT // 8 < opened < LIMIT // 2  # two descriptors each
            assert broker.descriptors() < LIMIT
            assert_served(broker, client, model)
        wait_until(lambda: client.status().sessions == 1)
        with broker.connect() as later:
            assert_served(broker, later, model)


def test_more_zeromq_peers_than_descriptors(broker: SmallBroker, model: Path) -> None:
    """Whole handshakes, of peers that connect again and again."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with broker.connect() as client:
        client.status()
        peers = [context.socket(zmq.DEALER) for _ in range(2 * LIMIT)]
        try:
            for peer in peers:
                peer.linger = 0
                peer.connect(broker.endpoint)
                peer.send(frame("session.ping"))
            poller = zmq.Poller()
            for peer in peers:
                poller.register(peer, zmq.POLLIN)
            wait_until(lambda: len(poller.poll(0)) > LIMIT // 4)
            assert_served(broker, client, model)
        finally:
            context.destroy(linger=0)
        with broker.connect() as later:
            assert_served(broker, later, model)


def test_descriptors_that_are_handed_in_do_not_use_up_the_reserve(
    broker: SmallBroker, model: Path
) -> None:
    with broker.connect() as client, model.open("rb") as file:
        client.status()
        with ExitStack() as stack:
            codes = set()
            for _ in range(6):
                peer = stack.enter_context(packets(broker))
                with suppress(OSError):  # there is no descriptor for a further session
                    open_session(peer)
                    for _ in range(60):
                        reply, _ = packet(peer, frame("file.offer"), file.fileno())
                        codes.add("" if reply["success"] else code_of(reply))
            assert codes == {"", "resource_exhausted"}
            assert broker.descriptors() < LIMIT
            assert_right_bytes(client, "m", crcs(model))
        assert_served(broker, client, model)
        with broker.connect() as later:
            assert_served(broker, later, model)


def test_threads_beyond_the_offers_that_a_session_may_have_are_told_so(
    broker: SmallBroker, model: Path
) -> None:
    with broker.connect() as client, ThreadPoolExecutor(80) as threads:
        with pytest.MonkeyPatch.context() as patch:
            meet_after_offers(patch, 80)
            loads = [threads.submit(client.load, model, "m") for _ in range(80)]
            errors = [load.exception(60) for load in loads]
        refused = [error for error in errors if error is not None]
        assert 0 < len(refused) < 80
        for error in refused:
            assert isinstance(error, modelbroker.ResourceExhaustedError)
            assert f"{80 - len(refused)} file offers" in str(error)
        assert_served(broker, client, model)


def test_connections_that_come_and_go_leave_no_account_behind(broker: SmallBroker) -> None:
    """Far more than there is room for at once, one after the other."""
    for _ in range(4 * LIMIT):
        with packets(broker) as peer:
            open_session(peer)
    for _ in range(40):
        with dealer(broker) as peer:
            assert call(peer, "session.ping")["success"]
    assert "refused" not in broker.output()


def test_a_broker_that_has_no_descriptor_left_refuses_and_lives(
    broker: SmallBroker, model: Path
) -> None:
    """The limit is lowered under it, to what it has: accept() itself fails now."""
    with broker.connect() as client:
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (broker.descriptors(), LIMIT))
        with flood(broker, *SOCKETS):
            assert broker.alive(), broker.output()
            assert client.status().sessions >= 1
        assert "descriptors have run out" in broker.output()
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        with broker.connect() as later:
            assert_served(broker, later, model)


def test_a_broker_that_dies_in_a_flood_is_back_with_every_block(model: Path) -> None:
    """Under --supervise; the flood meets the next broker too, and comes before everybody else."""
    supervised = SmallBroker("--supervise").start()
    try:
        supervised.cli("load", model)
        block = supervised.blocks()
        with supervised.connect() as client, client.attach("m") as weights:
            first = client.status().pid
            with flood(supervised, *SOCKETS):
                os.kill(first, signal.SIGKILL)
                wait_until(lambda: "was killed by SIGKILL" in supervised.output())
                wait_until(lambda: all(listening(supervised, name) for name in SOCKETS))
                with flood(supervised, *SOCKETS):
                    assert client.status().pid != first
                    assert_served(supervised, client, model)
                    assert supervised.blocks() == block
                    assert client.status().tiers["ram"].leases == 1
            assert len(weights) == 4
        assert supervised.terminate() == 0
        assert supervised.blocks() == []
    finally:
        supervised.stop()


def listening(broker: BrokerProcess, name: str) -> bool:
    with socket.socket(socket.AF_UNIX, SOCKETS[name]) as one:
        return one.connect_ex(str(broker.run / name)) == 0
