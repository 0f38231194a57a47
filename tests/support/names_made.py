"""Which names appear in a folder, however short their life: the kernel tells each."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CREATE, _MOVED_TO = 0x100, 0x80
_EVENT = struct.Struct("iIII")


@contextmanager
def names_made(folder: Path) -> Iterator[set[str]]:
    """Filled at its end."""
    names: set[str] = set()
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert inotify >= 0, os.strerror(ctypes.get_errno())
    try:
        watch = libc.inotify_add_watch(inotify, os.fsencode(folder), _CREATE | _MOVED_TO)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        yield names
        while True:
            try:
                events = os.read(inotify, 1 << 16)
            except BlockingIOError:
                break
            while events:
                _, _, _, size = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + size]
                names.add(os.fsdecode(name.rstrip(b"\0")))
                events = events[_EVENT.size + size :]
    finally:
        os.close(inotify)
