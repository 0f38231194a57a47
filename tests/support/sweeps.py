"""The k-th system call of a broker fails, for every k: what may come of it, and what must hold."""

from __future__ import annotations

import errno
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import modelbroker
from modelbroker._deadline import Deadline
from support import files
from support.broker import wait_until
from support.faults import FaultyBroker
from support.workers import crcs

# Every call that may be made to fail, as the broker's test build names it.
CALLS = tuple(
    re.findall(r'failing\("(\w+)"\)', Path(__file__).with_name("faulty_os.h").read_text())
)
_NO_SPACE = ("open", "mkdir", "ftruncate", "fallocate", "advise", "rename_noreplace")
_NO_DESCRIPTOR = tuple(
    re.findall(
        r"\w+",
        """open list_directory read_text listen_seqpacket connect_seqpacket accept peer_pidfd
        pidfd_open receive epoll_create event_fd signal_fd inotify_create""",
    )
)
_NO_DEVICE = tuple(
    re.findall(
        r"\w+",
        """open fstat lstat statfs ftruncate fallocate fchmod mkdir unlink rename_noreplace pread
        list_directory read_text""",
    )
)

# With what each call may fail. A call that the kernel would repeat after a signal is not exempt.
FITTING: dict[int, tuple[str, ...]] = {
    errno.ENOMEM: CALLS,
    errno.EINTR: CALLS,
    errno.ENOSPC: _NO_SPACE,
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.EIO: _NO_DEVICE,
}
FIRST = errno.ENOMEM
# A client's answer, when a fault is not hidden from it.
CODES = {
    errno.ENOMEM: {"resource_exhausted"},
    errno.EINTR: {"unavailable"},
    errno.ENOSPC: {"resource_exhausted"},
    errno.EMFILE: {"resource_exhausted"},
    errno.EIO: {"data_loss"},
}

MODEL_MB = 5.0  # an ordinary block of 8 MiB: four steps of 2 MiB
Crcs = dict[str, int]


def crcs_of(weights: modelbroker.Weights) -> Crcs:
    return {name: zlib.crc32(weights.raw(name).data) for name in weights}


@dataclass
class World:
    """A broker with one model that is always there, and others that come and go."""

    broker: FaultyBroker
    client: modelbroker.Broker
    paths: dict[str, Path]
    crcs: dict[str, list[Crcs]]  # whole versions; the last one is what the file holds now
    versions_of_m: list[bytes] = field(default_factory=list)
    held: modelbroker.Weights | None = None
    descriptors: int = 0

    def release(self) -> None:
        if self.held is not None:
            self.held.release()
            self.held = None

    def names(self) -> set[str]:
        return {model.name for model in self.client.list()}

    def have_only(self, *names: str) -> None:
        """Of the two others, these are resident."""
        self.release()
        for name in self.names() - {"kept", *names}:
            self.client.unload(name, wait=True, timeout=60)
        for name in names:
            self.client.load(self.paths[name], name)

    def maps_no_block(self) -> bool:
        maps = Path(f"/proc/{self.broker.pid}/maps").read_text()
        return f".{self.broker.instance}." not in maps

    def assert_books_are_exact(self) -> None:
        """Between two equal looks at the files: the kernel may be freeing at this moment."""
        end = time.monotonic() + 30
        while True:
            before = self.broker.bytes_in_ram()
            ram = self.client.status().tiers["ram"]
            if before == self.broker.bytes_in_ram():
                assert ram.made + ram.draining == before
                return
            assert time.monotonic() < end, "the files never rest"

    def is_settled(self) -> bool:
        """Nothing half made, withdrawn, nameless or reserved is left."""
        blocks = self.broker.blocks()
        whole = not {path.suffix for path in blocks} & {".tmp", ".drain"}
        reserved = self.client.status().tiers["ram"].reserved
        return whole and reserved == 0 and len(blocks) == len(self.client.list())

    def assert_sound(self) -> None:
        assert self.broker.alive(), self.broker.output()
        self.assert_books_are_exact()
        wait_until(self.is_settled)
        self.assert_books_are_exact()
        models = {model.name: model for model in self.client.list()}
        assert models["kept"].pinned
        with self.broker.connect() as honest:
            assert honest.load(self.paths["kept"], "kept").outcome == "resident"
            for name in models:
                with honest.attach(name) as weights:
                    assert crcs_of(weights) in self.crcs[name]

    def assert_nothing_is_left(self) -> None:
        """At the end of a sweep: no descriptor, no mapping, no file, no byte."""
        self.have_only()
        wait_until(lambda: self.broker.descriptors() <= self.descriptors)
        wait_until(self.maps_no_block)
        self.client.unload("kept", wait=True, timeout=60)
        wait_until(self.broker.is_empty)


@contextmanager
def new_world(folder: Path, budget: str) -> Iterator[World]:
    broker = FaultyBroker("--ram-budget", budget, "--scrub-rate", "0")
    try:
        broker.start()
        paths = {
            "kept": files.write_random(folder / "kept", 0.1, seed=1),
            "m": files.write_random(folder / "m", MODEL_MB, seed=2),
            "other": files.write_random(folder / "other", MODEL_MB, seed=3),
        }
        with broker.connect() as client:
            world = World(broker, client, paths, {n: [crcs(p)] for n, p in paths.items()})
            world.versions_of_m = [paths[name].read_bytes() for name in ("m", "other")]
            client.load(paths["kept"], "kept", pin=True)
            world.have_only("m")
            world.have_only()
            wait_until(world.maps_no_block)
            world.descriptors = world.broker.descriptors() + 2  # a thread or libzmq may keep one
            yield world
    finally:
        broker.stop()


@dataclass(frozen=True)
class Operation:
    """What is tried while a call fails. `done`: whether its effect is there."""

    name: str
    prepare: Callable[[World], None]
    act: Callable[[World, float], None]
    done: Callable[[World], bool]
    budget: str = "64MiB"


def _attach(world: World, seconds: float) -> None:
    """A new peer, an attach by path and one by name, and a descriptor from the broker."""
    with modelbroker.connect(world.broker.endpoint, timeout=seconds) as client:
        for word in (world.paths["m"], "m"):
            with client.attach(word, timeout=seconds) as weights:
                assert list(weights)
                block = next(model for model in client.list() if model.name == "m").block
                os.close(client._link.open_block(block, Deadline(seconds)))


def _load(world: World, seconds: float) -> None:
    world.client.load(world.paths["m"], "m", timeout=seconds)


def _unload(world: World, seconds: float) -> None:
    world.client.unload("m", timeout=seconds)


def _prepare_revive(world: World) -> None:
    world.have_only("m")
    world.held = world.client.attach("m")
    assert world.client.unload("m").draining > 0


def _revive(world: World, seconds: float) -> None:
    try:
        _load(world, seconds)
    finally:
        world.release()


def _prepare_replace(world: World) -> None:
    """The file has other bytes than the model of its name."""
    world.have_only("m")
    world.versions_of_m.reverse()
    world.paths["m"].write_bytes(world.versions_of_m[0])
    world.crcs["m"] = [world.crcs["m"][-1], crcs(world.paths["m"])]


def _is_replaced(world: World) -> bool:
    with world.client.attach("m") as weights:
        return crcs_of(weights) == world.crcs["m"][-1]


def _has_m(world: World) -> bool:
    return "m" in world.names()


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("load", lambda w: w.have_only(), _load, _has_m),
        Operation("attach", lambda w: w.have_only("m"), _attach, _has_m),
        # Room for one of two: an ordinary block and the compact one.
        Operation("evict", lambda w: w.have_only("other"), _load, _has_m, budget="12MiB"),
        Operation("unload", lambda w: w.have_only("m"), _unload, lambda w: not _has_m(w)),
        Operation("revive", _prepare_revive, _revive, _has_m),
        Operation("replace", _prepare_replace, _load, _is_replaced),
    )
}


@dataclass
class Record:
    """What a sweep saw."""

    calls: int = 0
    refusals: int = 0
    reached: set[str] = field(default_factory=set)


def sweep(
    world: World,
    operation: Operation,
    error: int,
    *,
    for_ever: bool = False,
    step: int = 1,
) -> Record:
    """Fails every `step`-th call, until the operation succeeds without one having failed."""
    record = Record()
    # A broker that hears nobody while its calls fail for ever is asked no longer than this.
    seconds = 2.0 if for_ever else 30.0
    codes = set(CODES[error])
    if for_ever:  # nobody hears, or nothing can be evicted
        codes |= {"deadline_exceeded", "unavailable", "resource_exhausted"}
    calls = () if FITTING[error] == CALLS else FITTING[error]  # (): all
    for number in range(1, 10_000, step):
        operation.prepare(world)
        world.broker.faults.fail_at(number, error, for_ever=for_ever, only=calls)
        refusal: modelbroker.ModelBrokerError | None = None
        try:
            operation.act(world, seconds)
        except modelbroker.ModelBrokerError as refused:
            refusal = refused
        finally:
            told = world.broker.faults.disarm()
        call = f"call {number} ({told.first_failed}) {errno.errorcode[error]}"
        where = f"{operation.name}, {call}: {refusal}"
        try:
            if refusal is not None:
                assert refusal.code in codes
                assert str(refusal)
            elif not for_ever:
                assert operation.done(world)
            world.assert_sound()
        except Exception as broken:
            raise AssertionError(f"{where}\n{broken}\n{world.broker.output()[-2000:]}") from broken
        record.calls = number
        if told.failed == 0:
            assert refusal is None, where
            return record
        record.refusals += refusal is not None
        record.reached.add(told.first_failed)
    return record


# ---- the next broker's start


@dataclass
class Estate:
    """What a dead broker left: models with names, a block that drains, and half a load."""

    world: World
    models: list[tuple[str, list[str], bool, str, int]] = field(default_factory=list)
    garbage: int = 0

    @staticmethod
    def settled(world: World) -> Estate:
        client = world.client
        client.load(world.paths["kept"], "kept", pin=True)
        client.load(world.paths["kept"], "alias")
        client.load(world.paths["other"], "other")
        client.load(world.paths["m"], "m")
        world.held = client.attach("m")
        assert client.unload("m").draining > 0
        return Estate(world, Estate.identities(world))

    @staticmethod
    def identities(world: World) -> list[tuple[str, list[str], bool, str, int]]:
        return [(m.name, m.aliases, m.pinned, m.block, m.generation) for m in world.client.list()]

    def die(self) -> None:
        """The broker is killed, and half a load lies there."""
        broker = self.world.broker
        broker.kill()
        self.garbage += 1
        left = f"modelbroker.{os.geteuid()}.{broker.instance}.{'0' * 16}.g{self.garbage}.tmp"
        (broker.ram / left).write_bytes(bytes(100_000))

    def assert_whole(self, lost: bool) -> None:
        """All is there as it was. `lost`: memory that cannot be read may be gone, as a whole."""
        world, broker = self.world, self.world.broker
        wait_until(lambda: world.client.status().tiers["ram"].leases == (0 if lost else 1) or lost)
        world.assert_books_are_exact()
        wait_until(lambda: not [p for p in broker.blocks() if p.suffix == ".tmp"])
        world.assert_books_are_exact()
        now = self.identities(world)
        assert now == self.models or (lost and all(model in self.models for model in now))
        assert len([p for p in broker.blocks() if p.suffix == ".drain"]) == 1 or lost
        for name, *_ in now:
            with world.client.attach(name) as weights:
                assert crcs_of(weights) in world.crcs[name]
        assert world.held is not None
        assert crcs_of(world.held) in world.crcs["m"]


def _await_start(broker: FaultyBroker, seconds: float) -> int | None:
    """Waits until it serves (None) or has ended (its status)."""
    assert broker.process is not None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = broker.process.poll()
        if status is not None:
            return broker.wait()
        try:
            modelbroker.connect(broker.endpoint, timeout=0.2).close()
            return None
        except modelbroker.ModelBrokerError:
            time.sleep(0.01)
    return None


def sweep_starts(world: World, error: int, *, for_ever: bool = False, step: int = 1) -> Record:
    """The same for the calls of a start."""
    record = Record()
    broker = world.broker
    estate = Estate.settled(world)
    calls = () if FITTING[error] == CALLS else FITTING[error]
    for number in range(1, 10_000, step):
        estate.die()
        said_before = len(broker.output())
        broker.faults.fail_at(number, error, for_ever=for_ever, only=calls)
        broker.launch()
        status = _await_start(broker, 2 if for_ever else 30)
        told = broker.faults.disarm()
        if status is None:
            status = _await_start(broker, 30)  # it may not have heard anybody
        said = broker.output()[said_before:]
        where = f"start, call {number} ({told.first_failed}) {errno.errorcode[error]}: {status}"
        try:
            if status is not None:
                assert status > 0, "ended by a signal, or as if all were well"
                last = said.strip().splitlines()[-1]
                assert last.startswith("modelbroker: ")
                assert os.strerror(error) in last
                broker.start()
            assert broker.alive()
            lost = error == errno.EIO and told.first_failed == "pread"
            estate.assert_whole(lost)
            if lost:
                world.release()
                world.have_only()
                estate = Estate.settled(world)
        except Exception as broken:
            raise AssertionError(f"{where}\n{broken}\n{said}") from broken
        record.calls = number
        if told.failed == 0:
            assert status is None, where
            return record
        record.refusals += status is not None
        record.reached.add(told.first_failed)
    return record
