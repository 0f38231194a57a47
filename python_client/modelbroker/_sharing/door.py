"""The door: `torch.UntypedStorage.from_file`, by which files become memory.

`safe_open(framework="pt")` of every safetensors from 0.4 on and `torch.load(mmap=True)` look it up
at each call, and of what it gives they use slices and the address. Nothing else of either is
touched. Imports torch.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import os
import threading
from typing import Any

import torch

from . import context, converters, imports, load_state, proof, report
from .ledger import ledger
from .opened import Identity, Opened, Opening
from .settings import Settings

_log = logging.getLogger("modelbroker")
_installing = threading.Lock()


def install(everywhere: Settings | None = None) -> None:
    """Opens the door for those who share; idempotent. All others pass by it.

    `everywhere`: all of this process shares from now on, as it says.
    """
    if everywhere is not None:
        context.share_everywhere(everywhere)
        if everywhere.report:
            report.at_exit(everywhere.report)
    with _installing:
        if getattr(torch.UntypedStorage.from_file, "of_modelbroker", False):
            return
        original: Any = torch.UntypedStorage.from_file

        @functools.wraps(original)
        def from_file(*arguments: Any, **named: Any) -> Any:
            if proof.is_under_way():
                return proof.proving(original(*arguments, **named))
            settings = context.current()
            if settings is None:
                return original(*arguments, **named)
            return _open(original, settings, arguments, named)

        from_file.of_modelbroker = True  # type: ignore[attr-defined]  # found again by getattr
        torch.UntypedStorage.from_file = staticmethod(from_file)  # type: ignore[method-assign]  # the door
    _note_torch_load()
    if not proof.try_torch():
        return
    load_state.install()
    imports.when_imported("safetensors", proof.try_safetensors)
    imports.when_imported("flashpack", proof.note_flashpack)
    imports.when_imported("diffusers.loaders.single_file_utils", lambda _: converters.install())


def _open(original: Any, settings: Settings, arguments: Any, named: Any) -> torch.UntypedStorage:
    """As the original, and where it is a whole file, mapped privately, an Opened."""
    path, shared, nbytes = _meant(*arguments, **named)
    before = _look(path)
    storage: torch.UntypedStorage = original(*arguments, **named)
    if path is None or shared or before is None or before != _look(path):
        return storage
    if nbytes != before.size:
        return storage
    record = ledger.of(_as_shown(path), before.size)
    why = _left_out(path, before.size, settings)
    if why:
        record.stock(why)
        return storage
    opening = Opening(path, before, settings, record)
    storage.__class__ = Opened
    storage.opening = opening  # type: ignore[attr-defined]  # of Opened
    return storage


def _meant(
    filename: Any = None, shared: Any = False, nbytes: Any = 0, **_: Any
) -> tuple[str | None, bool, int]:
    """The arguments as torch takes them; what it refuses, it refuses itself."""
    try:
        # Not normalised: only the file system knows what is above a link.
        path = os.path.join(os.getcwd(), os.fsdecode(filename))
    except (TypeError, OSError):
        path = None
    return path, bool(shared), nbytes if isinstance(nbytes, int) else -1


def _as_shown(path: str) -> str:
    """Without "." and, where only the file system knows what is above a link, with ".."."""
    return path if ".." in path.split(os.sep) else os.path.normpath(path)


def _look(path: str | None) -> Identity | None:
    try:
        return None if path is None else Identity.of(os.stat(path))
    except (OSError, ValueError):
        return None


def _left_out(path: str, size: int, settings: Settings) -> str:
    """Why this file is left as it is; empty: it is not."""
    if settings.only and not _matches(path, settings.only):
        return "not in --only"
    if settings.skip and _matches(path, settings.skip):
        return "in --skip"
    if size < settings.min_size:
        return f"smaller than --min-size ({settings.min_size} bytes)"
    return ""


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    """Whether one is of the path, or of the file that links lead to."""
    names = {os.path.normpath(path), os.path.realpath(path)}
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def _note_torch_load() -> None:
    """For the report: torch.load reads PyTorch files for itself."""
    serialization: Any = torch.serialization
    original = getattr(serialization, "_open_file_like", None)
    if original is None:
        return

    @functools.wraps(original)
    def open_file_like(name_or_buffer: Any, mode: str, *rest: Any, **named: Any) -> Any:
        if context.is_inside() and mode == "rb" and isinstance(name_or_buffer, str | os.PathLike):
            path, _, _ = _meant(name_or_buffer)
            found = _look(path)
            if path is not None and found is not None:
                ledger.of(_as_shown(path), found.size).stock(
                    "torch.load of a PyTorch file: the broker reads safetensors only"
                )
        return original(name_or_buffer, mode, *rest, **named)

    serialization._open_file_like = open_file_like
