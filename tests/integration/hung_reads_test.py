"""A read that hangs is its asker's trouble: not another load's, and not that of a stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import modelbroker
from modelbroker import CancelledError, ModelBrokerError
from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import HangingFile, hanging_file
from support.users import ALICE, BOB, GROUP, Caller, User, as_user, needs_root

MakeBroker = Callable[..., BrokerProcess]
THREADS = 16  # kJobsOfOneUser


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return files.write_random(tmp_path / "content.safetensors", 30).read_bytes()


def test_others_load_meanwhile_and_the_hung_load_can_be_cancelled(
    broker: BrokerProcess, tmp_path: Path, content: bytes
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 5)
    with (
        hanging_file(tmp_path / "fuse", content) as hung,
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        loading = pool.submit(client.load, hung.path)
        assert hung.hanging.wait(60)
        assert other.load(source).outcome == "loaded"
        other.attach("m").release()
        assert other.cancel("hangs") == 1
        with pytest.raises(CancelledError):
            loading.result(60)
        assert [model.name for model in other.list()] == ["m"]


def test_a_stop_does_not_wait_for_it(
    make_broker: MakeBroker, tmp_path: Path, content: bytes
) -> None:
    broker = make_broker().start()
    with hanging_file(tmp_path / "fuse", content) as hung:
        client = broker.connect()
        ended: list[BaseException] = []

        def load() -> None:
            try:
                client.load(hung.path, timeout=60)
            except ModelBrokerError as error:
                ended.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        assert hung.hanging.wait(60)
        assert broker.terminate() == 0
        thread.join(90)
        assert len(ended) == 1
        client.close()
    wait_until(lambda: not broker.blocks())


def test_what_hung_and_then_failed_leaves_nothing(
    broker: BrokerProcess, tmp_path: Path, content: bytes
) -> None:
    with broker.connect() as client, ThreadPoolExecutor(1) as pool:
        with hanging_file(tmp_path / "fuse", content) as hung:
            loading = pool.submit(client.load, hung.path)
            assert hung.hanging.wait(60)
        with pytest.raises(ModelBrokerError):  # unmounted: the read fails
            loading.result(60)
    wait_until(broker.is_empty)


THREADS = 16  # kJobsOfOneUser


@dataclass
class Users:
    """A broker for the group, a folder that all may read, and files of Alice's that hang."""

    broker: BrokerProcess
    folder: Path
    hung: list[HangingFile]

    def file(self, name: str, megabytes: float, seed: int = 0) -> Path:
        path = files.write_random(self.folder / name, megabytes, seed)
        path.chmod(0o644)
        return path

    def load(self, user: User, *paths: Path) -> list[str]:
        """Their codes; it may wait for room."""

        def ask() -> list[str]:
            with Caller(self.broker) as caller:
                for path in paths:
                    caller.send_load(path, f"{path.parent.name}-{path.name}")
                return [caller.code_of_answer() for _ in paths]

        return as_user(user, ask)

    @contextmanager
    def all_reads_of_alice_hang(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Until the body is done; then they end well."""
        stuck = pool.submit(self.load, ALICE, *(one.path for one in self.hung))
        for one in self.hung:
            assert one.hanging.wait(60)
        yield
        for one in self.hung:
            one.go_on()
        assert stuck.result(60) == [""] * THREADS


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    folder = Path(tempfile.mkdtemp(prefix="mb-open-"))
    folder.chmod(0o755)
    broker = BrokerProcess("--group", str(GROUP), "--ram-budget", "100MiB")
    broker.folder.chmod(0o755)
    content = files.write_random(tmp_path / "small.safetensors", 1).read_bytes()
    try:
        broker.start()
        with ExitStack() as stack:
            hung = [
                stack.enter_context(hanging_file(folder / f"fuse{number}", content, 2))
                for number in range(THREADS)
            ]
            yield Users(broker, folder, hung)
    finally:
        broker.stop()
        shutil.rmtree(folder)


@needs_root
def test_whose_reads_all_hang_holds_up_no_other_user(users: Users) -> None:
    hers, his = (users.file(name, 0.1, seed) for seed, name in enumerate("ab"))
    with ThreadPoolExecutor(2) as pool:
        with users.all_reads_of_alice_hang(pool):
            next_one = pool.submit(users.load, ALICE, hers)
            assert users.load(BOB, his) == [""]
            states = [model["state"] for model in users.broker.cli_json("ps")]
            assert sorted(states) == ["loading"] * THREADS + ["resident"]  # hers has not begun
        assert next_one.result(60) == [""]


@needs_root
@pytest.mark.parametrize("joins", ["while it waits for room", "while it waits for a thread"])
def test_a_file_that_another_wants_too_is_read_on_the_threads_of_either(
    users: Users, joins: str
) -> None:
    shared = users.file("shared", 45)
    with users.broker.connect() as client, ThreadPoolExecutor(3) as pool:

        def ram() -> modelbroker.Tier:  # a command's pipes would be the forked children's too
            return client.status().tiers["ram"]

        client.load(users.file("pinned", 65, 1), "pinned", pin=True)  # leaves no room for it

        hers = pool.submit(users.load, ALICE, shared)
        wait_until(lambda: "loading" in [model.state for model in client.list()])
        with users.all_reads_of_alice_hang(pool):
            if joins == "while it waits for room":
                his = pool.submit(users.load, BOB, shared)
                wait_until(lambda: ram().misses == THREADS + 3)
            client.unload("pinned", wait=True)
            if joins == "while it waits for a thread":
                wait_until(lambda: ram().reserved > shared.stat().st_size)
                his = pool.submit(users.load, BOB, shared)
            assert his.result(60) == [""]
            assert hers.result(60) == [""]
