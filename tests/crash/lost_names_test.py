"""Names whose block is gone, over a broker's death: evicted, damaged, or removed by somebody.

Who attaches one gets its file loaded again; what was damaged comes back without being asked for.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from modelbroker import ModelBrokerError, NotFoundError
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip, flip_in_payload
from support.faults import FaultyBroker
from support.hanging_files import hanging_file
from support.workers import assert_books_are_the_kernels, assert_right_bytes, crcs

MakeBroker = Callable[..., BrokerProcess]


def names_of(client: modelbroker.Broker) -> list[tuple[str, list[str], bool]]:
    return [(m.name, m.aliases, m.pinned) for m in client.list() if m.state == "resident"]


def test_the_next_broker_loads_a_damaged_model_again(broker: BrokerProcess, tmp_path: Path) -> None:
    content = files.write_random(tmp_path / "content", 30).read_bytes()
    with hanging_file(tmp_path / "fuse", content, reads=-1) as slow:
        with broker.connect() as client:
            client.load(slow.path, "m", pin=True, keep_alive=3000)
            client.load(slow.path, "alias")
            flip_in_payload(broker.blocks()[0])
            slow.hang_after(3)
            assert client.scrub("m").damaged == 1
            assert slow.hanging.wait(60)
            broker.kill()
        slow.go_on()
        broker.start()
        with broker.connect() as client:
            wait_until(lambda: names_of(client) == [("m", ["alias"], True)])
            assert [model.keep_alive for model in client.list()] == [3000]
            assert_right_bytes(client, "alias", crcs(tmp_path / "content"))
        broker.kill()
        broker.start()
        with broker.connect() as client:
            assert names_of(client) == [("m", ["alias"], True)]
    assert_books_are_the_kernels(broker)


def test_an_unload_between_two_brokers_attempts_is_final(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "40MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 25)
    with broker.connect() as client:
        client.load(path, "m", pin=True)
        client.load(path, "other")
        weights = client.attach("m")  # leaves no room
        flip_in_payload(broker.blocks()[0])
        assert client.scrub("m").damaged == 1
        wait_until(lambda: "cannot be loaded again" in broker.output())
        client.unload("m")
        broker.kill()
        weights.release()
    broker.start()
    with broker.connect() as client:
        wait_until(lambda: names_of(client) == [("other", [], True)])
        with pytest.raises(NotFoundError):
            client.attach("m")


@pytest.mark.parametrize(
    "point",
    [
        "drain.before_rename",
        "drain.after_rename",
        "drain.before_unlink",
        "drain.after_unlink",
        "state_db.before_commit",
        "state_db.after_commit",
        "load.chunk_read",
        "publish.before_rename",
        "publish.after_rename",
        "load.in_books",
        "load.written",
    ],
)
def test_names_outlive_a_death_while_a_damaged_model_is_withdrawn_and_loaded_again(
    point: str, tmp_path: Path
) -> None:
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        assert point in broker.faults.points()
        with broker.connect() as client:
            client.load(path, "prod", pin=True)
            client.load(path, "second")
            flip_in_payload(broker.blocks()[0])
            broker.faults.crash_at(point)
            for call in (client.scrub, client.attach):
                with contextlib.suppress(ModelBrokerError):
                    call("prod", timeout=1)
            assert broker.wait() == -signal.SIGKILL
        broker.faults.disarm()
        broker.real().start()
        with broker.connect() as client:
            if point == "drain.before_rename":  # nothing has happened: found again
                client.scrub("prod")
            for name in ("prod", "second"):
                assert_right_bytes(client, name, crcs(path))
            ((name, aliases, pinned),) = names_of(client)
            assert ({name, *aliases}, pinned) == ({"prod", "second"}, True)
            wait_until(lambda: broker.books()["draining"] == 0)
        assert_books_are_the_kernels(broker)
    finally:
        broker.stop()


@pytest.mark.parametrize("ends", ["killed", "stopped, keeping its blocks"])
def test_evicted_names_outlive_a_broker(make_broker: MakeBroker, tmp_path: Path, ends: str) -> None:
    broker = make_broker("--ram-budget", "16MiB", "--on-stop", "keep").start()
    paths = [files.write_random(tmp_path / f"m{n}.safetensors", 10, seed=n) for n in range(3)]
    with broker.connect() as client:
        for path in paths:
            client.load(path, keep_alive=3000)  # each makes the one before it go
        client.unload("m1")  # nothing of it is there
        with client.attach("m2"):
            pass
    if ends == "killed":
        broker.kill()
    else:
        broker.terminate()
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == [("m2", [], False)]
        assert_right_bytes(client, "m0", crcs(paths[0]))
        assert names_of(client) == [("m0", [], False)]
        assert [model.keep_alive for model in client.list()] == [3000]
        with pytest.raises(NotFoundError):
            client.attach("m1")
        assert_right_bytes(client, "m2", crcs(paths[2]))


def test_a_stop_that_frees_its_blocks_frees_their_names(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "16MiB", "--on-stop", "free").start()
    with broker.connect() as client:
        for name in ("a", "b"):
            client.load(files.write_random(tmp_path / f"{name}.safetensors", 10))
    assert broker.terminate() == 0
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == []
        for name in ("a", "b"):
            with pytest.raises(NotFoundError):
                client.attach(name)


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_a_block_that_was_lost_while_no_broker_ran_is_loaded_again_by_its_names(
    broker: BrokerProcess, tmp_path: Path, harm: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with broker.connect() as client:
        client.load(path, "m", pin=True)
        client.load(path, "alias")
        (block,) = broker.blocks()
    broker.kill()
    if harm == "removed":
        block.unlink()
    else:
        flip(block, 16)
    broker.start()
    with broker.connect() as client:
        assert names_of(client) == []
        assert_right_bytes(client, "m", crcs(path))
        assert_right_bytes(client, "alias", crcs(path))
        assert names_of(client) == [("m", ["alias"], True)]
    assert_books_are_the_kernels(broker)


@pytest.mark.parametrize("wait", [True, False])
def test_an_acknowledged_unload_is_final(wait: bool, tmp_path: Path) -> None:
    """Its name would lead to the file again, had it been acknowledged before it was written."""
    broker = FaultyBroker()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    try:
        broker.start()
        with broker.connect() as client:
            client.load(path, "m")
            broker.faults.crash_at("state_db.before_commit")
            with pytest.raises(ModelBrokerError):
                client.unload("m", wait=wait, timeout=2)
            assert broker.wait() == -signal.SIGKILL
            broker.faults.disarm()
            broker.real().start()
            client.unload("m")
            with pytest.raises(NotFoundError):
                client.attach("m")
    finally:
        broker.stop()
