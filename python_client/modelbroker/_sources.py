"""The files that a load or attach by a path is about.

They are opened here, so that the broker needs no rights of its own on them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from ._descriptors import exhausted, none_left
from ._errors import (
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)

INDEX_SUFFIX = ".safetensors.index.json"
_MODEL_SUFFIXES = (".safetensors", ".sft")
SUFFIXES = (*_MODEL_SUFFIXES, INDEX_SUFFIX)
_MOST_FILES = 1024  # of a set


class Sources:
    """One open file; or the index of a set, and every file beside it that it may name.

    Closed at the end of `with`. `lent` is a descriptor of the caller's, which stays open.
    """

    def __init__(self, path: str, lent: int | None = None) -> None:
        self._path, self._lent = path, lent
        self._opened: list[tuple[int, str]] = []
        self._is_set = lent is None and path.endswith(INDEX_SUFFIX)
        if lent is not None:
            return
        try:
            self._open(path)
            if self._is_set:
                self._open_beside()
        except BaseException:
            self.close()
            raise

    def offered(self, data: dict[str, Any], offer: Callable[[int], str]) -> dict[str, Any]:
        """A request's data, with the handles that `offer` gives for the files."""
        if self._lent is not None:
            return {**data, "file": offer(self._lent)}
        if not self._is_set:
            return {**data, "file": offer(self._opened[0][0])}
        files = [{"file": offer(file), "name": name} for file, name in self._opened]
        return {**data, "files": files}

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop()[0])

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: str) -> None:
        # O_NONBLOCK: a fifo must not hold us up; the broker refuses it by its kind.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._opened.append((os.open(path, flags), os.path.basename(path)))
        except OSError as error:
            raise _open_error(error, path) from None
        except ValueError as error:
            raise InvalidArgumentError(f"{path!r}: {error}") from None

    def _open_beside(self) -> None:
        folder = os.path.dirname(self._path)
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(_MODEL_SUFFIXES))
        except OSError as error:
            raise _open_error(error, folder) from None
        if len(names) > _MOST_FILES:
            raise ResourceExhaustedError(
                f"'{folder}' has {len(names)} model files beside the index; a set has at most "
                f"{_MOST_FILES}: put it into a folder of its own"
            )
        for name in names:
            try:
                self._open(os.path.join(folder, name))
            except ResourceExhaustedError:
                raise
            except ModelBrokerError:
                continue  # if the index names it, the broker says that it is missing


def _open_error(error: OSError, path: str) -> ModelBrokerError:
    message = f"opening '{path}': {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(message)
    if none_left(error):
        return exhausted(f"opening '{path}'")
    return InvalidArgumentError(message)
