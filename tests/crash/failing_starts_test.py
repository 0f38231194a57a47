"""The k-th system call of a broker's start fails, for every k.

It serves with every block, or ends with an error that says what failed, and the next one serves.
Every call with every error, once and for ever: failing_calls_torture_test.py.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from support.sweeps import FIRST, FITTING, new_world, sweep_starts


@pytest.mark.parametrize("error", FITTING, ids=errno.errorcode.get)
def test_every_call_of_a_start_fails_once(tmp_path: Path, error: int) -> None:
    with new_world(tmp_path, "64MiB") as world:
        record = sweep_starts(world, error, step=1 if error == FIRST else 3)
        assert record.refusals > 0
        if error == FIRST:
            assert record.reached >= {"list_directory", "lock_exclusive", "signal_fd", "pread"}
        world.client.unload("alias")
        world.assert_nothing_is_left()
