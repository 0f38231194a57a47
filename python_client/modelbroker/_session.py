"""A session: one connection to the fd socket, alive as long as that connection.

Threads: any; request and reply on the socket are one step under a lock. A broken connection is
SessionLost, which the link turns into a new session; an exchange that is not done at its deadline,
or after 10 s, the wait for other threads' included, is BrokerHangsError.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import threading
from typing import Any

from ._deadline import Deadline
from ._descriptors import exhausted
from ._endpoint import Endpoint
from ._errors import BrokerHangsError, InternalError, ModelBrokerError, PermissionDeniedError
from ._whole import take
from ._wire import (
    PACKET_LIMIT,
    RequestIds,
    SessionLost,
    data_of,
    decode_reply,
    encode_request,
)

_EXCHANGE_SECONDS = 10.0  # the broker answers these from its books: longer means that it hangs
_CREDENTIALS = struct.Struct("=iII")  # SO_PEERCRED: pid, uid, gid


class Session:
    """An open session. `token` rides every ZeroMQ request."""

    __slots__ = ("_endpoint", "_ids", "_lock", "_socket", "boot_id", "token")

    def __init__(self, connection: socket.socket, endpoint: Endpoint) -> None:
        self._socket = connection
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._ids = RequestIds()
        self.token = ""
        self.boot_id = ""

    @classmethod
    def open(cls, endpoint: Endpoint, deadline: Deadline) -> Session:
        """Connects and opens a session; OSError where nobody listens.

        Who listens and does not answer is BrokerHangsError: the kernel connects us to a broker that
        stands still, until its queue is full.
        """
        deadline = deadline.at_most(_EXCHANGE_SECONDS)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_patience(deadline))
            try:
                connection.connect(endpoint.fds)
            except (TimeoutError, BlockingIOError):
                raise _hangs(endpoint, None) from None
            if endpoint.owned:
                _check_peer(connection, endpoint)
            session = cls(connection, endpoint)
            data, descriptors = session._exchange("session.open", {}, (), deadline)
            _close_all(descriptors)
            session.token, session.boot_id = str(data["session"]), str(data["boot_id"])
        except BaseException:
            connection.close()
            raise
        return session

    def fileno(self) -> int:
        """For poll; -1 once closed."""
        return self._socket.fileno()

    def hung_up(self) -> bool:
        """True when the broker's end is gone. Reads nothing: replies belong to their callers."""
        descriptor = self._socket.fileno()
        if descriptor < 0:
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLRDHUP)
        return bool(poller.poll(0))

    def hangs(self) -> BrokerHangsError:
        """What to raise when this session's broker has said nothing for too long."""
        return _hangs(self._endpoint, self._socket)

    def offer(self, descriptor: int, deadline: Deadline) -> str:
        """Hands in a file; the handle is good for one load or attach, and for 30 s."""
        data, descriptors = self._exchange("file.offer", {}, (descriptor,), deadline)
        _close_all(descriptors)
        return str(data["file"])

    def open_block(self, name: str, deadline: Deadline) -> int:
        """A descriptor of a block that this session leases; the caller closes it."""
        _, descriptors = self._exchange("block.open", {"block": name}, (), deadline)
        if len(descriptors) != 1:
            _close_all(descriptors)
            raise InternalError(f"block.open answered with {len(descriptors)} descriptors")
        return descriptors[0]

    def close(self) -> None:
        """Ends the session, and wakes whoever waits on it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()

    def forget(self) -> None:
        """Drops a forked child's copy of the connection; the parent's session lives on."""
        self._socket.close()

    def _exchange(
        self,
        type_: str,
        data: dict[str, Any],
        descriptors: tuple[int, ...],
        deadline: Deadline,
    ) -> tuple[dict[str, Any], list[int]]:
        request_id = self._ids()
        raw = encode_request(request_id, type_, data, limit=PACKET_LIMIT)
        deadline = deadline.at_most(_EXCHANGE_SECONDS)
        taken: list[bool] = []
        try:
            if not take(taken, self._lock, _patience(deadline)):
                raise _hangs(self._endpoint, self._socket)
            self._socket.settimeout(_patience(deadline))
            socket.send_fds(self._socket, [raw], descriptors)
            reply, received = self._receive(request_id, deadline)
        except ModelBrokerError:
            raise
        except TimeoutError:
            raise _hangs(self._endpoint, self._socket) from None
        except OSError:
            raise SessionLost from None
        finally:
            if True in taken:
                self._lock.release()
        try:
            return data_of(reply), received
        except BaseException:
            _close_all(received)
            raise

    def _receive(self, request_id: str, deadline: Deadline) -> tuple[dict[str, Any], list[int]]:
        while True:
            self._socket.settimeout(_patience(deadline))
            raw, descriptors = _receive_packet(self._socket)
            if not raw:
                raise SessionLost
            reply = decode_reply(raw)
            # Without an id: about a packet that could not be read.
            if reply.get("request_id") in (request_id, "", None):
                return reply, descriptors
            _close_all(descriptors)  # the late reply of an exchange that timed out


def _patience(deadline: Deadline) -> float:
    """A timeout for one step: never 0, which would mean "do not wait"."""
    return max(0.05, deadline.left())


def _receive_packet(connection: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    raw, ancillary, flags, _ = connection.recvmsg(
        PACKET_LIMIT, socket.CMSG_SPACE(4 * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
    if flags & socket.MSG_CTRUNC:  # more came than this process may have open
        _close_all(list(descriptors))
        raise exhausted("receiving a block's descriptor")
    return raw, list(descriptors)


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of the broker; OSError once the connection is closed."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


def _hangs(endpoint: Endpoint, connection: socket.socket | None) -> BrokerHangsError:
    """Says what can be known: whether it is stopped shows only where its process does."""
    pid = 0
    stopped = False
    if connection is not None:
        with contextlib.suppress(OSError):
            pid, _ = _peer(connection)
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                stopped = stat.read().rpartition(")")[2].split()[0] in ("T", "t")
    who = f"the broker at {endpoint.broker}" + (f" (process {pid})" if pid > 0 else "")
    if stopped:
        return BrokerHangsError(f"{who} is stopped: continue it ('kill -CONT {pid}')")
    return BrokerHangsError(f"{who} is there and does not answer: it is busy or hangs; see its log")


def _check_peer(connection: socket.socket, endpoint: Endpoint) -> None:
    uid = _peer(connection)[1]
    if uid not in (0, os.geteuid()):
        raise PermissionDeniedError(
            f"{endpoint.fds} is served by uid {uid}, not by you: "
            "name it with MODELBROKER_ENDPOINT if that is what you want"
        )


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
