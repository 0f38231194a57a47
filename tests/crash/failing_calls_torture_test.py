"""Every system call fails with every error that fits it, once and for ever: `make torture`."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from support.sweeps import FITTING, OPERATIONS, new_world, sweep, sweep_starts

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("error", FITTING, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call(tmp_path: Path, name: str, error: int, for_ever: bool) -> None:
    operation = OPERATIONS[name]
    with new_world(tmp_path, operation.budget) as world:
        record = sweep(world, operation, error, for_ever=for_ever)
        print(f"{record.calls} calls, {record.refusals} refusals")
        world.assert_nothing_is_left()


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("error", FITTING, ids=errno.errorcode.get)
def test_every_call_of_a_start(tmp_path: Path, error: int, for_ever: bool) -> None:
    with new_world(tmp_path, "64MiB") as world:
        record = sweep_starts(world, error, for_ever=for_ever)
        print(f"{record.calls} calls, {record.refusals} refusals")
        world.client.unload("alias")
        world.assert_nothing_is_left()
