"""A read that hangs is its asker's trouble: not another load's, and not that of a stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelbroker import CancelledError, ModelBrokerError
from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import hanging_file
from support.users import ALICE, BOB, GROUP, Caller, as_user, needs_root

MakeBroker = Callable[..., BrokerProcess]


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


@needs_root
def test_whose_reads_all_hang_holds_up_no_other_user(content: bytes) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mb-open-"))
    folder.chmod(0o755)
    broker = BrokerProcess("--group", str(GROUP), "--ram-budget", "2GiB")
    broker.folder.chmod(0o755)
    hers, his = (files.write_random(folder / name, 0.1, seed) for seed, name in enumerate("ab"))
    hers.chmod(0o644)
    his.chmod(0o644)

    def load(*paths: Path) -> list[str]:
        with Caller(broker) as caller:
            for path in paths:
                caller.send_load(path, f"{path.parent.name}-{path.name}")
            return [caller.code_of_answer() for _ in paths]

    try:
        broker.start()
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            hung = [
                stack.enter_context(hanging_file(folder / f"fuse{number}", content, 20))
                for number in range(THREADS)
            ]
            stuck = pool.submit(as_user, ALICE, lambda: load(*(one.path for one in hung)))
            for one in hung:
                assert one.hanging.wait(60)
            next_one = pool.submit(as_user, ALICE, lambda: load(hers))
            assert as_user(BOB, lambda: load(his)) == [""]
            states = [model["state"] for model in broker.cli_json("ps")]
            assert sorted(states) == ["loading"] * THREADS + ["resident"]  # hers has not begun
            for one in hung:
                one.go_on()
            assert stuck.result(60) == [""] * THREADS
            assert next_one.result(60) == [""]
    finally:
        broker.stop()
        shutil.rmtree(folder)
