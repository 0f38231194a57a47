"""Who shares: this whole process, or what runs inside a `with sharing():` block.

Threads: any. A block belongs to the context that entered it (its thread, its asyncio task), to what
that context calls, and to the threads that are started inside it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from . import imports
from .settings import Settings, bytes_of

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
def sharing(
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    min_size: int | str | None = None,
    resident_only: bool | None = None,
    endpoint: str | None = None,
) -> Iterator[None]:
    """What is opened inside attaches to the broker's memory instead of being loaded.

        with modelbroker.sharing():
            pipe = DiffusionPipeline.from_pretrained(folder)

    Around a program's own loading: `from_pretrained`, `from_single_file`, `load_file` and all else
    that reads safetensors files into torch tensors on the CPU. What cannot be shared is loaded as
    ever, and one line in the log of "modelbroker" says why. A file that was opened inside is shared
    wherever it is read, threads that are started inside count as inside, other threads do not.

    `only` and `skip`: patterns of paths, as in "*/unet/*". `min_size`: smaller files are loaded as
    ever (1 MiB; bytes or "500MB"). `resident_only`: attach to what is in memory, load nothing.
    `endpoint`: another broker than the usual one. What is not given is as `modelbroker.run` and its
    variables say; MODELBROKER_AUTO=0 switches this off too.
    """
    if os.environ.get("MODELBROKER_AUTO") == "0":
        yield
        return
    settings = _block.get() or _everywhere or Settings.from_environment()
    given: dict[str, Any] = {
        "only": tuple(only) or None,
        "skip": tuple(skip) or None,
        "min_size": None if min_size is None else bytes_of(min_size),
        "resident_only": resident_only,
        "endpoint": endpoint,
    }
    settings = replace(settings, **{key: x for key, x in given.items() if x is not None})
    imports.when_imported("torch", _open_the_door)
    _follow_threads()
    token = _block.set(settings)
    try:
        yield
    finally:
        _block.reset(token)


def _open_the_door(_: object) -> None:
    from .door import install  # it imports torch

    install()


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
