"""Weights: how long memory and lease live, and whose a write is."""

from __future__ import annotations

import gc
import io
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import modelbroker
from support import files
from support.broker import BrokerProcess, run_python, wait_until


@pytest.fixture
def model(broker: BrokerProcess, tmp_path: Path) -> Path:
    """A model "m" of a few kinds of tensors."""
    path = files.write(
        tmp_path / "m.safetensors",
        {
            "net.weight": ("F32", [8, 16], np.arange(128, dtype="f4").tobytes()),
            "net.bias": ("F32", [8], np.arange(8, dtype="f4").tobytes()),
            "head.weight": ("F16", [1000], bytes(range(100)) * 20),
            "count": ("I64", [], (7).to_bytes(8, "little")),
            "none": ("F32", [0, 4], b""),
        },
        {"made": "by hand"},
    )
    broker.cli("load", path, "--name", "m")
    return path


def leases(broker: BrokerProcess) -> int:
    return broker.books()["leases"]


def mapped(client_path: str) -> bool:
    return client_path in Path("/proc/self/maps").read_text()


# ---- how long


@pytest.mark.slow
@pytest.mark.parametrize("how", ["release", "del"])
def test_the_lease_ends_with_the_handle_and_the_last_tensor_in_every_order(
    broker: BrokerProcess, model: Path, how: str
) -> None:
    assert model.exists()
    with broker.connect() as observer:
        (resident,) = observer.list()

        def held() -> int:
            return observer.status().tiers["ram"].leases

        kinds = ["handle", "state dict", "array", "view", "slice", "close"]
        for order in itertools.permutations(kinds):
            client = broker.connect()
            weights = client.attach("m")
            things: dict[str, Any] = {
                "handle": weights,
                "state dict": weights.state_dict(),
                "array": weights["head.weight"].numpy(),
                "view": weights["net.bias"],
                "slice": weights["net.weight"].torch()[2:4].t(),
                "close": None,
            }
            if how == "del":
                del weights
            for kind in order:
                if kind == "handle" and how == "release":
                    things[kind].release()
                if kind == "close":
                    client.close()
                del things[kind]
                left = things.keys() - {"close"}
                if len(left) == 1:  # the last one; what ended before it would have ended for good
                    if "close" in things:
                        client.status()  # before a call, what has ended is told
                    assert held() == 1, order
                    assert mapped(resident.block)
                elif not left:
                    wait_until(lambda: held() == 0)
                    assert not mapped(resident.block)
            client.close()


def keepers() -> dict[str, Callable[[modelbroker.Weights], Any]]:
    def parameter(weights: modelbroker.Weights) -> Any:
        module = torch.nn.Linear(16, 8, device="meta")
        weights.apply_to(module, prefix="net.")
        return module.weight

    def pinned_in_a_closure(weights: modelbroker.Weights) -> Any:
        tensor = weights["net.weight"].torch()
        return lambda: tensor

    return {
        "a torch view": lambda weights: weights["net.weight"].torch().view(-1)[3:5],
        "a torch detach": lambda weights: weights["net.weight"].torch().detach(),
        "a torch tensor as numpy": lambda weights: weights["net.weight"].torch().numpy(),
        "a storage": lambda weights: weights["net.weight"].torch().untyped_storage(),
        "a numpy view": lambda weights: weights["net.weight"].numpy().T[1:2],
        "an array as torch": lambda weights: torch.from_numpy(weights["net.weight"].numpy()),
        "a memoryview": lambda weights: memoryview(weights.raw("net.weight"))[1:3],
        "raw bytes": lambda weights: weights.raw("net.weight"),
        "a tensor view": lambda weights: weights["net.weight"],
        "values": lambda weights: list(weights.values()),
        "a parameter": parameter,
        "a closure": pinned_in_a_closure,
        "another iterator": lambda weights: iter(weights.items()),
    }


@pytest.mark.parametrize("kind", keepers())
def test_this_keeps_the_lease_after_the_release_and_as_long_as_it_lives(
    broker: BrokerProcess, model: Path, kind: str
) -> None:
    assert model.exists()
    with broker.connect() as client:
        weights = client.attach("m")
        kept: Any = keepers()[kind](weights)
        if kind == "another iterator":
            del weights
        else:
            weights.release()
        gc.collect()
        client.list()
        assert leases(broker) == 1
        del kept
        gc.collect()  # a module has cycles
        client.list()
        assert leases(broker) == 0


@pytest.mark.parametrize(
    "copy",
    [
        lambda weights: weights["net.weight"].torch().clone(),
        lambda weights: weights["net.weight"].torch().to(torch.float64),
        lambda weights: weights["net.weight"].numpy().copy(),
        lambda weights: bytes(weights.raw("net.weight")),
        lambda weights: list(weights),
        lambda weights: (weights.model, weights.metadata, weights.generation),
    ],
    ids=["clone", "to", "numpy copy", "bytes", "names", "metadata"],
)
def test_copies_do_not_keep_the_lease(
    broker: BrokerProcess, model: Path, copy: Callable[[modelbroker.Weights], Any]
) -> None:
    assert model.exists()
    with broker.connect() as client:
        with client.attach("m") as weights:
            kept = copy(weights)
        client.list()
        assert leases(broker) == 0
        assert kept is not None


def test_each_attach_is_a_lease_of_its_own(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client:
        all_of_them = [client.attach("m") for _ in range(5)]
        assert leases(broker) == 5
        while all_of_them:
            all_of_them.pop().release()
            client.list()
            assert leases(broker) == len(all_of_them)


def test_a_call_after_a_release_is_served_after_it_over_the_same_connection(
    broker: BrokerProcess, model: Path
) -> None:
    """Whether the keeper or the call tells the broker of it."""
    with broker.connect() as client:
        client.load(model, "m")
        descriptors = broker.descriptors()
        for _ in range(300):
            client.attach("m").release()
            assert client.status().tiers["ram"].leases == 0
        assert broker.descriptors() <= descriptors


def test_released_weights_say_so_and_their_tensors_live(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client:
        weights = client.attach("m")
        tensor = weights["net.bias"].torch()
        weights.release()
        weights.release()
        uses: list[Callable[[], object]] = [
            lambda: weights["net.bias"],
            lambda: list(weights),
            lambda: len(weights),
            weights.state_dict,
            weights.numpy,
            lambda: weights.raw("net.bias"),
            lambda: weights.apply_to(torch.nn.Linear(16, 8)),
        ]
        for use in uses:
            with pytest.raises(modelbroker.FailedPreconditionError, match="attach again"):
                use()
        assert "released" in repr(weights)
        assert tensor.tolist() == list(range(8))


def test_tensors_outlive_the_broker_its_files_and_the_client(
    broker: BrokerProcess, model: Path
) -> None:
    stock = safetensors.torch.load_file(model)
    with broker.connect() as client, client.attach("m") as weights:
        tensors = weights.state_dict()
    broker.kill()
    for path in broker.files():
        path.unlink()
    assert tensors.keys() == stock.keys()
    assert all(torch.equal(tensors[name], stock[name]) for name in stock)


# ---- what


def test_every_form_is_the_files_bytes(broker: BrokerProcess, model: Path) -> None:
    stock = safetensors.numpy.load_file(model)
    with broker.connect() as client, client.attach("m") as weights:
        assert set(weights) == set(stock)
        assert weights.metadata == {"made": "by hand"}
        for name, array in weights.numpy().items():
            assert array.dtype == stock[name].dtype
            assert array.shape == stock[name].shape == weights[name].shape
            assert array.tobytes() == stock[name].tobytes() == weights.raw(name).tobytes()
            assert weights[name].nbytes == stock[name].nbytes
            assert np.array_equal(weights[name].torch().numpy(), stock[name])
        with pytest.raises(KeyError):
            weights["nothing"]
        with pytest.raises(modelbroker.NotFoundError, match="no tensor 'nothing'"):
            weights.raw("nothing")


def test_a_prefix_selects_and_is_cut_off(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client, client.attach("m") as weights:
        assert weights.state_dict("net.").keys() == {"weight", "bias"}
        assert weights.numpy(prefix="head").keys() == {".weight"}
        assert weights.state_dict("nothing.") == {}
        assert weights.state_dict().keys() == set(weights)


def test_each_tensor_has_a_storage_of_its_own(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m", 8, tensors=8)
    with broker.connect() as client, client.attach(path) as weights:
        for name, tensor in weights.state_dict().items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes == 1_000_000
            saved = io.BytesIO()
            torch.save(tensor, saved)
            assert 1_000_000 < len(saved.getvalue()) < 1_010_000
            alone = safetensors.torch.save({name: tensor})
            assert 1_000_000 < len(alone) < 1_010_000


# ---- whose a write is

CHECKSUMS = """
import sys, zlib
import modelbroker

with modelbroker.connect(timeout=30) as client, client.attach("m") as weights:
    print({name: zlib.crc32(weights.raw(name).data) for name in weights})
"""


def checksums(weights: modelbroker.Weights) -> dict[str, int]:
    return {name: zlib.crc32(weights.raw(name).data) for name in weights}


def test_a_private_write_is_seen_by_nobody_else(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client, client.attach("m") as weights, client.attach("m") as second:
        before = checksums(weights)
        weights["net.weight"].torch().fill_(-1)
        weights["net.bias"].numpy()[3] = 99
        weights.raw("head.weight")[:] = 255
        changed = checksums(weights)
        assert {name for name in before if before[name] != changed[name]} == {
            "net.weight",
            "net.bias",
            "head.weight",
        }
        assert checksums(second) == before
        with client.attach("m") as third:
            assert checksums(third) == before
        other = run_python(CHECKSUMS, environment=broker.environment)
        assert other.stdout.strip() == str(before), other.stderr
        broker.kill()
        broker.start()
        with client.attach("m") as fourth:
            assert checksums(fourth) == before
        assert checksums(weights) == changed


def test_readonly_arrays_refuse_to_be_written(broker: BrokerProcess, model: Path) -> None:
    stock = safetensors.torch.load_file(model)
    with broker.connect() as client, client.attach("m", mode="readonly") as weights:
        assert weights.mode == "readonly"
        for array in (weights["net.bias"].numpy(), weights.raw("net.bias")):
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        tensors = weights.state_dict()  # and no warning, though torch has no such tensors
        assert all(torch.equal(tensors[name], stock[name]) for name in stock)
        for name in weights:
            assert torch.equal(weights[name].torch(), stock[name])


def test_an_unknown_mode_is_refused(broker: BrokerProcess, model: Path) -> None:
    assert model.exists()
    with broker.connect() as client:
        mode: Any = "shared"
        with pytest.raises(modelbroker.InvalidArgumentError, match="'private' or 'readonly'"):
            client.attach("m", mode=mode)
        assert leases(broker) == 0
