"""The broker is killed while a changed file takes over from its older generation.

Its names and its pin stay.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from modelbroker import ModelBrokerError
from support import files
from support.broker import wait_until
from support.faults import FaultyBroker
from support.workers import assert_books_are_the_kernels

POINTS = (
    "publish.after_rename",
    "load.in_books",
    "load.written",
    "state_db.before_commit",
    "state_db.after_commit",
    "drain.before_rename",
    "drain.after_rename",
    "drain.before_unlink",
    "drain.after_unlink",
)


@pytest.mark.parametrize("point", POINTS)
def test_names_and_pin_outlive_a_death_in_a_take_over(point: str, tmp_path: Path) -> None:
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "model.safetensors", 1, seed=1)
    try:
        broker.start()
        assert point in broker.faults.points()
        with broker.connect() as client:
            client.load(path, "prod", pin=True)
            client.load(path, "second")
            files.write_random(tmp_path / "new", 1, seed=2).rename(path)
            broker.faults.crash_at(point)

            def attach() -> None:
                with contextlib.suppress(ModelBrokerError):
                    client.attach(path, timeout=60).release()

            attaching = threading.Thread(target=attach)
            attaching.start()
            broker.dies_and_is_followed()
            attaching.join()
            wait_until(lambda: broker.books()["draining"] == 0)
            (model,) = client.list()
            assert ({model.name, *model.aliases}, model.pinned) == ({"prod", "second"}, True)
            client.load(path, "prod")
            for name in ("prod", "second"):
                with client.attach(name) as weights:
                    assert weights.metadata["seed"] == "2"
        assert_books_are_the_kernels(broker)
    finally:
        broker.stop()
