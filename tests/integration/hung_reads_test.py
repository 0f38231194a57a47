"""A read that hangs is its asker's trouble: not another load's, and not that of a stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelbroker import CancelledError, ModelBrokerError
from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import hanging_file

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
