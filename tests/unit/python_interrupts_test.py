"""Ctrl-C at every moment of a call: afterwards the connection is as good as new."""

from __future__ import annotations

import gc
import os
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until


def interrupted_at(moment: int, call: Callable[[], object]) -> bool:
    """Calls, and raises KeyboardInterrupt at that moment of it; False: it has fewer moments.

    Where a function of ours begins, or a C function has returned to it: there Python handles
    signals.
    """
    passed = 0

    def interrupt(frame: types.FrameType, event: str, _argument: object) -> None:
        nonlocal passed
        if event not in ("call", "c_return") or "modelbroker" not in frame.f_code.co_filename:
            return
        passed += 1
        if passed == moment:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return passed >= moment


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def keepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "modelbroker-keeper"}


# An interruption in a finalizer is told of so; what it must not cost is asserted.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["attach", "attach a path", "load", "status"])
def test_at_every_moment(broker: BrokerProcess, tmp_path: Path, what: str) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    others = keepers()  # of connections that tests of sharing left in this process
    with broker.connect() as client, broker.connect() as observer:
        calls: dict[str, Callable[[], object]] = {
            "attach": lambda: client.attach("m"),
            "attach a path": lambda: client.attach(path),
            "load": lambda: client.load(path, "m"),
            "status": client.status,
        }
        client.load(path, "m")
        kept = client.attach("m")  # the keeper runs
        call = calls[what]
        call()
        wait_until(lambda: observer.status().tiers["ram"].leases == 1)
        before, moment = descriptors(), 1
        while interrupted_at(moment, call):
            with client.attach("m", timeout=10):
                pass
            client.load(path, "m", timeout=10)
            gc.collect()
            wait_until(lambda: observer.status().tiers["ram"].leases == 1)
            moment += 1
        assert moment > 20
        gc.collect()
        # Sockets of the pool; and a file that was opened in such a moment stays open.
        assert descriptors() <= before + 14
        kept.release()
    wait_until(lambda: keepers() <= others)
