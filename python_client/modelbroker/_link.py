"""The link to one broker: its session, the leases held over it, and calls that outlive a restart.

Invariant: every lease in `_held` that has blocks is good on `_session`. A new session is published
only when the leases have been stated on it, and a lease that an older session granted is not taken
in. A lease has its number before it is asked for: whatever becomes of the call, when the last who
holds the lease is gone a detach of that number ends it, also one that is granted only later.

Threads: any. Finalizers run anywhere, even inside our own critical sections, so they take no lock:
a C function appends to a deque, and they wake the keeper, which does the rest.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections import deque
from typing import Any, TypeAlias

from ._deadline import Deadline
from ._descriptors import OutOfDescriptorsError, or_exhausted
from ._endpoint import Endpoint
from ._errors import (
    BrokerHangsError,
    FailedPreconditionError,
    ModelBrokerError,
    PermissionDeniedError,
    UnavailableError,
    UnimplementedError,
)
from ._keeper import Keeper
from ._leases import Held, Lease, LeaseRef
from ._pool import Pool
from ._session import Session
from ._sources import Sources
from ._threads import OutOfThreadsError, no_thread_left
from ._whole import take
from ._wire import RequestIds, SessionLost, UnansweredError, encode_request

Data = dict[str, Any]
# An error to be raised later: as an object it would keep frames, and a frame it.
Failure: TypeAlias = "tuple[type[UnavailableError | BrokerHangsError | PermissionDeniedError], str]"

_BACKOFF_FIRST, _BACKOFF_MOST = 0.02, 0.5
PATIENCE = 30.0  # how long a call without a timeout waits for a broker that is gone
_RESTATED_AT_ONCE = 1000  # far below the limits of one message
_FIRST_LEASE = 1001  # a broker that is too old to be told numbers counts from 1
_DETACH_SECONDS = 1.0
_RESTATE_SECONDS = 5.0


class Link:
    """What a Broker and the weights attached through it share."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.patience = PATIENCE
        self._pool = Pool(endpoint.broker)
        self._closing = self._shut = self._exited = False
        self._reset()
        _links.add(self)

    def _reset(self) -> None:
        self._ids = RequestIds()
        self._numbers = itertools.count(_FIRST_LEASE)
        self._session: Session | None = None
        self._held: dict[int, Held] = {}
        self._dropped: deque[LeaseRef] = deque()  # of _held, let go
        self._keeper: Keeper | None = None
        self._lock = threading.Lock()  # short: the fields above
        self._renewing = threading.Lock()  # long: opening a session
        self._settling = threading.Lock()  # long: detaching

    # ---- calls

    def call(
        self, type_: str, data: Data, deadline: Deadline, sources: Sources | None = None
    ) -> Data:
        """Asks, and after a restart of the broker asks again, until there is an answer.

        `sources`, if given, are offered to each session, and their handles go along.
        """
        self.settle(deadline)  # what was released before this call has ended when it is served
        request_id = self._ids()
        while True:
            session = self.session(deadline)
            with _Losing(self, session):
                offered = _offered(data, sources, session, deadline)
                return self._ask(session, request_id, type_, offered, deadline)
            data = {**data, "retry": False} if "retry" in data else data  # costs one broker at most

    def attach(
        self, data: Data, deadline: Deadline, sources: Sources | None = None
    ) -> tuple[Data, Lease]:
        """Gets a lease; it ends when the returned object is gone."""
        self.settle(deadline)
        if self._keeper is None:
            # Before anything is granted: without threads for both it would be let go again.
            self._pool.prepare()
            self._keep()
        while True:
            session = self.session(deadline)
            with _Losing(self, session):
                offered = _offered(data, sources, session, deadline)
                reply, lease = self._attach_once(session, offered, deadline)
                if lease is not None:
                    return reply, lease

    def _attach_once(
        self, session: Session, data: Data, deadline: Deadline
    ) -> tuple[Data, Lease | None]:
        number, lease = self._new_lease()
        try:
            data = {**data, "lease": number}
            reply = self._ask(session, self._ids(), "model.attach", data, deadline)
            self._check_number(number, reply, session, deadline)
            return reply, lease if self._granted(number, reply, session) else None
        except BaseException as error:
            if _is_answer(error):
                self._refused(number)
            del lease  # it ends: what is raised keeps this frame
            raise

    def open_block(self, name: str, deadline: Deadline) -> int:
        """A descriptor of a leased block that cannot be opened by its path."""
        while True:
            session = self.session(deadline)
            with _Losing(self, session):
                return session.open_block(name, deadline)

    def _ask(
        self, session: Session, request_id: str, type_: str, data: Data, deadline: Deadline
    ) -> Data:
        def encode(deadline_ms: int) -> bytes:
            return encode_request(
                request_id, type_, data, session=session.token, deadline_ms=deadline_ms
            )

        return self._pool.ask(encode, request_id, deadline, session)

    # ---- the session

    def session(self, deadline: Deadline) -> Session:
        """The open session, or a new one on which all leases have been stated."""
        patience = deadline.at_most(self.patience)
        backoff = _BACKOFF_FIRST
        while True:
            session = self._session
            if session is not None:
                return session
            failed = self._renew(patience)
            if failed is None:
                continue
            if patience.passed():
                refusal = self.endpoint.refusal()
                if refusal is not None:
                    raise PermissionDeniedError(refusal)
                kind, message = failed
                raise kind(message)
            time.sleep(patience.left(backoff))
            backoff = min(2 * backoff, _BACKOFF_MOST)

    def _renew(self, deadline: Deadline) -> Failure | None:
        """One attempt to open a session; why it failed, if another may succeed."""
        if self._shut:
            self._end_with_process()
            raise FailedPreconditionError("the connection to the broker is closed")
        taken: list[bool] = []
        try:
            if not take(taken, self._renewing, deadline.left(PATIENCE)):
                return self._nobody("another thread is still connecting")
            if self._session is None:
                with or_exhausted("connecting to the broker"):
                    self._open_session(deadline)
        except SessionLost:
            return self._nobody(f"{self.endpoint.fds}: the connection was closed")
        except BrokerHangsError as error:
            return type(error), str(error)
        except OSError as error:  # a socket that another user serves is one too
            return self._nobody(f"{self.endpoint.fds}: {error.strerror or error}")
        finally:
            if True in taken:
                self._renewing.release()
        return None

    def _nobody(self, reason: str) -> Failure:
        message = f"no broker answers at {self.endpoint.broker} ({reason})"
        return UnavailableError, f"{message}: start one with 'modelbroker serve &'"

    def _open_session(self, deadline: Deadline) -> None:
        session = Session.open(self.endpoint, deadline.at_most(_RESTATE_SECONDS))
        try:
            with self._lock:  # none is granted meanwhile: _granted() wants a session
                held = {number: held for number, held in self._held.items() if held.blocks}
            lost = self._restate(session, held, deadline.at_most(_RESTATE_SECONDS))
        except BaseException:
            session.close()
            raise
        with self._lock:
            for number in lost:
                self._held.pop(number, None)
            self._session = session
        self._wake()

    def _restate(self, session: Session, held: dict[int, Held], deadline: Deadline) -> list[int]:
        """States leases on a new session; the numbers of those that this broker does not have."""
        lost: list[int] = []
        numbers = list(held)
        for start in range(0, len(numbers), _RESTATED_AT_ONCE):
            some = numbers[start : start + _RESTATED_AT_ONCE]
            reply = self._ask(
                session,
                self._ids(),
                "lease.restate",
                {"leases": [held[number].as_wire() for number in some]},
                deadline,
            )
            restated = set(reply.get("restated") or ())
            lost += [number for number in some if number not in restated]
        return lost

    def lose(self, session: Session) -> None:
        """This session is over: the next call opens another."""
        with self._lock:
            if self._session is session:
                self._session = None
        session.close()
        self._pool.clear()
        self._wake()

    # ---- leases

    def _new_lease(self) -> tuple[int, Lease]:
        number, lease = next(self._numbers), Lease(self._wake)
        with self._lock:
            self._held[number] = Held(LeaseRef.to(lease, self._dropped, number))
        return number, lease

    def _check_number(self, number: int, reply: Data, session: Session, deadline: Deadline) -> None:
        if int(reply["lease"]) == number:
            return
        self._ask(session, self._ids(), "model.detach", {"lease": reply["lease"]}, deadline)
        raise UnimplementedError(
            "the broker is older than this client, and numbers leases itself: restart it "
            "with this version"
        )

    def _granted(self, number: int, reply: Data, session: Session) -> bool:
        """False when the session is over, and the lease with it."""
        blocks = [str(block["block"]) for block in reply["blocks"]]
        with self._lock:
            held = self._held[number]
            if self._session is not session:
                del self._held[number]
                return False
            held.model, held.blocks = str(reply["model"]), blocks
        self._keep()
        return True

    def _refused(self, number: int) -> None:
        """The broker need not be told of it: unless it was granted, and failed only then."""
        with self._lock:
            if number in self._held and not self._held[number].blocks:
                del self._held[number]

    def _wake(self) -> None:
        """Also a finalizer: no locks here."""
        keeper = self._keeper
        # After the exit's handlers, modules lose their contents one by one.
        if keeper is not None and not self._exited:
            keeper.wake()

    def _keep(self) -> None:
        try:
            with self._lock, or_exhausted("keeping a lease"):
                if self._keeper is None and not self._shut:
                    self._keeper = Keeper()
                if self._keeper is not None:
                    self._keeper.start(self)
        except RuntimeError:  # no more threads: Python 3.12 gives none at exit
            self._end_with_process()
            raise no_thread_left("keeping a lease") from None
        self._wake()

    def settle(self, deadline: Deadline) -> None:
        """Tells the broker of leases that were let go."""
        # The lock last: what is being told is told under it.
        if not self._dropped and not self._settling.locked():
            return
        taken: list[bool] = []
        try:
            if not take(taken, self._settling, deadline.left(_DETACH_SECONDS)):
                return
            for _ in range(len(self._dropped)):
                # It stays until it is told: who interrupts us leaves it to the next.
                ref = self._dropped[0] if self._dropped else None
                if ref is None or not self._detach(ref, deadline.at_most(_DETACH_SECONDS)):
                    return  # later: the broker is slow, or there is none
        finally:
            if True in taken:
                self._settling.release()

    def _detach(self, ref: LeaseRef, deadline: Deadline) -> bool:
        """False when it got no answer and should be told again: on another session, too."""
        session = self._session
        if session is None:
            return False
        try:
            self._ask(session, self._ids(), "model.detach", {"lease": ref.number}, deadline)
        except SessionLost:
            self.lose(session)
            return False
        except (UnansweredError, OutOfDescriptorsError, OutOfThreadsError):
            return False
        except ModelBrokerError:
            pass
        with self._lock:
            self._held.pop(ref.number, None)
            if self._dropped and self._dropped[0] is ref:
                self._dropped.popleft()
        return True

    def _forget_dropped(self) -> None:
        """Without a session, a lease that was let go has ended already."""
        with self._renewing, self._lock:
            while self._session is None and self._dropped:
                self._held.pop(self._dropped[0].number, None)
                self._dropped.popleft()

    @property
    def closing(self) -> bool:
        """True once close() was called."""
        return self._closing

    # ---- the keeper's view

    def watched(self) -> Session | None:
        """See Kept."""
        return self._session

    def tend(self) -> str:
        """See Kept."""
        session = self._session
        if session is not None and session.hung_up():
            self.lose(session)
        if self._session is None and self._is_orphaned() and not self._restored():
            return "unreachable"
        self.settle(Deadline(_DETACH_SECONDS))
        if self._session is None:
            self._forget_dropped()
        if self._closing and not self._held:
            self._shut_down()
            return "done"
        return "untold" if self._dropped else "idle"

    def _is_orphaned(self) -> bool:
        with self._lock:
            return any(held.blocks and held.ref() is not None for held in self._held.values())

    def _restored(self) -> bool:
        try:
            return self._renew(Deadline(_RESTATE_SECONDS)) is None
        except ModelBrokerError:
            return False

    # ---- the end

    def close(self) -> None:
        """No more calls. The session goes on while weights or tensors need it."""
        self._closing = True
        self.settle(Deadline(_DETACH_SECONDS))
        if not self._held:
            self._shut_down()
        self._wake()

    def abandon(self) -> None:
        """The same as a finalizer of the Broker: whoever has a lock may be interrupted by it."""
        self._closing = True
        if self._keeper is None:
            self._shut_down()
        self._wake()

    def _shut_down(self) -> None:
        self._shut = True
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._pool.close()

    def at_exit(self) -> None:
        """The process goes: ends the session, unmaps nothing. Only daemon threads are left."""
        if self._keeper is None or self._keeper.stop(0.2):
            self._shut_down()
        self._exited = True

    def _end_with_process(self) -> None:
        """At exit a daemon thread's call has nobody to answer to, and waits for the end."""
        if _exiting and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()

    def after_fork(self) -> None:
        """In the child: session, sockets, keeper and leases are the parent's."""
        if self._session is not None:
            self._session.forget()
        self._pool.forget()
        self._reset()


def _offered(data: Data, sources: Sources | None, session: Session, deadline: Deadline) -> Data:
    """A request's data, with the handles of the files that it is about."""
    if sources is None:
        return data
    return sources.offered(data, lambda file: session.offer(file, deadline))


def _is_answer(error: BaseException) -> bool:
    """Whether a lease that was asked for will not be granted."""
    if isinstance(error, ModelBrokerError):
        return not isinstance(error, UnansweredError | BrokerHangsError)
    return isinstance(error, SessionLost)


class _Losing:
    """Swallows SessionLost, so that the loop around it goes on with another session.

    No generator of contextlib: see tests/unit/python_garbage_test.py.
    """

    __slots__ = ("_link", "_session")

    def __init__(self, link: Link, session: Session) -> None:
        self._link, self._session = link, session

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, SessionLost):
            self._link.lose(self._session)
            return True
        return False


_links: weakref.WeakSet[Link] = weakref.WeakSet()
_exiting = False  # the interpreter is: also for links that are made now


def _forget_in_child() -> None:
    for link in list(_links):
        link.after_fork()


def _close_at_exit() -> None:
    global _exiting
    _exiting = True
    for link in list(_links):
        link.at_exit()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(_close_at_exit)
