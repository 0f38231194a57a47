"""Who shares: this whole process, or what runs inside a `with sharing():` block.

Threads: any. A block belongs to the context that entered it (its thread, its asyncio task), to what
that context calls, and to the threads that are started inside it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .settings import Settings

_block: ContextVar[Settings | None] = ContextVar("modelbroker_sharing", default=None)
_everywhere: Settings | None = None
# Started inside a block: a thread has a context of its own, and loaders read in threads.
_threads: weakref.WeakKeyDictionary[threading.Thread, Settings] = weakref.WeakKeyDictionary()


def current() -> Settings | None:
    """How the caller shares; None where it does not."""
    return _block.get() or _threads.get(threading.current_thread()) or _everywhere


def is_inside() -> bool:
    """Whether what the caller opens now is shared."""
    return current() is not None


def share_everywhere(settings: Settings) -> None:
    """From now on in all of this process."""
    global _everywhere
    _everywhere = settings


@contextmanager
def entered(settings: Settings) -> Iterator[None]:
    """The caller shares so, within it."""
    _follow_threads()
    token = _block.set(settings)
    try:
        yield
    finally:
        _block.reset(token)


def _follow_threads() -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start
    if getattr(start, "follows_sharing", False):
        return

    def start_inside(self: threading.Thread) -> None:
        settings = _block.get() or _threads.get(threading.current_thread())
        if settings is not None:
            _threads[self] = settings
        start(self)

    start_inside.follows_sharing = True  # type: ignore[attr-defined]  # found again by getattr
    start_inside.__doc__ = start.__doc__
    threading.Thread.start = start_inside  # type: ignore[method-assign]  # there is no other way
