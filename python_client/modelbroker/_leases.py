"""Leases as this process knows them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Held:
    """A lease that was asked for, and what `lease.restate` says of it once it is granted."""

    ref: LeaseRef  # kept alive, or it tells nobody
    model: str = ""
    blocks: list[str] = field(default_factory=list)  # none: not granted yet

    def as_wire(self) -> dict[str, Any]:
        """An element of `lease.restate`'s leases."""
        return {"lease": self.ref.number, "model": self.model, "blocks": self.blocks}


class Lease:
    """Held by an attach, then by every mapping of it; when the last is gone, `wake` is called.

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

    __slots__ = ("number",)
    number: int

    @classmethod
    def to(cls, lease: Lease, dropped: deque[LeaseRef], number: int) -> LeaseRef:
        """`number`: the lease's."""
        ref = cls(lease, dropped.append)
        ref.number = number
        return ref
