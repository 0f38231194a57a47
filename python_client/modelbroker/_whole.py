"""Steps that a signal's handler cannot tear apart.

Python runs handlers, and so raises KeyboardInterrupt, between bytecodes: after a call, before its
result is anywhere. A C function that calls another one leaves no such moment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any


def take(taken: list[bool], lock: threading.Lock, seconds: float) -> bool:
    """Waits for a lock; that `taken` holds True says that it is ours, whatever is raised here.

    To be called below a `try` whose `finally` is `if True in taken: lock.release()`.
    """
    taken.extend(map(lock.acquire, (True,), (seconds,)))
    return True in taken


def for_each(function: Callable[..., Any], *arguments: Iterable[Any]) -> None:
    """Calls a C function once for each tuple of arguments."""
    deque(map(function, *arguments), maxlen=0)
