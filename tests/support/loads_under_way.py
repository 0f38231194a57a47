"""A broker that is stopped in the midst of a load, however fast the load is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import modelbroker

from .broker import BrokerProcess, wait_until

Load = TypeVar("Load")


def freeze_in_a_load(
    broker: BrokerProcess,
    client: modelbroker.Broker,
    begin: Callable[[], Load],
    end: Callable[[Load], object],
    due: Callable[[Load], bool],
    caught: Callable[[], bool] | None = None,
) -> Load:
    """Begins loads of a model "m" until the broker is frozen in one; returns that.

    `due`: it is worth a try, or the load is done. `caught`, asked of the frozen broker: it is where
    it should be; by default it has an unfinished block. `end` waits until a load is done.
    """
    for _ in range(50):
        load = begin()
        wait_until(lambda load=load: due(load), every=0)
        broker.freeze()
        if is_reading(broker) and (caught is None or caught()):
            return load
        broker.thaw()  # it was too fast: again
        end(load)
        client.unload("m", wait=True)
    raise AssertionError("no load was ever seen under way")


def is_reading(broker: BrokerProcess) -> bool:
    """It has an unfinished block."""
    return any(path.suffix == ".tmp" for path in broker.blocks())
