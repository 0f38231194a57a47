"""Speaking to a broker by hand, with pyzmq and msgpack, beside a worker that must not notice."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import zmq

from support import files
from support.broker import BrokerProcess, start_python, wait_until
from support.workers import assert_right_bytes, crcs, line_of, tell

Socket: TypeAlias = "zmq.Socket[bytes]"

# Tells the checksum of its weights for each line that it gets.
WORKER = """
import sys, zlib
import modelbroker

weights = modelbroker.connect(timeout=30).attach("m")
tensors = weights.state_dict()
for line in sys.stdin:
    print(zlib.crc32(b"".join(weights.raw(name).tobytes() for name in weights)), flush=True)
"""


@dataclass
class Town:
    """A broker with a model, a worker that holds it, and what both must look like for ever."""

    broker: BrokerProcess
    worker: subprocess.Popen[str]
    path: Path
    crcs: dict[str, int]
    told: str = ""
    descriptors: int = 0

    def ask_worker(self) -> str:
        tell(self.worker, "?")
        return line_of(self.worker)

    def is_as_before(self) -> bool:
        holders = [
            lease["pid"] for model in self.broker.cli_json("ps") for lease in model["leases"]
        ]
        return holders == [self.worker.pid] and self.broker.books()["leases"] == 1

    def assert_unharmed(self) -> None:
        assert self.broker.alive(), self.broker.output()
        with dealer(self.broker) as peer:  # what this very process was granted without a session
            assert call(peer, "session.bye")["success"]
        wait_until(self.is_as_before)
        with self.broker.connect() as client:
            assert client.load(self.path, "m").outcome == "resident"
            assert_right_bytes(client, "m", self.crcs)
        wait_until(self.is_as_before)
        wait_until(lambda: self.broker.descriptors() <= self.descriptors)
        assert self.ask_worker() == self.told
        assert self.broker.books()["reserved"] == 0
        assert len(self.broker.blocks()) == 1


@contextmanager
def new_town(*flags: str) -> Iterator[Town]:
    broker = BrokerProcess(*flags).start()
    with tempfile.TemporaryDirectory() as folder:
        path = files.write_random(Path(folder) / "m.safetensors", 5)
        broker.cli("load", path, "--name", "m")
        worker = start_python(WORKER, (), broker.environment)
        town = Town(broker, worker, path, crcs(path))
        try:
            town.told = town.ask_worker()
            wait_until(town.is_as_before)
            town.descriptors = broker.descriptors() + 1  # libzmq keeps one for a while at times
            yield town
        finally:
            worker.kill()
            worker.communicate()
            broker.stop()


# ---- speaking by hand


@contextmanager
def dealer(broker: BrokerProcess, kind: int = zmq.DEALER) -> Iterator[Socket]:
    context: zmq.Context[Socket] = zmq.Context()
    peer = context.socket(kind)
    peer.linger = 0
    peer.rcvtimeo = 30_000
    peer.connect(broker.endpoint)
    try:
        yield peer
    finally:
        peer.close(0)
        context.term()


@contextmanager
def packets(broker: BrokerProcess) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as peer:
        peer.settimeout(30)
        peer.connect(str(broker.run / "fds.sock"))
        yield peer


def frame(type_: Any, data: Any = None, request_id: Any = "r", **head: Any) -> bytes:
    whole = {"v": 2, "request_id": request_id, "type": type_, "data": data or {}, **head}
    return bytes(msgpack.packb({key: value for key, value in whole.items() if value is not ...}))


def received(raw: bytes) -> dict[str, Any]:
    reply = msgpack.unpackb(raw)
    assert isinstance(reply, dict)
    assert isinstance(reply["success"], bool)
    return reply


def code_of(reply: dict[str, Any]) -> str:
    error = reply["error"]
    return str(error["code"]) if isinstance(error, dict) else str(error).split(":")[0]


def call(peer: Socket, type_: str, data: Any = None, *args: Any, **head: Any) -> dict[str, Any]:
    peer.send(frame(type_, data, *args, **head))
    return received(peer.recv())


def packet(peer: socket.socket, raw: bytes, *descriptors: int) -> tuple[dict[str, Any], list[int]]:
    socket.send_fds(peer, [raw], descriptors)
    answer, got, _, _ = socket.recv_fds(peer, 1 << 16, 8)
    return received(answer), got


def open_session(peer: socket.socket) -> str:
    return str(packet(peer, frame("session.open"))[0]["data"]["session"])
