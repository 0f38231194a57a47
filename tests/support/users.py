"""Doing things as another user: a forked child that changes its ids and executes nothing."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import zmq

from support.broker import BrokerProcess
from support.features import switched_off
from support.raw_wire import frame, open_session, packet, received

T = TypeVar("T")
GROUP = 54321  # nobody's, so that a test makes its members

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
# A member by a further group; where the kernel does not tell those, by the first.
ALICE = User(1500, GROUP) if switched_off("peer_groups") else User(1500, 1500, (GROUP,))
BOB = User(1501, GROUP)  # and one by the first
STRANGER = User(65534, 65534)


_forking = threading.Lock()


def as_user(user: User, what: Callable[[], T]) -> T:
    """What `what` returns (it is pickled); its exception fails the test."""
    with _forking:  # another thread's child would hold our pipe open
        readable, writable = os.pipe()
        child = os.fork()
        if child != 0:
            os.close(writable)
    if child == 0:
        status = 1
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            try:
                outcome: tuple[bool, Any] = (True, what())
            except BaseException:
                outcome = (False, traceback.format_exc())
            with os.fdopen(writable, "wb") as pipe:
                pickle.dump(outcome, pipe)
            status = 0
        finally:
            os._exit(status)
    with os.fdopen(readable, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child of {user} ended with {status}"
    good, returned = pickle.loads(raw)
    assert good, f"as {user}: {returned}"
    return returned  # type: ignore[no-any-return]


def error_of(what: Callable[[], Any]) -> type[OSError] | None:
    """The kind of OSError that it raises, or None."""
    try:
        what()
    except OSError as error:
        return type(error)
    return None


@dataclass
class Caller:
    """Speaks to a broker by hand; with a session, or as a ZeroMQ-only peer."""

    broker: BrokerProcess
    plain: bool = False
    token: str = ""
    patience: float = 30  # seconds for an answer
    _ids: int = 0
    _fds: socket.socket | None = None
    _context: Any = field(default_factory=zmq.Context)

    def __enter__(self) -> Caller:
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.rcvtimeo = int(self.patience * 1000)
        self._dealer.connect(self.broker.endpoint)
        if not self.plain:
            self._fds = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._fds.settimeout(30)
            self._fds.connect(str(self.broker.run / "fds.sock"))
            self.token = open_session(self._fds)
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)
        if self._fds is not None:
            self._fds.close()

    def send(self, type_: str, **data: Any) -> str:
        """Its id; answers come by answer(), in any order."""
        self._ids += 1
        head = {"session": self.token} if self.token else {}
        self._dealer.send(frame(type_, data, f"i{self._ids}", **head))
        return f"i{self._ids}"

    def answer(self) -> dict[str, Any]:
        return received(self._dealer.recv())

    def call(self, type_: str, **data: Any) -> dict[str, Any]:
        self.send(type_, **data)
        return self.answer()

    def code(self, type_: str, **data: Any) -> str:
        """Empty for success."""
        reply = self.call(type_, **data)
        return "" if reply["success"] else str(reply["error"]["code"])

    def ok(self, type_: str, **data: Any) -> dict[str, Any]:
        reply = self.call(type_, **data)
        assert reply["success"], reply
        return dict(reply["data"])

    def offer(self, path: object, flags: int = os.O_RDONLY) -> str:
        file = os.open(str(path), flags)
        try:
            return self.offer_descriptor(file)
        finally:
            os.close(file)

    def offer_descriptor(self, file: int) -> str:
        assert self._fds is not None
        reply, _ = packet(self._fds, frame("file.offer"), file)
        assert reply["success"], reply
        return str(reply["data"]["file"])

    def send_load(self, path: object, name: str) -> None:
        """Its answer comes by code_of_answer(), in any order; it may wait for room."""
        self._ids += 1
        data = {"path": str(path), "name": name, "file": self.offer(path)}
        head = {"session": self.token, "deadline_ms": 300_000}
        self._dealer.send(frame("model.load_model", data, f"i{self._ids}", **head))

    def code_of_answer(self) -> str:
        return code_of_load(received(self._dealer.recv()))

    def load(self, path: object, label: object = None, **data: Any) -> dict[str, Any]:
        """By descriptor; the path that is told may be another."""
        return self.call("model.load_model", path=str(label or path), file=self.offer(path), **data)

    def read_block(self, attached: dict[str, Any]) -> bytes:
        """The first bytes of the block, over a descriptor that the broker gave."""
        assert self._fds is not None
        name = attached["blocks"][0]["block"]
        reply, descriptors = packet(self._fds, frame("block.open", {"block": name}))
        assert reply["success"], reply
        with closing(os.fdopen(descriptors[0], "rb")) as block:
            return block.read(8)


def code_of_load(reply: dict[str, Any]) -> str:
    return "" if reply["success"] else str(reply["error"]["code"])
