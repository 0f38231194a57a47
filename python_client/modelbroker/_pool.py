"""ZeroMQ sockets: a call checks one out, sends, waits, and checks it in. No I/O thread of ours.

Threads: any; a socket is used by the one call that has it. After a fork the child starts anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

from . import _threads
from ._deadline import Deadline
from ._descriptors import FOR_A_CONTEXT, FOR_A_SOCKET, ensure_left, or_exhausted
from ._session import Session
from ._wire import SessionLost, UnansweredError, data_of, decode_reply, encode_request

_SLICE_MS = 100  # how often a waiting call looks whether its session still lives
_REPEAT_SECONDS = 5.0  # after so long a silence it asks again: the broker joins repeats
_SILENCE_SECONDS = 30.0  # without an answer to any question: a call without an end gives up
_GRACE_SECONDS = 0.25  # the broker's own "deadline_exceeded" is worth waiting for
_MOST_IDLE = 16

Socket: TypeAlias = "zmq.Socket[bytes]"

_context: tuple[int, zmq.Context[Socket]] | None = None
_making = threading.Lock()


def our_socket(kind: int) -> Socket:
    """A new socket of this process's context, or OutOfDescriptorsError, or OutOfThreadsError."""
    with or_exhausted("connecting to the broker"):
        with _making:  # two at once would each make a context
            if _context is None or _context[0] != os.getpid():
                return _first_socket(kind)
            context = _context[1]
        ensure_left(FOR_A_SOCKET)
        return context.socket(kind)  # ZMQError where another thread has opened them meanwhile


def _first_socket(kind: int) -> Socket:
    """With a context, one a process: its threads begin with its first socket.

    It is never terminated: that would wait for other people's sockets.
    """
    global _context
    ensure_left(FOR_A_CONTEXT)
    _threads.ensure_left(_threads.FOR_A_CONTEXT, "connecting to the broker")
    if _context is not None:
        keep_forever(_context[1])
    context: zmq.Context[Socket] = zmq.Context(io_threads=1)
    socket = context.socket(kind)
    _context = os.getpid(), context
    return socket


def _in_a_child() -> None:
    global _making
    _making = threading.Lock()  # another thread of the parent's may have had it


os.register_at_fork(after_in_child=_in_a_child)


def keep_forever(thing: object) -> None:
    """A parent's ZeroMQ objects must not be finalized in a forked child, not even at its exit."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class Pool:
    """Idle DEALER sockets to one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._idle: deque[Socket] = deque()
        self._epoch = 0
        self._most_idle = _MOST_IDLE

    def ask(
        self,
        encode: Callable[[int], bytes],
        request_id: str,
        deadline: Deadline,
        session: Session,
    ) -> dict[str, Any]:
        """Sends what `encode(deadline_ms)` makes and waits for the data of its reply.

        Without a deadline the broker must show meanwhile that it lives, or it is BrokerHangsError.
        """
        epoch = self._epoch
        socket = self._take()
        try:
            reply = _exchange(socket, encode, request_id, deadline, session)
        except BaseException:
            socket.close(0)  # a late reply may still come: not into somebody else's call
            raise
        if epoch == self._epoch and len(self._idle) < self._most_idle:
            self._idle.append(socket)
        else:
            socket.close(0)
        return data_of(reply)

    def prepare(self) -> None:
        """Has a socket ready: what it wants of this process it gets, or refuses, now."""
        if not self._idle:
            self._idle.append(self._take())

    def _take(self) -> Socket:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        socket = our_socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, 1000)
        socket.setsockopt(zmq.RCVTIMEO, _SLICE_MS)
        socket.connect(self._endpoint)
        return socket

    def clear(self) -> None:
        """Closes what was connected to a broker that is gone: fresh sockets connect at once."""
        self._epoch += 1
        while self._idle:
            try:
                self._idle.pop().close(0)
            except IndexError:
                return

    def close(self) -> None:
        """Keeps no socket from now on."""
        self._most_idle = 0
        self.clear()

    def forget(self) -> None:
        """In a forked child: the sockets are the parent's."""
        for socket in self._idle:
            keep_forever(socket)
        self._idle = deque()


def _exchange(
    socket: Socket,
    encode: Callable[[int], bytes],
    request_id: str,
    deadline: Deadline,
    session: Session,
) -> dict[str, Any]:
    ping = f"{request_id}-ping"  # its answer tells that the broker lives
    _send(socket, encode(deadline.milliseconds()))
    repeat = grace = silence = None
    while True:
        with contextlib.suppress(zmq.Again):
            reply = decode_reply(socket.recv())
            if reply.get("request_id") == request_id:
                return reply
            if reply.get("request_id") == ping:
                silence = None
        if session.hung_up():
            raise SessionLost
        if deadline.passed():
            grace = grace or Deadline(_GRACE_SECONDS)
            if grace.passed():
                raise UnansweredError(f"the broker did not answer within {deadline.seconds} s")
        silence = silence or Deadline(_SILENCE_SECONDS)
        if deadline.seconds is None and silence.passed():
            raise session.hangs()
        repeat = repeat or Deadline(_REPEAT_SECONDS)
        if repeat.passed():
            repeat = None
            _send(socket, encode(deadline.milliseconds()))
            _send(socket, encode_request(ping, "session.ping", {}, session=session.token))


def _send(socket: Socket, raw: bytes) -> None:
    try:
        socket.send(raw)
    except zmq.Again:
        raise SessionLost from None
