"""Whether torch and safetensors go through the door: tried once, on a file of 100 bytes.

Versions that go another way run as ever, and the report names them. Imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

_log = logging.getLogger("modelbroker")
_HEADER = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
_FILE = struct.Struct("<Q").pack(88) + _HEADER.ljust(88) + b"abcd"
_asked: ContextVar[list[slice] | None] = ContextVar("modelbroker_proof", default=None)
_other_ways: list[str] = []
_original_getitem: Any = torch.UntypedStorage.__getitem__


def other_ways() -> list[str]:
    """What is known to read files without the door, in words for the report."""
    return list(_other_ways)


class Proving(torch.UntypedStorage):
    """Tells what is asked of it."""

    def __getitem__(self, index: object) -> object:
        asked = _asked.get()
        if asked is not None and isinstance(index, slice):
            asked.append(index)
        return _original_getitem(self, index)


def note_flashpack(_: ModuleType) -> None:
    """Of `from_pretrained(use_flashpack=True)`."""
    _other_ways.append("flashpack")


def is_under_way() -> bool:
    """Whether the caller is a trial of ours."""
    return _asked.get() is not None


def proving(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """The same, which tells what is asked of it."""
    storage.__class__ = Proving
    return storage


def try_torch() -> bool:
    """Whether slices of what from_file gives reach us."""

    def read(path: str) -> bytes:
        storage: Any = torch.UntypedStorage.from_file(path, shared=False, nbytes=len(_FILE))
        return bytes(storage.untyped()[96:100].tolist())

    return _goes_our_way(read, f"torch {torch.__version__}")


def try_safetensors(safetensors: ModuleType) -> None:
    """Whether safe_open goes our way; notes those of its ways that never do."""

    def read(path: str) -> bytes:
        with safetensors.safe_open(path, framework="pt") as opened:
            return bytes(opened.get_tensor("a").tolist())

    ours = _goes_our_way(read, f"safetensors {getattr(safetensors, '__version__', '')}")
    if ours and hasattr(safetensors.safe_open, "prefetch"):
        _other_ways.append("safe_open(backend='pread') and safe_open.prefetch()")


def _goes_our_way(read: Callable[[str], bytes], name: str) -> bool:
    asked: list[slice] = []
    token = _asked.set(asked)
    why = "another way"
    try:
        with tempfile.NamedTemporaryFile() as file:
            os.write(file.fileno(), _FILE)
            if read(file.name) == b"abcd" and asked:
                return True
    except Exception as error:
        why = f"another way ({error!r})"
    finally:
        _asked.reset(token)
    _other_ways.append(name)
    _log.warning("%s reads files %s: nothing that it reads is shared", name, why)
    return False
