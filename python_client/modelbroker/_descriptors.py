"""File descriptors of this process: none left is a refusal, not an abort.

libzmq aborts the process when it gets none in the wrong place, so they are asked for first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from ._errors import ResourceExhaustedError

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


@contextmanager
def or_exhausted(what: str) -> Iterator[None]:
    """Makes that limit an OutOfDescriptorsError; other errors stay what they are."""
    try:
        yield
    except (OSError, zmq.ZMQError) as error:
        if not none_left(error):
            raise
        raise exhausted(what) from None


def ensure_left(count: int) -> None:
    """OSError unless that many can be opened now."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.eventfd(0, os.EFD_CLOEXEC))
    finally:
        for descriptor in opened:
            os.close(descriptor)
