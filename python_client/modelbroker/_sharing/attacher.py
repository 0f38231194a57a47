"""The broker of a process that shares: found once, waited for once, and never in the way.

Threads: any; while one waits for a broker, the others wait with it.
"""

from __future__ import annotations

import os
import threading
import time

from .._broker import Broker, connect
from .._errors import BrokerHangsError, PermissionDeniedError, UnavailableError
from .._weights import Weights

_WAIT = 2.0  # for a broker that is not there, once in a process
_SHORT_WAIT = 0.05  # afterwards: whether it is there by now
_HANGS_FOR = 60.0  # one that says nothing is left alone so long


class Attacher:
    """To one endpoint; the usual one where it is None."""

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._broker: Broker | None = None
        self._waited = False
        self._left_alone_until = 0.0
        self._why = ""
        self._forked()

    def _forked(self) -> None:
        """A parent's thread may have had the lock."""
        self._pid, self._lock = os.getpid(), threading.Lock()

    def attach(self, descriptor: int, path: str, *, load: bool) -> Weights:
        """Of an open file; any ModelBrokerError means: not shared."""
        broker = self.broker()
        try:
            return broker.attach_open_file(descriptor, path, load=load)
        except BrokerHangsError as error:
            self._leave_alone(error)
            raise
        except UnavailableError:
            self._wait_no_more(broker)
            raise

    def broker(self) -> Broker:
        """Connected; a ModelBrokerError where none can be had now."""
        if self._pid != os.getpid():
            self._forked()
        with self._lock:
            if time.monotonic() < self._left_alone_until:
                raise BrokerHangsError(self._why)
            if self._broker is None:
                try:
                    patience = _SHORT_WAIT if self._waited else _WAIT
                    self._broker = connect(self._endpoint, timeout=patience)
                except BrokerHangsError as error:
                    self._leave_alone(error)
                    raise
                except (UnavailableError, PermissionDeniedError):
                    self._waited = True
                    raise
                self._broker.wait_for_a_lost_broker(_SHORT_WAIT if self._waited else _WAIT)
            return self._broker

    def _wait_no_more(self, broker: Broker) -> None:
        self._waited = True
        broker.wait_for_a_lost_broker(_SHORT_WAIT)

    def _leave_alone(self, error: BrokerHangsError) -> None:
        self._left_alone_until = time.monotonic() + _HANGS_FOR
        self._why = str(error)


_attachers: dict[str | None, Attacher] = {}


def attacher(endpoint: str | None) -> Attacher:
    """The process's own for this endpoint."""
    return _attachers.setdefault(endpoint, Attacher(endpoint))
