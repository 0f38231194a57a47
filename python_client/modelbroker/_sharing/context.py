"""Who shares: this whole process, or what runs inside a `with sharing():` block.

Threads: any. A block belongs to the context that entered it (its thread, its asyncio task), to what
that context calls, and to the threads that are started inside it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar

from .settings import Settings

# The blocks that the caller is in, the innermost last.
_blocks: ContextVar[tuple[Settings | None, ...]] = ContextVar("modelbroker_sharing", default=())
_everywhere: Settings | None = None
# Started inside a block: a thread has a context of its own, and loaders read in threads.
_threads: weakref.WeakKeyDictionary[threading.Thread, Settings] = weakref.WeakKeyDictionary()


def current() -> Settings | None:
    """How the caller shares; None where it does not."""
    return _of_its_block() or _everywhere


def is_inside() -> bool:
    """Whether what the caller opens now is shared."""
    return current() is not None


def share_everywhere(settings: Settings) -> None:
    """From now on in all of this process."""
    global _everywhere
    _everywhere = settings


def enter(settings: Settings) -> None:
    """The caller shares so, until it leaves."""
    _follow_threads()
    _blocks.set((*_blocks.get(), settings))


def enter_unchanged() -> None:
    """The caller shares, or not, as before."""
    blocks = _blocks.get()
    _blocks.set((*blocks, blocks[-1] if blocks else None))


def leave() -> None:
    """The end of what was entered last."""
    _blocks.set(_blocks.get()[:-1])


def _of_its_block() -> Settings | None:
    """Of the block that the caller is in, or was started in."""
    blocks = _blocks.get()
    return (blocks[-1] if blocks else None) or _threads.get(threading.current_thread())


def _follow_threads() -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start
    if getattr(start, "follows_sharing", False):
        return

    def start_inside(self: threading.Thread) -> None:
        settings = _of_its_block()
        if settings is not None:
            _threads[self] = settings
        start(self)

    start_inside.follows_sharing = True  # type: ignore[attr-defined]  # found again by getattr
    start_inside.__doc__ = start.__doc__
    threading.Thread.start = start_inside  # type: ignore[method-assign]  # there is no other way
