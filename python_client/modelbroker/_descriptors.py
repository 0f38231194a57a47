"""File descriptors of this process: none left is a refusal, not an abort.

libzmq aborts the process when it gets none in the wrong place, so they are asked for first.
"""

from __future__ import annotations

import errno
import os

import zmq

from ._errors import ResourceExhaustedError
from ._whole import for_each

FOR_A_CONTEXT = 16
FOR_A_SOCKET = 8


class OutOfDescriptorsError(ResourceExhaustedError):
    """This process's own limit, no answer of the broker's: what was asked may be asked again."""


def none_left(error: OSError | zmq.ZMQError) -> bool:
    """Whether this is the process's or the system's limit of open files."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def exhausted(what: str) -> OutOfDescriptorsError:
    """The refusal, with its remedy."""
    return OutOfDescriptorsError(
        f"{what}: this process has no file descriptor left: close some, or raise the limit "
        "(ulimit -n)"
    )


class or_exhausted:  # noqa: N801  used as a function
    """Makes that limit an OutOfDescriptorsError; other errors stay what they are.

    No generator of contextlib: see tests/unit/python_garbage_test.py.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (OSError, zmq.ZMQError)) and none_left(error):
            raise exhausted(self._what) from None


def ensure_left(count: int) -> None:
    """OSError unless that many can be opened now."""
    opened: list[int] = []
    try:
        opened.extend(map(os.eventfd, [0] * count, [os.EFD_CLOEXEC] * count))
    finally:
        for_each(os.close, opened)
