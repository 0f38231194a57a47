"""The broker is killed at every named point of shm/instruments.h.

What it acknowledged is there afterwards, nothing partial is, and nothing is left over.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import wait_until
from support.faults import FaultyBroker
from support.raw_wire import dealer, frame
from support.workers import assert_books_are_the_kernels, assert_right_bytes, crcs


@dataclass
class World:
    """A broker of which much was acknowledged; `m` is what the death is about."""

    broker: FaultyBroker
    client: modelbroker.Broker
    kept: Path
    big: Path
    m: Path
    held: modelbroker.Weights | None = None
    # Aliases and pin of each, or what else may be told of it.
    acknowledged: dict[str, list[tuple[list[str], bool]]] = field(default_factory=dict)
    m_must_be_there: bool = False
    versions_of_m: list[dict[str, int]] = field(default_factory=list)  # each a whole one
    may_be_gone: bool = False  # a clean stop had begun: blocks go one by one

    def settle(self) -> None:
        """What must be there for ever after."""
        self.client.load(self.kept, "kept")
        self.client.load(self.kept, "alias")
        self.client.load(self.big, "big", pin=True)
        self.acknowledged = {"kept": [(["alias"], False)], "big": [([], True)]}

    def hold(self, model: str) -> None:
        """Withdrawn, but mapped here: its block drains."""
        self.client.load(self.m, model)
        self.held = self.client.attach(model)
        assert self.client.unload(model).draining > 0

    def ask(self, type_: str, **data: object) -> None:
        """Sends a request of which the broker dies."""
        assert self.broker.process is not None
        with dealer(self.broker) as peer:
            peer.send(frame(type_, data))
            assert self.broker.wait() == -signal.SIGKILL, self.broker.output()

    def load_m(self) -> None:
        self.ask("model.load_model", path=str(self.m), name="m")


# ---- the ways to a point: arm, then do what passes it


def by_load(world: World, arm: Callable[[], None]) -> None:
    arm()
    world.load_m()


def by_alias(world: World, arm: Callable[[], None]) -> None:
    arm()
    world.ask("model.load_model", path=str(world.big), name="never acknowledged")
    world.acknowledged["big"].append((["never acknowledged"], True))


def by_unload(world: World, arm: Callable[[], None]) -> None:
    world.client.load(world.m, "m")
    arm()
    world.ask("model.unload_model", model="m")


def by_load_after_unload_of_held(world: World, arm: Callable[[], None]) -> None:
    world.hold("m")
    arm()
    world.load_m()


def by_new_generation(world: World, arm: Callable[[], None]) -> None:
    world.client.load(world.m, "m")
    world.m_must_be_there = True
    files.write_random(world.m, 20, seed=77)
    world.versions_of_m.append(crcs(world.m))
    arm()
    world.load_m()


def start_over(world: World, arm: Callable[[], None]) -> None:
    arm()
    world.broker.launch()
    assert world.broker.wait() == -signal.SIGKILL, world.broker.output()


def by_start_after_a_half_load(world: World, arm: Callable[[], None]) -> None:
    world.hold("held")
    world.m = files.write_random(world.m.with_name("other"), 20, seed=5)
    world.broker.faults.crash_at("load.chunk_read")
    world.load_m()
    assert any(path.suffix == ".tmp" for path in world.broker.blocks())
    start_over(world, arm)


def by_first_start(world: World, arm: Callable[[], None]) -> None:
    world.broker.kill()
    for path in world.broker.run.glob("state.db*"):
        path.unlink()
    world.acknowledged = {
        "kept": [([], False)],
        "big": [([], False)],
    }  # the blocks' own names are left
    start_over(world, arm)


def by_clean_stop(world: World, arm: Callable[[], None]) -> None:
    world.client.load(world.m, "m")
    world.may_be_gone = True
    arm()
    os.kill(world.broker.pid, signal.SIGTERM)
    assert world.broker.wait() == -signal.SIGKILL, world.broker.output()


def without_renameat2(
    way: Callable[[World, Callable[[], None]], None],
) -> Callable[[World, Callable[[], None]], None]:
    """The same on the second way of a rename, where the kernel lacks the first."""

    def linked(world: World, arm: Callable[[], None]) -> None:
        world.broker.kill()
        world.broker.flags = (*world.broker.flags, "--disable-features", "rename_noreplace")
        world.broker.start()
        way(world, arm)

    linked.__name__ = f"{way.__name__}_without_renameat2"
    return linked


WAYS: list[tuple[str, Callable[[World, Callable[[], None]], None], int]] = [
    ("load.file_made", by_load, 1),
    ("load.pages_made", by_load, 1),
    ("load.pages_made", by_load, 4),
    ("load.chunk_read", by_load, 1),
    ("load.chunk_read", by_load, 2),
    ("load.sealed", by_load, 1),
    ("load.sealed", by_new_generation, 1),
    ("publish.before_rename", by_load, 1),
    ("publish.after_rename", by_load, 1),
    ("publish.after_rename", by_new_generation, 1),
    ("rename.linked", without_renameat2(by_load), 1),
    ("rename.linked", without_renameat2(by_new_generation), 1),
    ("rename.linked", without_renameat2(by_new_generation), 2),
    ("rename.linked", without_renameat2(by_unload), 1),
    ("rename.linked", without_renameat2(by_load_after_unload_of_held), 1),
    ("load.in_books", by_load, 1),
    ("load.in_books", by_new_generation, 1),
    ("load.written", by_load, 1),
    ("state_db.tables_made", by_first_start, 1),
    ("state_db.before_commit", by_load, 1),
    ("state_db.before_commit", by_alias, 1),
    ("state_db.before_commit", by_unload, 1),
    ("state_db.before_commit", by_new_generation, 1),
    ("state_db.before_commit", by_new_generation, 2),
    ("state_db.after_commit", by_load, 1),
    ("state_db.after_commit", by_alias, 1),
    ("state_db.after_commit", by_unload, 1),
    ("state_db.after_commit", by_unload, 2),
    ("state_db.after_commit", by_new_generation, 1),
    ("drain.before_rename", by_unload, 1),
    ("drain.after_rename", by_unload, 1),
    ("drain.after_rename", by_new_generation, 1),
    ("drain.before_unlink", by_unload, 1),
    ("drain.after_unlink", by_unload, 1),
    ("revive.before_rename", by_load_after_unload_of_held, 1),
    ("revive.after_rename", by_load_after_unload_of_held, 1),
    ("adopt.locked", by_start_after_a_half_load, 1),
    ("adopt.garbage_removed", by_start_after_a_half_load, 1),
    ("adopt.block_adopted", by_start_after_a_half_load, 1),
    ("adopt.block_adopted", by_start_after_a_half_load, 3),
    ("adopt.before_sockets", by_start_after_a_half_load, 1),
    ("stop.sockets_gone", by_clean_stop, 1),
    ("stop.block_removed", by_clean_stop, 1),
    ("stop.block_removed", by_clean_stop, 2),
    ("stop.before_flush", by_clean_stop, 1),
    ("stop.flushed", by_clean_stop, 1),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    broker = FaultyBroker()
    try:
        broker.start()
        with broker.connect() as client:
            yield World(
                broker,
                client,
                files.write_random(tmp_path / "kept", 0.1, seed=1),
                files.write_random(tmp_path / "big", 6, seed=2),
                files.write_random(tmp_path / "m", 20, seed=3),
            )
    finally:
        broker.stop()


def crcs_of(weights: modelbroker.Weights) -> dict[str, int]:
    return {name: zlib.crc32(weights.raw(name).data) for name in weights}


def assert_whole(world: World) -> None:
    """All that was acknowledged, nothing partial or left over; the broker is as good as new."""
    broker, client = world.broker, world.client
    broker.real().start()
    if world.held is not None:  # its lease is stated again, unasked
        wait_until(lambda: client.status().tiers["ram"].leases == 1)
    assert_books_are_the_kernels(broker)
    models = {model.name: (model.aliases, model.pinned) for model in client.list()}
    for name, what in world.acknowledged.items():
        assert models.get(name, what[0] if world.may_be_gone else None) in what
    assert "m" in models or not world.m_must_be_there
    for name in models:
        if name == "m":
            with client.attach(name) as weights:
                assert crcs_of(weights) in world.versions_of_m
        else:
            assert_right_bytes(client, name, crcs(world.kept if name == "kept" else world.big))
    loaded = client.load(world.m, "m")
    assert_right_bytes(client, "m", crcs(world.m))
    assert client.load(world.m, "m").generation == loaded.generation
    if world.held is not None:
        assert crcs_of(world.held) == world.versions_of_m[0]
        world.held.release()
        world.held = None
    # Nothing drains any more once nobody holds it, and every name can go.
    wait_until(lambda: not [path for path in broker.blocks() if path.suffix == ".drain"])
    for model in client.list():
        for name in (*model.aliases, model.name):
            client.unload(name)
    wait_until(broker.is_empty)


@pytest.mark.parametrize(
    ("point", "way", "passing"),
    WAYS,
    ids=[f"{point}-{way.__name__}-{passing}" for point, way, passing in WAYS],
)
def test_a_kill_at_a_named_point_loses_nothing_acknowledged(
    world: World, point: str, way: Callable[[World, Callable[[], None]], None], passing: int
) -> None:
    world.versions_of_m.append(crcs(world.m))
    world.settle()
    way(world, lambda: world.broker.faults.crash_at(point, passing))
    told = world.broker.faults.disarm()
    assert told.passed == passing, "it died of something else"
    assert_whole(world)


def test_every_named_point_is_reached_by_a_test(world: World) -> None:
    assert sorted(world.broker.faults.points()) == sorted({point for point, _, _ in WAYS})
