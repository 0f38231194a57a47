"""The keeper: a daemon thread that keeps a link's leases alive behind the user's back.

It sleeps until the session hangs up or a finalizer has dropped a lease. It never holds up the
interpreter's exit.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from typing import Protocol

from ._session import Session

# A broker that comes back soon is met soon; one that stays away costs little.
_BACKOFF_FIRST, _BACKOFF_SOON, _BACKOFF_MOST = 0.02, 0.1, 0.5
_SOON_TRIES = 100
_TELL_AGAIN = 1.0


class Kept(Protocol):
    """What a keeper needs of its link."""

    def watched(self) -> Session | None:
        """The session whose hang-up should wake the keeper."""

    def tend(self) -> str:
        """Does what is to be done: "idle", "untold" (some is left), "unreachable" or "done"."""


class Keeper:
    """Runs `tend()` whenever there may be something to do."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, link: Kept) -> None:
        """Starts the thread unless it runs; RuntimeError where none can be had."""
        if self._thread is not None:
            return
        thread = threading.Thread(
            target=self._run, args=(link,), name="modelbroker-keeper", daemon=True
        )
        self._thread = thread  # first: an interruption after the start must not make a second one
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:
                self._thread = None
            raise

    def wake(self) -> None:
        """Safe in finalizers: takes no lock and never blocks."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def stop(self, seconds: float) -> bool:
        """Asks the thread to end and waits a moment; True when it has."""
        self._stopping = True
        self.wake()
        thread = self._thread
        if thread is None or thread.ident is None:
            return True
        if thread is not threading.current_thread():
            thread.join(seconds)
        return not thread.is_alive()

    def _run(self, link: Kept) -> None:
        seconds: float | None = 0.0
        backoff, tries = _BACKOFF_FIRST, 0
        while True:
            self._wait(link.watched(), seconds)
            if self._stopping:
                return
            outcome = link.tend()
            if outcome == "done":
                return
            seconds = {"unreachable": backoff, "untold": _TELL_AGAIN}.get(outcome)
            if outcome == "unreachable":
                tries += 1
                backoff = min(2 * backoff, _BACKOFF_SOON if tries < _SOON_TRIES else _BACKOFF_MOST)
            else:
                backoff, tries = _BACKOFF_FIRST, 0

    def _wait(self, session: Session | None, seconds: float | None) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        descriptor = session.fileno() if session is not None else -1
        if descriptor >= 0:
            poller.register(descriptor, select.POLLRDHUP)
        poller.poll(None if seconds is None else seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
