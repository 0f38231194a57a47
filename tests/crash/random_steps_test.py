"""Random steps on a broker with a clock of ours, each compared with a small model of the books.

Load, attach, release, unload, pin, expiry, eviction, deaths of workers and restarts of the broker;
the model is tests/support/reference_model.py.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.faults import FaultyBroker
from support.features import KERNEL_TELLS_HOLDERS
from support.raw_wire import Socket, call, code_of, dealer, frame, open_session, received
from support.reference_model import FOR_EVER, Books

WORKERS = 3
SMALL, LARGE = 8, 2  # files, and models of one
SETS = ((0, 1), (1, 2, 3), (0, 8))  # models of several of these files
XXH3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
XXH3.restype = ctypes.c_uint64
PATIENCE = 60  # real seconds for what the broker does a moment later


def model_id(blocks: list[str]) -> str:
    """As model_id() of the broker makes it: it decides among models that were used at one time."""
    if len(blocks) == 1:
        return blocks[0]
    text = "".join(block + "\n" for block in blocks).encode()
    return f"set.{XXH3(text, len(text)):016x}"


class Walk:
    """A broker, its reference, and the workers that speak to it.

    `sources`: of each model; first those of one file, then the indexes of SETS.
    """

    def __init__(self, broker: FaultyBroker, sources: list[Path], peer: Socket, seed: int) -> None:
        self.broker, self.sources, self.peer = broker, sources, peer
        self.pick = random.Random(seed)
        self.now, self.requests = 1e6, 0
        broker.faults.set_clock(self.now)
        broker.start()
        self.workers: list[tuple[socket.socket, str]] = [self.new_worker() for _ in range(WORKERS)]
        sizes = [self.size_of(file) for file in range(SMALL + LARGE)]
        parts = [*((file,) for file in range(SMALL + LARGE)), *SETS]
        self.books = Books(5 * sizes[0] + sizes[-1], parts, sizes)
        self.leases: dict[tuple[int, int], int] = {}  # worker, number -> model
        broker.kill()
        broker.flags = (*broker.flags, "--ram-budget", str(self.books.limit))
        self.restart_broker()
        self.log: list[str] = []

    def close(self) -> None:
        for connection, _ in self.workers:
            connection.close()

    # ---- the broker

    def new_worker(self) -> tuple[socket.socket, str]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(self.broker.run / "fds.sock"))
            return connection, open_session(connection)
        except OSError:
            connection.close()
            raise

    def call(self, type_: str, data: dict[str, Any], worker: int = 0) -> dict[str, Any]:
        return call(self.peer, type_, data, self.next_id(), session=self.workers[worker][1])

    def next_id(self) -> str:
        """A request that is sent again under its old number gets its old answer."""
        self.requests += 1
        return f"r{self.requests}"

    def size_of(self, file: int) -> int:
        size = int(
            self.call("model.load_model", {"path": str(self.sources[file])})["data"]["bytes"]
        )
        self.call("model.unload_model", {"model": f"m{file}", "wait": True})
        return size

    def restart_broker(self) -> None:
        self.close()
        self.broker.launch()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.workers = [self.new_worker() for _ in range(WORKERS)]
                return
            except OSError:
                assert time.monotonic() < end, self.broker.output()
                time.sleep(0.002)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.broker.faults.set_clock(self.now)

    # ---- steps: what is done, and what must come of it

    def load(self) -> None:
        model = self.pick.randrange(len(self.sources))
        data: dict[str, Any] = {"path": str(self.sources[model])}
        if self.pick.random() < 0.3:
            data["keep_alive"] = self.pick.choice([FOR_EVER, 5.0, 20.0])
        if self.pick.random() < 0.1:
            data["pin"] = True
        reply = self.call("model.load_model", data)
        outcome = self.books.load(model, self.now)
        self.compare_outcome(reply, outcome)
        if outcome is None:
            return
        self.take_names(model, reply["data"]["blocks"])
        entry = self.books.entries[model]
        entry.keep_alive = data.get("keep_alive", entry.keep_alive)
        entry.pinned = entry.pinned or "pin" in data

    def take_names(self, model: int, told: list[dict[str, Any]]) -> None:
        for block, named in zip(self.books.blocks_of(model), told, strict=True):
            assert block.name in ("", named["block"])
            block.name = named["block"]
        self.books.entries[model].id = model_id([block["block"] for block in told])

    def compare_outcome(self, reply: dict[str, Any], outcome: str | None) -> None:
        if outcome is None:
            assert not reply["success"], reply
            assert code_of(reply) == "resource_exhausted", reply
        else:
            assert reply["success"], reply
            assert reply["data"].get("outcome", outcome) == outcome

    def attach_by_path(self) -> None:
        model = self.pick.randrange(len(self.sources))
        self.attach(model, str(self.sources[model]))

    def attach_by_name(self) -> None:
        model = self.pick.randrange(len(self.sources))
        kept = self.books.evicted.get(model)
        if kept is None and model not in self.books.entries:
            reply = self.call("model.attach", {"model": f"m{model}", "load": True})
            assert code_of(reply) == "not_found", reply
            return
        if self.attach(model, f"m{model}") and kept is not None:
            self.books.entries[model].keep_alive = kept.keep_alive

    def attach(self, model: int, asked: str) -> bool:
        worker = self.pick.randrange(WORKERS)
        reply = self.call("model.attach", {"model": asked, "load": True}, worker)
        outcome = self.books.load(model, self.now)
        self.compare_outcome(reply, outcome)
        if outcome is None:
            return False
        grants = reply["data"]["blocks"]
        self.take_names(model, grants)
        lease = (worker, int(reply["data"]["lease"]))
        self.books.lease(model, lease)
        self.leases[lease] = model
        if self.pick.random() < 0.1:
            for file, grant in zip(self.books.parts[model], grants, strict=True):
                self.compare_bytes(file, grant)
        return True

    def compare_bytes(self, file: int, grant: dict[str, Any]) -> None:
        raw = self.sources[file].read_bytes()
        with open(grant["path"], "rb") as block:
            block.seek(grant["payload_offset"])
            assert block.read(grant["payload_size"]) == raw[-int(grant["payload_size"]) :]

    def release(self) -> None:
        if not self.leases:
            return
        lease = self.pick.choice(sorted(self.leases))
        assert self.call("model.detach", {"lease": lease[1]}, lease[0])["data"]["released"]
        del self.leases[lease]
        self.books.release(lease, self.now)

    def worker_dies(self) -> None:
        worker = self.pick.randrange(WORKERS)
        dead, self.workers[worker] = self.workers[worker][0], self.new_worker()
        dead.close()
        for lease in sorted(lease for lease in self.leases if lease[0] == worker):
            del self.leases[lease]
            self.books.release(lease, self.now)

    def unload(self) -> None:
        model = self.pick.randrange(len(self.sources))
        self.peer.send(
            frame(
                "model.unload_model",
                {"model": f"m{model}"},
                self.next_id(),
                session=self.workers[0][1],
            )
        )
        if self.somebody_has_what_goes_with(model):
            self.call_until_answered()
        reply = received(self.peer.recv())
        if self.books.unload(model):
            assert reply["success"], reply
        else:
            assert code_of(reply) == "not_found", reply

    def somebody_has_what_goes_with(self, model: int) -> bool:
        if model not in self.books.entries:
            return False
        alone = [part for part in self.books.parts[model] if self.books.owners(part) == [model]]
        return any(self.books.blocks[part].leases for part in alone)

    def call_until_answered(self) -> None:
        """An unload of what somebody has is answered a moment later: by our clock."""
        while self.peer.poll(2) == 0:
            self.advance(0.25)
            self.books.expire(self.now)
            self.wake()

    def wake(self) -> None:
        """The broker looks at its clock at each turn."""
        connection = self.new_worker()[0]
        connection.close()

    def pin(self) -> None:
        model, pinned = self.pick.randrange(len(self.sources)), self.pick.random() < 0.3
        reply = self.call("model.pin" if pinned else "model.unpin", {"model": f"m{model}"})
        kept = self.books.evicted.get(model) or self.books.entries.get(model)
        if kept is None:
            assert code_of(reply) == "not_found", reply
        else:
            assert reply["success"], reply
            kept.pinned = pinned

    def wait(self) -> None:
        self.advance(self.pick.choice([1.0, 3.0, 10.0]))

    def broker_dies(self) -> None:
        self.broker.kill()
        held = sorted(self.leases.items())
        blocks = {
            lease: [block.name for block in self.books.blocks.values() if lease in block.leases]
            for lease in self.leases
        }
        self.books.restart(self.now)
        if KERNEL_TELLS_HOLDERS:
            self.books.free_what_nobody_has()
        self.leases.clear()
        self.restart_broker()
        for (worker, number), model in held:
            if self.pick.random() < 0.5:
                continue
            names = blocks[worker, number]
            stated = {"lease": number, "model": f"m{model}", "blocks": names}
            reply = self.call("lease.restate", {"leases": [stated]}, worker)["data"]
            here = [block for block in self.books.blocks.values() if block.name in names]
            if len(here) < len(names):
                assert reply["lost"] == [number], reply
                continue
            assert reply["restated"] == [number], reply
            for block in here:
                block.leases.add((worker, number))
            self.leases[worker, number] = model
        # The time for leases to be stated again; else grace and the next look at what drains.
        self.advance(0.5 if KERNEL_TELLS_HOLDERS else 4.0)
        self.books.free_what_nobody_has()
        self.books.expire(self.now)

    # ---- comparing

    def compare(self) -> None:
        wanted = self.books.totals()
        end = time.monotonic() + PATIENCE
        while True:
            tier = self.call("cache.status", {})["data"]["tiers"]["ram"]
            got = {word: tier[word] for word in wanted}
            if got == wanted and self.files_in_ram() == wanted["made"] + wanted["draining"]:
                return
            if time.monotonic() > end:
                models = self.call("model.list", {})["data"]
                raise AssertionError(
                    f"the broker's books: {got}\nthe model's: {wanted}\nfiles: "
                    f"{self.files_in_ram()}\nlast steps: {self.log[-12:]}\n{models}\n"
                    f"{self.books.entries}\n{self.books.blocks}"
                )

    def files_in_ram(self) -> int:
        total, own = 0, f"modelbroker.{os.geteuid()}.{self.broker.instance}."
        with os.scandir(self.broker.ram) as entries:
            for entry in entries:
                if entry.name.startswith(own) and not entry.name.endswith(".lock"):
                    try:
                        total += entry.stat().st_blocks * 512
                    except FileNotFoundError:
                        continue
        return total

    def compare_models(self) -> None:
        listed = self.call("model.list", {})["data"]
        resident = {
            int(m["name"][1:]): (
                [block["block"] for block in m["blocks"]],
                m["pinned"],
                len(m["leases"]),
                m["keep_alive"],
            )
            for m in listed["models"]
        }
        assert resident == {
            model: (
                [block.name for block in self.books.blocks_of(model)],
                entry.pinned,
                len(self.books.leases_on(model)),
                entry.keep_alive,
            )
            for model, entry in self.books.entries.items()
        }

    def step(self) -> None:
        self.advance(0.001)
        self.books.expire(self.now)
        # Expiry before the step: the broker looks at its clock before it looks at messages.
        what, _ = zip(*STEPS, strict=True)
        name = self.pick.choices(what, [weight for _, weight in STEPS])[0]
        self.log.append(name)
        getattr(self, name)()
        self.books.expire(self.now)
        self.compare()


STEPS = [
    ("load", 20),
    ("attach_by_path", 15),
    ("attach_by_name", 15),
    ("release", 28),
    ("unload", 6),
    ("pin", 5),
    ("wait", 5),
    ("worker_dies", 2),
    ("broker_dies", 0.5),
]


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    small = [
        files.write_random(tmp_path / f"m{i}.safetensors", 0.05, seed=i, suffix=f".{i}")
        for i in range(SMALL)
    ]
    large = [
        files.write_random(
            tmp_path / f"m{SMALL + i}.safetensors", 0.11, seed=100 + i, suffix=f".{SMALL + i}"
        )
        for i in range(LARGE)
    ]
    indexes = [
        files.write_index(
            tmp_path / f"m{SMALL + LARGE + i}.safetensors.index.json",
            {f"t{number}.{file}": f"m{file}.safetensors" for number in range(4) for file in parts},
        )
        for i, parts in enumerate(SETS)
    ]
    return small + large + indexes


@pytest.fixture
def faulty() -> Iterator[FaultyBroker]:
    broker = FaultyBroker("--grace", "1s", "--scrub-rate", "0")
    yield broker
    broker.stop()


def walk(broker: FaultyBroker, sources: list[Path], seed: int, steps: int) -> None:
    with dealer(broker) as peer:
        town = Walk(broker, sources, peer, seed)
        try:
            for count in range(steps):
                town.step()
                if count % 50 == 0:
                    town.compare_models()
        finally:
            town.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_steps(faulty: FaultyBroker, sources: list[Path], seed: int) -> None:
    walk(faulty, sources, seed, 3000)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_a_hundred_thousand_random_steps(
    faulty: FaultyBroker, sources: list[Path], seed: int
) -> None:
    walk(faulty, sources, seed, 25_000)
