"""What a broker publishes, as an iterator; where something was missed, the state in its place.

Threads: one at a time iterates; close() may come from any. A forked child's stream starts anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import zmq

from ._deadline import Deadline
from ._errors import DeadlineExceededError, InternalError, ModelBrokerError, UnavailableError
from ._link import Link
from ._pool import Socket, keep_forever, our_socket
from ._session import Session
from ._wire import decode_event

SNAPSHOT = "snapshot"

_SLICE_MS = 100  # how often it looks whether the broker still lives
_ANSWER_SECONDS = 10.0  # for a snapshot
_QUIET_SECONDS = 5.0  # so long without an event: have some been missed?
_IN_FLIGHT_SECONDS = 0.5  # what was published is here by then
_HANDSHAKE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; docs/protocol.md has the types and what `data` says of each.

    Type "snapshot" is the state itself, true up to `seq`: at the start, and wherever events were
    missed or another broker answered. Its data: reason ("start", "gap" or "restart"), models,
    draining, tiers.
    """

    type: str
    seq: int
    boot_id: str
    time: float
    data: dict[str, Any]


class EventStream:
    """An iterator over events; see Broker.events(). Use it as a context manager, or close() it."""

    def __init__(
        self,
        owner: object,
        link: Link,
        types: Sequence[str] | None,
        timeout: float | None,
        start: Deadline,
    ) -> None:
        """Use Broker.events(). `start`: by when there must be a first snapshot, if not in 10 s."""
        self._closed = True  # until there is something to close
        self._owner = owner  # the Broker: collected, it would close the link
        self._link = link
        self._types = types
        self._timeout = Deadline(timeout).seconds
        self._socket: Socket | None = None
        self._session: Session | None = None
        self._pid = os.getpid()
        self._iterating = threading.Lock()
        self._boot_id = ""
        self._seq = 0
        self._behind = False
        self._compare_at = Deadline(_QUIET_SECONDS)
        self._first: Event | None = None
        self._closed = False
        try:
            # From here on nothing is missed, however late the first event is asked for.
            self._first = self._snapshot(start.at_most(_ANSWER_SECONDS), "start")
        except BaseException:
            self.close()
            raise

    # ---- the iterator

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        event = self.next(self._timeout)
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none came within `timeout` seconds, or the stream is closed."""
        return self.next_by(Deadline(timeout))

    def next_by(self, deadline: Deadline) -> Event | None:
        """The same with the deadline of a call."""
        with self._iterating:
            try:
                while not self._ended():
                    event = self._step(deadline)
                    if event is not None and self._wanted(event):
                        return event
                    if event is None and deadline.passed():
                        return None
                return None
            finally:
                if self._closed:
                    self._drop_socket()

    def close(self) -> None:
        """Ends the iteration, also one that waits in another thread. Idempotent."""
        self._closed = True
        if self._iterating.acquire(blocking=False):
            try:
                self._drop_socket()
            finally:
                self._iterating.release()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._drop_socket()

    # ---- inside

    def _ended(self) -> bool:
        return self._closed or self._link.closing

    def _wanted(self, event: Event) -> bool:
        if self._types is None or event.type == SNAPSHOT:
            return True
        return any(fnmatchcase(event.type, pattern) for pattern in self._types)

    def _step(self, deadline: Deadline) -> Event | None:
        """One event, or None after a moment without one."""
        if self._pid != os.getpid():
            self._drop_socket()
            self._pid = os.getpid()
            self._first = None
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._session is None:
            return self._snapshot_if_there(deadline)
        raw = self._receive(int(deadline.left(_SLICE_MS / 1000) * 1000))
        if raw is not None:
            return self._take(raw)
        if self._session is not self._link.watched() or self._session.hung_up():
            # What it said last may come by the other socket a little later.
            raw = self._receive(_SLICE_MS)
            if raw is not None:
                return self._take(raw)
            self._lose()
        elif self._compare_at.passed():
            self._compare(deadline)
        return None

    def _receive(self, milliseconds: int) -> bytes | None:
        if self._socket is None or not self._socket.poll(milliseconds):
            return None
        return self._socket.recv_multipart()[-1]

    def _take(self, raw: bytes) -> Event | None:
        self._heard()
        event = Event(**decode_event(raw))
        if event.boot_id != self._boot_id:
            self._lose()  # another broker, before the old one's hang-up was seen
        elif event.seq > self._seq + 1:
            self._session = None
        elif event.seq == self._seq + 1:
            self._seq = event.seq
            return event
        return None

    def _heard(self) -> None:
        self._behind = False
        self._compare_at = Deadline(_QUIET_SECONDS)

    def _compare(self, deadline: Deadline) -> None:
        """Nothing was heard for a while: a gap at the end shows by nothing else."""
        if self._behind:
            self._heard()
            self._session = None
            return
        try:
            ping = self._link.call("session.ping", {}, _patience(deadline))
        except (UnavailableError, DeadlineExceededError):
            self._lose()
            return
        self._heard()
        if ping["boot_id"] != self._boot_id or ping["seq"] > self._seq:
            self._behind = True
            self._compare_at = Deadline(_IN_FLIGHT_SECONDS)

    def _snapshot_if_there(self, deadline: Deadline) -> Event | None:
        try:
            return self._snapshot(_patience(deadline), "gap")
        except (UnavailableError, DeadlineExceededError):
            self._lose()
            return None
        except ModelBrokerError:
            if self._ended():
                return None
            raise

    def _snapshot(self, deadline: Deadline, reason: str) -> Event:
        if self._socket is None:
            # The socket first: what happens after the snapshot must reach it.
            self._socket = _subscribed(self._link.endpoint.events, deadline)
        reply = self._link.call("events.snapshot", {}, deadline)
        state = {key: reply[key] for key in ("models", "draining", "tiers")}
        boot_id, seq = str(reply["boot_id"]), int(reply["seq"])
        if self._boot_id not in ("", boot_id):
            reason = "restart"
        self._boot_id, self._seq = boot_id, seq
        self._session = self._link.watched()
        self._heard()
        return Event(SNAPSHOT, seq, boot_id, time.time(), {"reason": reason, **state})

    def _lose(self) -> None:
        """A fresh socket connects at once; the old one would try again in its own time."""
        self._session = None
        self._drop_socket()

    def _drop_socket(self) -> None:
        socket, self._socket = self._socket, None
        self._session = None
        if socket is None:
            return
        if self._pid == os.getpid():
            socket.close(0)
        else:
            keep_forever(socket)


def _patience(deadline: Deadline) -> Deadline:
    """For a question that a living broker answers at once, also when the caller's time is up."""
    return Deadline(max(0.25, deadline.left(_ANSWER_SECONDS)))


def _subscribed(endpoint: str, deadline: Deadline) -> Socket:
    """A SUB socket that gets everything (`seq` counts everything), once the broker accepted it."""
    socket = our_socket(zmq.SUB)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            socket.connect(endpoint)
            # Else the first snapshot may be followed by another.
            monitor.poll(int(deadline.left(_HANDSHAKE_SECONDS) * 1000))
        finally:
            socket.disable_monitor()
            monitor.close(0)
    except zmq.ZMQError as error:
        socket.close(0)
        raise InternalError(f"subscribing to {endpoint}: {error}") from None
    return socket
