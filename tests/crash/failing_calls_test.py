"""The k-th system call of a broker fails, for every k: an operation is done, or refused by type.

Afterwards the broker lives, its books are exact, nothing partial is served, nothing is left over.
Every call with every error, once and for ever: failing_calls_torture_test.py.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from support.sweeps import CALLS, FIRST, FITTING, OPERATIONS, new_world, sweep

# A call without which the operation would not be itself.
ITS_OWN = {
    "load": "pread",
    "attach": "accept",
    "evict": "unlink",
    "unload": "nobody_else_has_it",
    "revive": "rename_noreplace",
    "replace": "unlink",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_fails_once(tmp_path: Path, name: str) -> None:
    operation = OPERATIONS[name]
    with new_world(tmp_path, operation.budget) as world:
        # Threads make some calls sooner or later: each has its place in most sweeps.
        wanted = {"epoll_poll", ITS_OWN[name]}
        reached: set[str] = set()
        for _ in range(4):
            reached |= sweep(world, operation, FIRST).reached
            if reached >= wanted:
                break
        assert reached >= wanted
        world.assert_nothing_is_left()


@pytest.mark.parametrize("error", set(FITTING) - {FIRST}, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_third_call_fails_with_another_error(tmp_path: Path, name: str, error: int) -> None:
    operation = OPERATIONS[name]
    with new_world(tmp_path, operation.budget) as world:
        sweep(world, operation, error, step=3)
        world.assert_nothing_is_left()


def test_errors_are_told_of_calls_that_the_broker_makes() -> None:
    assert len(set(CALLS)) == len(CALLS)
    for calls in FITTING.values():
        assert set(calls) <= set(CALLS)
