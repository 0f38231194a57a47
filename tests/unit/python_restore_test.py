"""Writes over attached weights: which tensors were written, and the broker's bytes again."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modelbroker
from modelbroker import _pages as pages
from modelbroker import _writes as writes
from modelbroker._sharing.shared import shared
from support import files
from support.broker import BrokerProcess, run_python
from support.workers import line_of, tell, workers

PAGE = mmap.PAGESIZE
# Several on one page, one over many, one that begins and ends amid pages, and none at all.
SIZES = {"a": 100, "b": 900, "c": 3000, "empty": 0, "large": 5 * PAGE + 321, "d": 64, "e": PAGE}


def closed() -> int:
    raise PermissionError


@pytest.fixture(params=["pagemap", "no pagemap"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no pagemap":
        monkeypatch.setattr(pages, "open_pagemap", closed)
    return str(request.param)


@pytest.fixture
def model(broker: BrokerProcess, tmp_path: Path) -> Path:
    source = random.Random(7)
    tensors = {name: ("U8", [size], source.randbytes(size)) for name, size in SIZES.items()}
    path = files.write(tmp_path / "m.safetensors", tensors)
    broker.cli("load", path, "--name", "m")
    return path


@pytest.fixture
def weights(broker: BrokerProcess, model: Path) -> Iterator[modelbroker.Weights]:
    with broker.connect() as client, client.attach(model) as attached:
        yield attached


def bytes_of(weights: modelbroker.Weights) -> dict[str, bytes]:
    return {name: weights.raw(name).tobytes() for name in weights}


def test_written_names_what_was_written_and_restore_undoes_it(
    weights: modelbroker.Weights, way: str
) -> None:
    base = bytes_of(weights)
    assert weights.written() == []
    assert weights.restore() == 0
    tensors = weights.state_dict()
    parameter = torch.nn.Parameter(tensors["large"], requires_grad=False)
    view = parameter.detach()[10:20]
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    view += 1
    tensors["b"].zero_()
    assert weights.written() == ["b", "large"]
    given = weights.restore()
    assert given == (2 if tensors["b"].data_ptr() // PAGE != view.data_ptr() // PAGE else 1) * PAGE
    assert bytes_of(weights) == base
    assert bytes(view.numpy()) == base["large"][10:20]
    assert bytes(parameter.numpy()) == base["large"]
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == addresses
    assert (weights.written(), weights.restore()) == ([], 0)
    view += 1  # and so again
    assert weights.written() == ["large"]
    assert way


def test_a_name_alone_leaves_what_its_neighbours_on_the_page_have_written(
    weights: modelbroker.Weights, way: str
) -> None:
    base = bytes_of(weights)
    for name in weights:
        weights.raw(name)[:] ^= 0xFF
    changed = bytes_of(weights)
    assert set(weights.written()) == {name for name in SIZES if SIZES[name]}
    given = weights.restore(["large"])
    assert given in (4 * PAGE, 5 * PAGE)  # the whole pages of its own
    assert bytes_of(weights) == {**changed, "large": base["large"]}
    assert set(weights.written()) == {"a", "b", "c", "d", "e"}
    assert weights.restore(name for name in ("a", "c")) == 0
    assert weights.restore("empty") == 0
    assert bytes_of(weights) == {**base, **{name: changed[name] for name in ("b", "d", "e")}}
    assert weights.restore(weights) > 0
    assert bytes_of(weights) == base
    assert way


def test_a_thousand_random_writes_and_restores_are_as_in_numpy(
    weights: modelbroker.Weights,
) -> None:
    source = random.Random(3)
    base = {name: np.frombuffer(raw, np.uint8) for name, raw in bytes_of(weights).items()}
    model = {name: array.copy() for name, array in base.items()}
    names = list(SIZES)
    for step in range(1000):
        if source.random() < 0.7:
            name = source.choice(names)
            start = source.randrange(SIZES[name] + 1)
            end = min(SIZES[name], start + source.randrange(2 * PAGE))
            value = source.randrange(256)
            weights.raw(name)[start:end] = value
            model[name][start:end] = value
        else:
            chosen = source.sample(names, source.randrange(len(names)))
            everything = source.random() < 0.1
            weights.restore(None if everything else chosen)
            for name in names if everything else chosen:
                model[name][:] = base[name]
        for name in names:
            assert np.array_equal(weights.raw(name), model[name]), (step, name)
        if step % 20 == 0:
            differing = {name for name in names if not np.array_equal(base[name], model[name])}
            assert differing <= set(weights.written()), step
    assert weights.restore() > 0
    assert all(np.array_equal(weights.raw(name), base[name]) for name in names)


@pytest.mark.parametrize("names", [["b", "no such"], "no such", ["b", ""]])
def test_an_unknown_name_restores_nothing(weights: modelbroker.Weights, names: Any) -> None:
    weights.raw("b")[:] ^= 1
    changed = bytes_of(weights)
    with pytest.raises(modelbroker.NotFoundError, match="has no tensor"):
        weights.restore(names)
    assert bytes_of(weights) == changed


def test_readonly_and_released_weights(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client:
        weights = client.attach("m", mode="readonly")
        assert (weights.written(), weights.restore(), weights.restore(["a"])) == ([], 0, 0)
        with pytest.raises(modelbroker.NotFoundError):
            weights.restore(["no such"])
        weights.release()
        for call in (weights.written, weights.restore):
            with pytest.raises(modelbroker.FailedPreconditionError):
                call()


def test_locked_pages_get_the_base_bytes_too(weights: modelbroker.Weights, way: str) -> None:
    base = bytes_of(weights)
    raw = weights.raw("large")
    libc = ctypes.CDLL(None, use_errno=True)
    address, _ = raw.__array_interface__["data"]
    assert libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(raw))) == 0
    raw[:] = 0
    weights.restore(["large"])
    assert bytes_of(weights) == base
    raw[:] = 0
    weights.restore()
    assert bytes_of(weights) == base
    assert way


def test_without_the_block_a_name_alone_cannot_be_restored_and_all_can(
    broker: BrokerProcess, weights: modelbroker.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "_BROKER_SECONDS", 0.1)
    base = bytes_of(weights)
    weights.raw("a")[:] = 0
    weights.raw("large")[:] = 0
    for block in broker.blocks():
        block.rename(block.with_name(f"{block.name}.gone"))
    broker.kill()
    try:
        assert {"a", "large"} <= set(weights.written())
        with pytest.raises(modelbroker.ModelBrokerError):
            weights.restore(["a"])
        assert weights.restore() > 0
        assert bytes_of(weights) == base
    finally:
        broker.start()


# Writes and restores when it is told to, and prints the checksum of what it sees.
WORKER = """
import sys, zlib
import modelbroker

weights = modelbroker.connect(timeout=30).attach("m")
def checksum():
    return sum(zlib.crc32(weights.raw(name)) for name in weights)
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "write":
        for name in weights:
            weights.raw(name)[:] = 0
    if line.strip() == "restore":
        weights.restore()
    print(checksum(), *weights.written(), flush=True)
"""


def test_another_process_sees_nothing_of_writes_and_restores(
    broker: BrokerProcess, model: Path
) -> None:
    assert model.exists()
    with workers(broker, 2, WORKER) as [writer, other]:

        def told(worker: Any, line: str) -> list[str]:
            tell(worker, line)
            return line_of(worker).split()

        base = told(other, "look")
        assert base == told(writer, "look")
        assert len(base) == 1
        written = told(writer, "write")
        assert (written[0] != base[0], len(written)) == (True, 1 + len(SIZES) - 1)
        assert told(other, "look") == base
        assert told(other, "restore") == base
        assert told(writer, "look") == written
        assert told(writer, "restore") == base


FORKED = """
import os, signal, warnings
import modelbroker

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
weights = modelbroker.connect(timeout=30).attach("m")
base = {name: bytes(weights.raw(name)) for name in weights}
weights.raw("c")[:] = 1

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def restore_all():
    assert weights.written() == ["c"], weights.written()
    weights.raw("large")[:] = 2
    assert weights.written() == ["c", "large"]
    assert weights.restore(["c"]) == 0
    assert bytes(weights.raw("c")) == base["c"]
    assert weights.restore() > 0
    assert {name: bytes(weights.raw(name)) for name in weights} == base

child(restore_all)
assert set(weights.raw("c")) == {1}
assert weights.written() == ["c"]
assert bytes(weights.raw("large")) == base["large"]
child(restore_all)
assert weights.restore() > 0
assert {name: bytes(weights.raw(name)) for name in weights} == base
"""


def test_writes_and_restores_of_a_forked_child_are_its_own(
    broker: BrokerProcess, model: Path
) -> None:
    assert model.exists()
    done = run_python(FORKED, environment=broker.environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_training_step_wrote_is_undone(broker: BrokerProcess, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    tensors = {
        name: ("F32", list(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in source.state_dict().items()
    }
    path = files.write(tmp_path / "net", tensors)
    batch = torch.rand(5, 64)
    with broker.connect() as client, client.attach(path) as weights:
        with torch.device("meta"):
            module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
        weights.apply_to(module)
        before = module(batch)
        optimizer = torch.optim.SGD(module[1].parameters(), lr=0.1)
        before.sum().backward()
        optimizer.step()
        assert sorted(weights.written()) == ["1.bias", "1.weight"]
        assert not torch.equal(module(batch), before)
        weights.restore()
        assert torch.equal(module(batch), before)
        assert list(itertools.chain(weights.written())) == []


@pytest.mark.slow  # imports peft
def test_what_fuse_and_unfuse_left_is_undone(broker: BrokerProcess, tmp_path: Path) -> None:
    import peft

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tensors = {
        name: ("F32", list(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in network().state_dict().items()
    }
    path = files.write(tmp_path / "net", tensors)
    with broker.connect() as client, client.attach(path) as weights:
        with torch.device("meta"):
            base = network()
        weights.apply_to(base)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
        model: Any = peft.get_peft_model(base, config)
        original = bytes_of(weights)
        model.merge_adapter()
        assert weights.written() == ["0.weight"]
        model.unmerge_adapter()
        rounded = weights["0.weight"].numpy().copy()
        found = shared(model)
        assert [name.split(".")[-2:] for name in found.written()] == [["base_layer", "weight"]]
        assert found.written_bytes >= 256 * 1024
        assert found.restore() >= 255 * 1024
        assert bytes_of(weights) == original
        share = np.mean(rounded != weights["0.weight"].numpy())
        assert share > 0.01  # of the elements; otherwise there was nothing to undo
        assert weights.written() == []
