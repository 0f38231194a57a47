"""The k-th system call of a broker fails, for every k: each operation is done, or refused by type.

Afterwards the broker lives, its books are exact, nothing partial is served and nothing is left over.
Here every call fails once, and each kind of call with each error that fits it;
failing_calls_torture_test.py has every call with every error, once and for ever.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sweeps import FIRST, FITTING, OPERATIONS, World, new_world, sweep


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with new_world(tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_fails_once(world: World, name: str) -> None:
    record = sweep(world, OPERATIONS[name], FIRST)
    assert record.calls > 5
    assert record.refusals > 0
    world.assert_nothing_is_left()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_first_call_of_each_kind_fails_with_each_error_that_fits(
    world: World, name: str
) -> None:
    reached: set[str] = set()
    for error, calls in FITTING.items():
        for call in calls:
            if error != FIRST and call not in reached:
                continue  # this operation does not make it
            record = sweep(world, OPERATIONS[name], error, only=(call,), numbers=(1,))
            reached |= record.reached
    world.assert_nothing_is_left()
