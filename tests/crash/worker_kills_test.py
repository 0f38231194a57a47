"""Workers die in every way: what they held is free again, to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, freeze, start_python, wait_until
from support.features import KERNEL_TELLS_HOLDERS, needs
from support.loads_under_way import freeze_in_a_load
from support.workers import (
    HOLDER,
    assert_books_are_the_kernels,
    assert_right_bytes,
    crcs,
    line_of,
    tell,
    workers,
)

# Forks cheap workers and kills them: a third as soon as they have attached, a third at a moment by
# chance on the way there, a third while they attach and release in a loop. Four at a time.
NURSERY = """
import ctypes, gc, os, random, select, signal, sys
import modelbroker

PR_SET_PDEATHSIG = 1  # linux/prctl.h
count, chance = int(sys.argv[1]), random.Random(20240607)

def work(kind, ready):
    client = modelbroker.connect(timeout=30)
    weights = client.attach("m")
    if kind != 1:
        os.write(ready, b"!")
    while kind == 2:
        with client.attach("m") as more:
            more.raw("t0")[:64] = kind
    signal.pause()

def start(kind):
    mine, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # None outlives a nursery that failed: it would hold the test's pipes open for ever.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(mine)
            work(kind, ready)
        finally:
            os._exit(1)
    os.close(ready)
    return pid, mine

modelbroker.connect, modelbroker.Weights  # imported once, here, and not by every child
gc.freeze()
print("ready", flush=True)
attached = 0
for first in range(0, count, 4):
    brood = [(kind, *start(kind)) for kind in ((first + i) % 3 for i in range(4))]
    for kind, pid, mine in brood:
        patience = chance.uniform(0, 0.02) if kind == 1 else 60
        if select.select([mine], [], [], patience)[0]:
            assert os.read(mine, 1) == b"!", "a worker failed"
            attached += 1
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(mine)
print(attached, flush=True)
"""


@pytest.mark.slow
def test_a_thousand_killed_workers_leave_nothing_behind(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    broker.cli("load", path, "--name", "m")
    with workers(broker, 1, NURSERY, "4") as [nursery]:  # what the broker makes once, it has made
        assert int(line_of(nursery)) >= 2
        assert nursery.wait(60) == 0
    wait_until(lambda: broker.books()["leases"] == 0)
    before, open_before = broker.books(), broker.descriptors()
    with workers(broker, 1, NURSERY, "1000") as [nursery]:
        assert int(line_of(nursery)) >= 660
        assert nursery.wait(60) == 0
    wait_until(lambda: broker.books()["leases"] == 0)
    after = broker.books()
    assert {**after, "hits": 0} == {**before, "hits": 0}
    assert after["made"] == broker.bytes_in_ram()
    wait_until(lambda: broker.cli_json("status")["sessions"] <= 1)  # that of the command itself
    wait_until(lambda: broker.descriptors() <= open_before)
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    broker.cli("unload", "m")
    wait_until(broker.is_empty)


LONG = 1 << 30


def long_file(path: Path) -> Path:
    """A file of LONG zeros that takes its time to load, and no disk."""
    path.write_bytes(files.encode({"t": files.entry("U8", [LONG], 0, LONG)}))
    os.truncate(path, path.stat().st_size + LONG)
    return path


LOADER = """
import sys
import modelbroker

client = modelbroker.connect(timeout=30)
print("ready", flush=True)
for _ in sys.stdin:
    print(client.load(sys.argv[1], "m").outcome, flush=True)
"""


def stop_in_a_load(
    broker: BrokerProcess, client: modelbroker.Broker, loader: subprocess.Popen[str]
) -> None:
    """Has the loader load, and freezes the broker in the first half of it."""
    freeze_in_a_load(
        broker,
        client,
        begin=lambda: tell(loader, "go"),
        end=lambda _: line_of(loader),
        due=lambda _: bool(broker.blocks()),
        caught=lambda: broker.bytes_in_ram() < LONG / 2,
    )


def test_a_load_whose_only_worker_was_killed_is_given_up(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = long_file(tmp_path / "m")
    with broker.connect() as client, workers(broker, 1, LOADER, str(path)) as [loader]:
        stop_in_a_load(broker, client, loader)
        loader.kill()
        loader.wait()
        broker.thaw()
        wait_until(lambda: "nobody waits for it" in broker.output())
        wait_until(broker.is_empty)
        assert client.load(files.write_random(tmp_path / "other", 1), "m").outcome == "loaded"


def test_a_load_goes_on_for_the_worker_that_lives(broker: BrokerProcess, tmp_path: Path) -> None:
    path = long_file(tmp_path / "m")
    with broker.connect() as client, workers(broker, 1, LOADER, str(path)) as [loader]:
        with broker.connect() as second, ThreadPoolExecutor(1) as thread:
            stop_in_a_load(broker, client, loader)
            load = thread.submit(second.load, path, "m")
            broker.thaw()
            wait_until(lambda: load.done() or broker.books()["misses"] >= 2, every=0)
            loader.kill()
            loader.wait()
            assert load.result(60).outcome in ("loaded", "resident")
        assert_books_are_the_kernels(broker)


@needs("write_lease")  # else its mapping is not seen
def test_a_stopped_worker_keeps_its_lease_and_others_go_on(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--hung", "0.2", "--grace", "0.2").start()
    path = files.write_random(tmp_path / "m", 5)
    broker.cli("load", path, "--name", "m")
    with workers(broker, 2, HOLDER, "m") as [stopped, other]:
        freeze(stopped.pid)
        other.kill()
        wait_until(lambda: broker.books()["leases"] == 1)
        with broker.connect() as client:
            assert_right_bytes(client, "m", crcs(path))
            wait_until(lambda: client.status().uptime_ms > 1000)  # far beyond hung
            assert [lease.pid for lease in client.list()[0].leases] == [stopped.pid]
            assert client.unload("m").draining > 0
            # It cannot state its lease; the kernel knows of its mapping all the same.
            broker.kill()
            broker.start()
            wait_until(lambda: client.status().uptime_ms > 1000)
            assert broker.books()["leases"] == 0
            assert broker.books()["draining"] == broker.bytes_in_ram() > 0
        os.kill(stopped.pid, signal.SIGCONT)
        wait_until(lambda: broker.books()["leases"] == 1)
        stopped.kill()
        wait_until(broker.is_empty)


EXECUTES = """
import os, sys
import modelbroker

client = modelbroker.connect(timeout=30)
weights = client.attach("m")
tensors = weights.numpy()
print("ready", flush=True)
sys.stdin.readline()
os.execv("/bin/cat", ["cat"])
"""


def test_a_worker_that_becomes_another_program_has_ended_its_leases(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 5), "--name", "m")
    with workers(broker, 1, EXECUTES) as [worker]:
        assert broker.books()["leases"] == 1
        tell(worker, "go")
        wait_until(lambda: broker.books()["leases"] == 0)
        tell(worker, "still here")
        assert line_of(worker) == "still here"
        broker.cli("unload", "m")
        wait_until(broker.is_empty)
        assert worker.poll() is None


HANGS_UP = """
import sys
import modelbroker

client = modelbroker.connect(timeout=30)
tensors = client.attach("m").numpy()
client._link._keeper.stop(30)
client._link._session.close()
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_worker_that_hangs_up_without_a_detach_ends_its_lease_but_keeps_its_bytes(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 5), "--name", "m")
    with workers(broker, 1, HANGS_UP) as [worker]:
        wait_until(lambda: broker.books()["leases"] == 0)
        broker.cli("unload", "m")
        assert broker.books()["draining"] == broker.bytes_in_ram()
        assert (broker.bytes_in_ram() > 0) == KERNEL_TELLS_HOLDERS
        tell(worker, "go")
        assert worker.wait(60) == 0
        wait_until(broker.is_empty)


def test_a_zombie_is_dead(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m", 5), "--name", "m")
    with workers(broker, 1, HOLDER, "m") as [worker]:

        def is_zombie() -> bool:
            state = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state == "Z"

        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: broker.books()["leases"] == 0)
        broker.cli("unload", "m")
        wait_until(broker.is_empty)
        assert is_zombie()  # nobody has asked for its exit status yet


# The child leaves by a line on its own pipe: it has inherited stdin, and the parent will be gone.
PARENT = """
import ctypes, os, sys
import modelbroker

client = modelbroker.connect(timeout=30)
tensors = client.attach("m").numpy()
if (ctypes.CDLL(None).fork() if sys.argv[1] == "unseen" else os.fork()) == 0:
    sys.stdin.readline()
    os._exit(0 if tensors["t0"].view("u1").any() else 1)
print("ready", flush=True)
os.waitpid(-1, 0)
"""


@pytest.mark.parametrize("fork", ["by Python", "unseen"])
def test_a_parents_death_ends_its_leases_and_its_child_keeps_the_bytes(
    broker: BrokerProcess, tmp_path: Path, fork: str
) -> None:
    # A fork that Python does not see leaves the parent's connection open in the child.
    broker.cli("load", files.write_random(tmp_path / "m", 5), "--name", "m")
    with workers(broker, 1, PARENT, fork) as [parent]:
        parent.kill()
        assert parent.wait(60) == -signal.SIGKILL
        wait_until(lambda: broker.books()["leases"] == 0)
        broker.cli("unload", "m")
        draining = broker.books()["draining"]
        assert draining == broker.bytes_in_ram()
        assert (draining > 0) == KERNEL_TELLS_HOLDERS
        broker.kill()
        broker.start()
        assert broker.books()["draining"] == draining
        tell(parent, "the child reads this")
        wait_until(broker.is_empty)


def test_workers_that_start_and_die_while_a_model_comes_and_goes_leave_nothing(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m", 5)
    with broker.connect() as client:
        for _ in range(5):
            client.load(path, "m")
            holders = [start_python(HOLDER, ["m"], broker.environment) for _ in range(2)]
            try:
                assert line_of(holders[0]) == "ready"
                client.unload("m")
            finally:
                for holder in holders:  # the second may be anywhere, and may not find its model
                    holder.kill()
                    holder.communicate()
            wait_until(broker.is_empty)
