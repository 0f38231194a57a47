"""Listening to a broker's events by hand, with pyzmq and msgpack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import zmq

from support import files
from support.broker import BrokerProcess, wait_until
from support.loads_under_way import is_reading
from support.raw_wire import call, dealer

Socket: TypeAlias = "zmq.Socket[bytes]"
Event: TypeAlias = dict[str, Any]


@dataclass
class Listener:
    """A SUB socket, subscribed to everything, that the broker knows of."""

    socket: Socket
    heard: list[Event] = field(default_factory=list)

    def next(self, seconds: float = 30) -> Event:
        if not self.socket.poll(int(seconds * 1000)):
            raise AssertionError(f"no event within {seconds} s after {self.types()[-20:]}")
        topic, body = self.socket.recv_multipart()
        event: Event = msgpack.unpackb(body)
        assert topic.decode() == event["type"]
        self.heard.append(event)
        return event

    def until(self, type_: str, **data: Any) -> Event:
        """The next event of this type whose data has this; those before it are in `heard`."""
        while True:
            event = self.next()
            if event["type"] == type_ and data.items() <= event["data"].items():
                return event

    def types(self) -> list[str]:
        return [event["type"] for event in self.heard]

    def of_models(self) -> list[str]:
        """What happened to models so far, progress left out."""
        return [
            kind for kind in self.types() if kind.startswith("model.") and kind != "model.progress"
        ]

    def drain(self) -> list[Event]:
        """What is here now."""
        first = len(self.heard)
        while self.socket.poll(0):
            self.next()
        return self.heard[first:]


@contextmanager
def listening(broker: BrokerProcess, high_water: int = 0) -> Iterator[Listener]:
    context: zmq.Context[Socket] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.rcvhwm = high_water
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"ipc://{broker.run}/events.sock")
    try:
        listener = Listener(socket)
        hear_something(broker, listener)
        yield listener
    finally:
        socket.close(0)
        context.term()


def hear_something(broker: BrokerProcess, listener: Listener) -> None:
    """Until an event has come: then the broker knows the subscription."""

    def comes() -> bool:
        with dealer(broker) as peer:
            call(peer, "session.bye")
        return bool(listener.socket.poll(50))

    wait_until(comes)
    with dealer(broker) as peer:
        known = call(peer, "session.ping")["data"]["seq"]
        call(peer, "session.bye")
    while listener.until("session.ended")["seq"] <= known:
        pass
    listener.heard.clear()


def seqs_rise(events: list[Event]) -> bool:
    return all(after["seq"] == before["seq"] + 1 for before, after in pairwise(events))


def let_it_read_for_a_while(broker: BrokerProcess, seconds: float = 0.3) -> None:
    """Stops the broker once it reads a file. Its clock goes on: progress is due when it wakes."""
    wait_until(lambda: is_reading(broker), every=0)
    with broker.frozen():
        time.sleep(seconds)


def sparse_model(path: Path, megabytes: int) -> Path:
    """A file that takes a while to read and none to write: its weights are a hole."""
    size = megabytes << 20
    path.write_bytes(files.encode({"t": files.entry("U8", [size], 0, size)}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    return path
