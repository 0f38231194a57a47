"""Threads of this process: none left is a refusal, not an abort.

libzmq aborts the process when it gets none for a context, so as many are started and ended first.
"""

from __future__ import annotations

import _thread
import os
import time

from ._errors import ResourceExhaustedError

FOR_A_CONTEXT = 3  # libzmq's I/O thread and reaper, and our keeper

_TRIES = 3  # threads that have just ended may still be counted
_MOST_SECONDS = 5.0  # a trial thread ends by itself, whatever becomes of who started it


class OutOfThreadsError(ResourceExhaustedError):
    """This process's own limit, no answer of the broker's: what was asked may be asked again."""


def no_thread_left(what: str) -> OutOfThreadsError:
    """The refusal, with its remedy."""
    return OutOfThreadsError(
        f"{what}: this process can start no thread: end some, or raise the limit: 'ulimit -u' for "
        "this user's processes and threads, TasksMax= for a systemd unit, pids.max for a container "
        "(docker run --pids-limit)"
    )


def ensure_left(count: int, what: str) -> None:
    """OutOfThreadsError unless so many threads can run at once now."""
    for attempt in range(_TRIES):
        try:
            return _start_and_end(count)
        except RuntimeError as error:
            # From 3.12 on Python starts none at exit; libzmq may.
            if "shutdown" in str(error):
                return None
        time.sleep(0.01 * attempt)
    raise no_thread_left(what)


def _start_and_end(count: int) -> None:
    """RuntimeError where there are fewer."""
    numbers: list[int] = []
    started = 0
    over = _thread.allocate_lock()
    end = time.monotonic() + _MOST_SECONDS
    try:
        with over:
            for _ in range(count):
                _thread.start_new_thread(_stay, (numbers, over))
                started += 1
    finally:
        # The kernel counts a thread until its number is gone.
        while time.monotonic() < end and (len(numbers) < started or any(map(_lives, numbers))):
            time.sleep(0.0001)


def _stay(numbers: list[int], over: _thread.LockType) -> None:
    numbers.append(_thread.get_native_id())
    if over.acquire(timeout=_MOST_SECONDS):
        over.release()


def _lives(number: int) -> bool:
    try:
        os.getpriority(os.PRIO_PROCESS, number)
    except OSError:
        return False
    return True
