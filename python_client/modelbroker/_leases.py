"""Leases as this process knows them, and what must still be told to the broker about them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._session import Session


@dataclass(slots=True)
class Held:
    """A lease that lives: what `lease.restate` says of it."""

    number: int
    model: str
    blocks: list[str]
    ref: LeaseRef  # kept alive, or it tells nobody

    def as_wire(self) -> dict[str, Any]:
        """An element of `lease.restate`'s leases."""
        return {"lease": self.number, "model": self.model, "blocks": self.blocks}


@dataclass(slots=True)
class Errand:
    """A request that nobody waits for, good on one session only.

    A detach; or an attach whose caller gave up: asked again with the same id, it tells which lease
    it got, so that this can be ended.
    """

    session: Session
    request_id: str
    type: str
    data: dict[str, Any]


class Lease:
    """Held by every mapping of one attach; when the last is gone, `wake` is called.

    `wake` runs as a finalizer: anywhere, in any thread, and never in a forked child or at the
    interpreter's exit (where the session ends anyway).
    """

    __slots__ = ("__weakref__",)

    def __init__(self, wake: Callable[[], None]) -> None:
        weakref.finalize(self, _call_if_ours, os.getpid(), wake).atexit = False


def _call_if_ours(pid: int, wake: Callable[[], None]) -> None:
    if os.getpid() == pid:
        wake()


class LeaseRef(weakref.ref[Lease]):
    """Goes into a deque when its lease is let go: a C function does it, which nobody interrupts."""

    __slots__ = ("key",)
    key: int

    @classmethod
    def to(cls, lease: Lease, dropped: deque[LeaseRef], key: int) -> LeaseRef:
        """`key`: the lease's in the books."""
        ref = cls(lease, dropped.append)
        ref.key = key
        return ref
