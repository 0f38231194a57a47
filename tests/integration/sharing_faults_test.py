"""Sharing is never worse than without it: files that change, brokers that die, memory that is full.

Beside the original in one run, where the original has something to say.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modelbroker
from modelbroker._sharing import attacher, opened
from support import files
from support.broker import BrokerProcess, wait_until
from support.loads_under_way import is_reading
from support.sharing import bits, is_shared, record_of, safe_open


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A forked child of more than one of torch's would wait for the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inside(broker: BrokerProcess, **options: Any) -> AbstractContextManager[None]:
    return modelbroker.sharing(endpoint=broker.endpoint, min_size=0, **options)


def _replace(path: Path) -> None:
    files.write_random(path.with_suffix(".new"), 1, seed=9)
    path.with_suffix(".new").rename(path)


def _rewrite(path: Path) -> None:
    path.write_bytes(files.write_random(path.with_suffix(".new"), 1, seed=9).read_bytes())


def _cut(path: Path) -> None:
    os.truncate(path, 300_000)  # the first tensor is whole


def _forbid(path: Path) -> None:
    path.chmod(0)


def _move_away(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": _replace,
    "rewritten in place": _rewrite,
    "cut": _cut,
    "deleted": Path.unlink,
    "renamed": _move_away,
    "forbidden": _forbid,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_before_it_is_read_is_as_stock(
    shared: BrokerProcess, tmp_path: Path, change: str
) -> None:
    """What was opened is what is read; a header and the bytes of another never meet."""
    path, beside = tmp_path / "m.safetensors", tmp_path / "stock.safetensors"
    for each in (path, beside):
        files.write_random(each, 1)
    stock = safe_open(beside, framework="pt")
    with inside(shared):
        ours = safe_open(path, framework="pt")
    for each in (path, beside):
        CHANGES[change](each)
    tensor = ours.get_tensor("t0")
    assert bits(tensor) == bits(stock.get_tensor("t0"))
    assert not is_shared(tensor)
    assert "between opening and first reading" in record_of(path).why


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_afterwards_is_not_noticed(
    shared: BrokerProcess, tmp_path: Path, change: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    stock = {name: bits(tensor) for name, tensor in load_file(path).items()}
    with inside(shared):
        ours = safe_open(path, framework="pt")
    first = ours.get_tensor("t0")
    CHANGES[change](path)
    for name, expected in stock.items():
        tensor = ours.get_tensor(name)
        assert bits(tensor) == expected
        assert is_shared(tensor)
    assert bits(first) == stock["t0"]


def test_the_end_of_a_file_that_was_cut_is_a_bus_error_as_stock(
    shared: BrokerProcess, tmp_path: Path
) -> None:
    def status_of_a_child(context: AbstractContextManager[None]) -> int:
        path = files.write_random(tmp_path / "m.safetensors", 1)
        with context:
            opening = safe_open(path, framework="pt")
        _cut(path)
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            opening.get_tensor("t3").sum()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert status_of_a_child(nullcontext()) == -signal.SIGBUS
    assert status_of_a_child(inside(shared)) == -signal.SIGBUS


def test_without_a_broker_the_wait_is_paid_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    connect = modelbroker.connect

    def noted(endpoint: str | None, timeout: float) -> Any:
        waits.append(timeout)
        return connect(endpoint, timeout=0)

    monkeypatch.setattr(attacher, "connect", noted)
    opened._told.clear()
    endpoint = f"ipc://{tmp_path}/broker.sock"
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with modelbroker.sharing(endpoint=endpoint, min_size=0):
        for _ in range(3):
            assert not is_shared(load_file(path)["t0"])
    assert waits == [attacher._WAIT, attacher._SHORT_WAIT, attacher._SHORT_WAIT]
    told = [record.message for record in caplog.records if record.name == "modelbroker"]
    assert len(told) == 1
    assert "start one with 'modelbroker serve &'" in told[0]


def test_a_broker_that_hangs_is_left_alone(
    broker: BrokerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("modelbroker._session._EXCHANGE_SECONDS", 0.5)
    monkeypatch.setattr(attacher, "_WAIT", 0.5)
    opened._told.clear()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    stock = bits(load_file(path)["t0"])
    with inside(broker):
        assert is_shared(load_file(path)["t0"])
        with broker.frozen():
            assert bits(load_file(path)["t0"]) == stock  # asks, and gives up
            monkeypatch.setattr(modelbroker.Broker, "attach_open_file", None)
            assert bits(load_file(path)["t0"]) == stock  # does not ask
    assert "is stopped" in record_of(path).why
    told = [record.message for record in caplog.records if record.name == "modelbroker"]
    assert len([line for line in told if "weights are loaded as without" in line]) == 1


@pytest.mark.parametrize("when", ["before it is read", "while it computes"])
def test_a_broker_that_is_killed_is_not_missed(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, when: str
) -> None:
    broker = make_broker().start()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    stock = bits(load_file(path)["t0"])
    with inside(broker):
        early = load_file(path)["t0"]
        late = safe_open(path, framework="pt")
    broker.kill()
    if when == "while it computes":
        for _ in range(100):
            assert bits(early) == stock
        blocks = broker.blocks()
        broker.start()
        assert broker.blocks() == blocks  # adopted
        wait_until(lambda: broker.books()["leases"] == 1)  # stated again
    tensor = late.get_tensor("t0")
    assert bits(tensor) == stock
    assert is_shared(tensor) == (when == "while it computes")


def test_a_broker_that_is_killed_in_a_load(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacher, "_WAIT", 0.2)
    broker = make_broker().start()
    stops: list[bool] = []

    def kill_in_a_load() -> None:
        while not is_reading(broker):
            if stops:
                return
        broker.kill()

    for attempt in range(20):
        path = files.write_random(tmp_path / f"m{attempt}.safetensors", 30, seed=attempt)
        killer = threading.Thread(target=kill_in_a_load)
        killer.start()
        with inside(broker):
            tensor = load_file(path)["t3"]
        stops.append(True)
        killer.join()
        assert bits(tensor) == bits(load_file(path)["t3"])
        if not broker.alive():
            break
        stops.clear()
    assert not broker.alive()
    assert not is_shared(tensor)


def test_memory_that_is_full_is_stock(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "8MiB").start()
    small = files.write_random(tmp_path / "small.safetensors", 1)
    large = files.write_random(tmp_path / "large.safetensors", 30)
    with inside(broker):
        assert not is_shared(load_file(large)["t0"])
        assert is_shared(load_file(small)["t0"])
    assert "budget" in record_of(large).why


def test_3000_files_are_open_at_once(shared: BrokerProcess, tmp_path: Path) -> None:
    """None of them keeps a descriptor, read or not."""
    paths = [files.write_random(tmp_path / f"{i}.safetensors", 0.01, seed=i) for i in range(30)]
    before = len(os.listdir("/proc/self/fd"))
    with inside(shared):
        openings = [safe_open(path, framework="pt") for path in 100 * paths]
    tensors = [opening.get_tensor("t0") for opening in openings[:600]]
    assert len(os.listdir("/proc/self/fd")) < before + 32
    assert all(map(is_shared, tensors))
    assert bits(tensors[599]) == bits(tensors[29]) == bits(load_file(paths[29])["t0"])
    assert is_shared(openings[2999].get_tensor("t2"))


def test_training_in_place_is_its_process_own(shared: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with inside(shared):
        trained, other = load_file(path), load_file(path)
    stock = bits(other["t0"])
    trained["t0"].mul_(2)
    with modelbroker.connect(shared.endpoint) as broker:
        assert bits(broker.attach(path)["t0"].torch()) == stock
    assert bits(other["t0"]) == stock
    record = record_of(path)
    assert 250_000 <= record.written <= 300_000
    assert record.in_use == 2 * 1_000_000


def test_what_nobody_has_any_more_is_given_back(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with inside(broker):
        opening = safe_open(path, framework="pt")
    tensors = [opening.get_tensor("t0"), opening.get_slice("t1")[5:9]]
    del opening
    assert broker.books()["leases"] == 1
    assert record_of(path).in_use == 500_000  # a slice of a tensor holds all of it
    tensors.clear()
    wait_until(lambda: broker.books()["leases"] == 0)
    assert record_of(path).in_use == 0


def test_a_forked_child_has_what_was_loaded_and_loads_for_itself(
    shared: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    beside = files.write_random(tmp_path / "n.safetensors", 1, seed=2)
    with inside(shared):
        ours, late = load_file(path)["t0"], safe_open(beside, framework="pt")
    stock = bits(ours)
    child = os.fork()
    if child == 0:
        whole = bits(ours) == stock
        ours.zero_()
        os._exit(0 if whole and is_shared(late.get_tensor("t0")) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bits(ours) == stock
    assert is_shared(late.get_tensor("t1"))


def test_ctrl_c_in_a_load_leaves_the_next_reading_whole(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker().start()
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with inside(broker):
        warm_up = load_file(files.write_random(tmp_path / "w.safetensors", 0.1))
        opening = safe_open(path, framework="pt")
    broker.freeze()
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        opening.get_tensor("t0")
    timer.join()
    broker.thaw()
    assert is_shared(opening.get_tensor("t0"))
    assert is_shared(warm_up["t0"])
    assert bits(opening.get_tensor("t0")) == bits(load_file(path)["t0"])
