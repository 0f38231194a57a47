"""What became of each file that was opened: shared or stock, why, and what of it is in use.

One record a path and process; the parent's are not a forked child's. Threads: any. Tensors do not
live longer for being counted here.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._memory import Memory

_NEVER_READ = "opened, never read"
_ROOM = 1000  # of pieces counted, at least, before those that are gone are taken out


class FileRecord:
    """Of one path."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.shared = False
        self.outcome = ""  # of the first attach: "loaded" by the broker now, "resident", ...
        self.why = _NEVER_READ  # of what is not shared
        self.handed_out = 0
        self._pieces: list[weakref.ref[Any]] = []  # of storages
        self._room = _ROOM
        self._mappings: weakref.WeakSet[Memory] = weakref.WeakSet()

    def attached(self, memory: Memory, outcome: str) -> None:
        """One open of it has become a mapping."""
        self.shared = True
        self.outcome = self.outcome or outcome
        self.mapped(memory)

    def mapped(self, memory: Memory) -> None:
        """Also this mapping is of its block."""
        self._mappings.add(memory)
        ledger.by_mapping[memory] = self

    def stock(self, why: str) -> None:
        """One open of it was left as it is."""
        self.why = why

    def hand_out(self, storage: Any, nbytes: int) -> None:
        """A piece of a mapping goes to the program."""
        self.handed_out += nbytes
        self.count(storage)

    def count(self, storage: Any) -> None:
        """All of this storage is in use, as long as it lives."""
        self._pieces.append(weakref.ref(storage))
        if len(self._pieces) > self._room:
            self._pieces = [piece for piece in self._pieces if piece() is not None]
            self._room = 2 * len(self._pieces) + _ROOM

    @property
    def was_read(self) -> bool:
        """By an open that was noticed; not of a file that the program only looked at."""
        return self.shared or self.why != _NEVER_READ

    @property
    def is_mapped(self) -> bool:
        """Whether a mapping of its block still lives."""
        return len(self._mappings) > 0

    @property
    def in_use(self) -> int:
        """Bytes handed out that somebody still has."""
        storages = (piece() for piece in list(self._pieces))
        return sum(storage.nbytes() for storage in storages if storage is not None)

    @property
    def written(self) -> int:
        """Bytes of pages over the mappings that became this process's own."""
        from .._pages import written_bytes

        return sum(written_bytes(memory.address, memory.size) for memory in list(self._mappings))


class Ledger:
    """All records of this process."""

    def __init__(self) -> None:
        self.by_mapping: weakref.WeakKeyDictionary[Memory, FileRecord] = weakref.WeakKeyDictionary()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[str, FileRecord] = {}

    def of(self, path: str, size: int) -> FileRecord:
        """The record of a path, made when it is new."""
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            record = self._files.get(path)
            if record is None:
                record = self._files[path] = FileRecord(path, size)
            return record

    def records(self) -> list[FileRecord]:
        """In the order of their first opening."""
        return list(self._files.values()) if self._pid == os.getpid() else []


ledger = Ledger()
