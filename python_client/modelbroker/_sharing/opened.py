"""A file as torch has mapped it, which becomes the broker's memory when it is first read.

What was opened is what is shared: the original's mapping stays beneath, and serves wherever the
file at the path is another one by then, or the broker cannot. Imports torch.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from typing import Any, NamedTuple

import torch

from .._errors import ModelBrokerError, NotFoundError
from .._weights import Weights
from .attacher import attacher
from .headers import LARGEST_HEADER, LENGTH
from .ledger import FileRecord
from .settings import Settings

_log = logging.getLogger("modelbroker")
_told: set[str] = set()
_original_getitem: Any = torch.UntypedStorage.__getitem__
# What that calls in the end; a third of a slice is on the way there.
_slice_of: Any = getattr(torch._C.StorageBase, "__getitem__", _original_getitem)


class NotShared(Exception):  # noqa: N818  not an error: the file is read as ever
    """Why; `kind` where many files may have the same reason, which is logged once."""

    def __init__(self, why: str, kind: str = "", level: int = logging.INFO) -> None:
        super().__init__(why)
        self.why, self.kind, self.level = why, kind or why, level


class Identity(NamedTuple):
    """By which a file is the same one."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Opening:
    """One opening of one file: what it was, and, once it was read, where its bytes are.

    Byte `i` of the file, from `data` on, is byte `i + shift` of `whole`; where that is None, the
    original serves.
    """

    def __init__(
        self, path: str, identity: Identity, settings: Settings, record: FileRecord
    ) -> None:
        self.path = path
        self.size = identity.size
        self.whole: torch.UntypedStorage | None = None
        self.data = self.shift = 0
        self.decided = False
        self.record = record
        self._identity = identity
        self._settings = settings
        self._pid, self._lock = os.getpid(), threading.Lock()

    def decide(self) -> None:
        """Attaches, or leaves it. Ctrl-C leaves it open: the next read asks again."""
        if self._pid != os.getpid():  # another thread of the parent's may have the lock
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            if self.decided:
                return
            try:
                self._attach()
            except NotShared as reason:
                self.record.stock(reason.why)
                _tell(reason)
            except ModelBrokerError as error:
                self.record.stock(str(error))
                _tell(NotShared(str(error), type(error).__name__, logging.WARNING))
            except Exception as error:  # our bug must not be the program's
                self.record.stock(f"internal error: {error!r}")
                _log.warning("%s is not shared: a bug of modelbroker's", self.path, exc_info=True)
            self.decided = True

    def _attach(self) -> None:
        descriptor = self._same_file()
        try:
            data = _data_of_safetensors(descriptor, self._identity.size)
            weights = self._weights(descriptor)
            # Read by the broker between these two looks: the bytes are those of this file.
            if Identity.of(os.fstat(descriptor)) != self._identity:
                raise NotShared("the file was changed while it was opened")
        finally:
            os.close(descriptor)
        self._take(weights, data)

    def _weights(self, descriptor: int) -> Weights:
        load = not self._settings.resident_only
        try:
            return attacher(self._settings.endpoint).attach(descriptor, self.path, load=load)
        except NotFoundError:
            if load:
                raise
            why = "not in the broker's memory, and --resident-only loads nothing"
            raise NotShared(why, "resident") from None

    def _same_file(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            descriptor = os.open(self.path, flags)
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            why = "deleted" if gone else f"{error.strerror}"
            raise NotShared(f"between opening and first reading it: {why}", "between") from None
        if Identity.of(os.fstat(descriptor)) != self._identity:
            os.close(descriptor)
            raise NotShared("replaced or changed between opening and first reading it")
        return descriptor

    def _take(self, weights: Weights, data: int) -> None:
        ((memory, header),) = weights.blocks()
        if header.payload_size != self._identity.size - data:
            raise NotShared("the broker holds other bytes of it than safetensors reads")
        import numpy as np

        self.whole = torch.from_numpy(np.asarray(memory)).untyped_storage()
        self.data, self.shift = data, header.payload - data
        self.record.attached(memory, weights.outcome)


class Opened(torch.UntypedStorage):
    """The original's storage, which it becomes by its class: its memory is the original's.

    Its readers slice it, or, for CUDA, ask for its address.
    """

    opening: Opening | None = None  # of what torch makes of it (clones) nothing is known

    def __getitem__(self, index: Any) -> Any:
        # Once for each tensor that is read: every call counts.
        opening = self.opening
        if opening is not None and not opening.decided:
            opening.decide()
        if type(index) is not slice:
            return _original_getitem(self, index)
        if opening is not None and (whole := opening.whole) is not None:
            start, stop, step = index.indices(opening.size)
            if start >= opening.data and step == 1:
                stop = max(start, stop)
                shift = opening.shift
                piece = _slice_of(whole, slice(start + shift, stop + shift))
                opening.record.hand_out(piece, stop - start)
                return piece
        piece = _original_getitem(self, index)  # of our class, too
        piece.__class__ = torch.UntypedStorage
        return piece

    def data_ptr(self) -> int:
        """So that adding an offset gives the address of the file's byte, from its data on."""
        opening = self.opening
        if opening is not None and not opening.decided:
            opening.decide()
        if opening is None or opening.whole is None:
            return super().data_ptr()
        return opening.whole.data_ptr() + opening.shift


def _data_of_safetensors(descriptor: int, size: int) -> int:
    """Where the tensors' bytes begin."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise NotShared("not a regular file")
    start = os.pread(descriptor, LENGTH.size + 1, 0)
    if start[:2] == b"PK":
        raise NotShared("a PyTorch file: the broker reads safetensors only", "PyTorch")
    length = LENGTH.unpack_from(start)[0] if len(start) > LENGTH.size else 0
    data = LENGTH.size + length
    if not start.endswith(b"{") or length > LARGEST_HEADER or data > size:
        raise NotShared("not a safetensors file: the broker reads no other", "format")
    return data


def _tell(reason: NotShared) -> None:
    """One line a reason, for a process."""
    if reason.kind not in _told:
        _told.add(reason.kind)
        _log.log(reason.level, "weights are loaded as without modelbroker: %s", reason.why)
