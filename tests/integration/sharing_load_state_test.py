"""Loaders of other libraries that end in `load_state_dict`: as without us, nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import sentence_transformers
import torch
from accelerate.utils import set_module_tensor_to_device
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import modelbroker
import small_models
from support.broker import BrokerProcess
from support.sharing import is_shared

hub: Any = accelerate
sentences: Any = sentence_transformers


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sharing(shared: BrokerProcess) -> Any:
    return lambda: modelbroker.sharing(endpoint=shared.endpoint, min_size=0)


class Network(nn.Module):
    """A tied weight, buffers, and layers to place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(self.embed(words)))
        return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    network = Network()
    nn.init.normal_(network.embed.weight)
    save_model(network, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def tied(network: Network) -> Network:
    """After what loads one name of a tied weight alone."""
    real = network.head if network.embed.weight.is_meta else network.embed
    network.embed.weight = network.head.weight = real.weight
    return network


def by_load_model(file: Path) -> nn.Module:
    network = Network()
    assert list(map(list, load_model(network, file))) == [[], []]
    return network


def by_load_file(file: Path) -> nn.Module:
    network = Network()
    network.load_state_dict(load_file(file), strict=False)
    return network


def by_checkpoint(file: Path) -> nn.Module:
    network = Network()
    hub.load_checkpoint_in_model(network, str(file))
    return network


def by_placed_checkpoint(file: Path) -> nn.Module:
    network = Network()
    hub.load_checkpoint_in_model(network, str(file), device_map={"": "cpu"})
    return network


def by_dispatch(file: Path) -> nn.Module:
    with hub.init_empty_weights():
        network = Network()
    network.head.weight = network.embed.weight  # what init_empty_weights parted
    hub.load_checkpoint_and_dispatch(network, str(file), device_map={"": "cpu"})
    return network


def tensor_by_tensor(file: Path) -> nn.Module:
    with hub.init_empty_weights(include_buffers=True):
        network = Network()
    for name, value in load_file(file).items():
        set_module_tensor_to_device(network, name, "cpu", value=value)
    return tied(network)


WAYS: list[Callable[[Path], nn.Module]] = [
    by_load_model, by_load_file, by_checkpoint, by_placed_checkpoint, by_dispatch, tensor_by_tensor,
]  # fmt: skip


@pytest.mark.parametrize("load", WAYS)
def test_a_loader_ends_over_shared_memory(
    file: Path, sharing: Any, load: Callable[[Path], nn.Module]
) -> None:
    stock = load(file).eval()
    with sharing():
        network = load(file).eval()
    found, wanted = network.state_dict(keep_vars=True), stock.state_dict(keep_vars=True)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert type(found[name]) is type(tensor)
        assert found[name].requires_grad == tensor.requires_grad
        assert is_shared(found[name]), name
        assert not is_shared(tensor)
    assert found["head.weight"] is found["embed.weight"]
    words = torch.arange(8)
    assert torch.equal(network(words), stock(words))


def test_a_dict_that_is_kept_is_a_backup_also_without_the_broker(
    file: Path, make_broker: Callable[..., BrokerProcess]
) -> None:
    broker = make_broker().start()
    with modelbroker.sharing(endpoint=broker.endpoint, min_size=0):
        base, network = load_file(file), Network()
        network.load_state_dict(base, strict=False)
        broker.kill()
        for parameter in network.parameters():
            parameter.data.zero_()
        other = Network()
        other.load_state_dict(base, strict=False)
        network.load_state_dict(base, strict=False)
    right = by_load_file(file).state_dict()
    for each in (network, other):
        for name, value in each.state_dict().items():
            assert is_shared(value)
            assert torch.equal(value, right[name])


def test_a_sentence_model_is_shared(tmp_path: Path, sharing: Any) -> None:
    small_models.sentence_model(tmp_path / "model")
    path = str(tmp_path / "model")
    stock = sentences.SentenceTransformer(path, device="cpu")
    with sharing():
        model = sentences.SentenceTransformer(path, device="cpu")
    found, wanted = model.state_dict(), stock.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    not_shared = {name for name, _ in model.named_parameters() if not is_shared(found[name])}
    assert not_shared == set()
    texts = ["a cat", "two dogs"]
    assert (model.encode(texts) == stock.encode(texts)).all()


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    copies = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        self.copies += function is torch.ops.aten.copy_.default
        return function(*args, **(named or {}))


def test_a_mode_below_torch_sees_the_copies(tmp_path: Path, sharing: Any) -> None:
    save_file({"weight": torch.randn(4, 4), "bias": torch.randn(4)}, tmp_path / "linear")
    network = nn.Linear(4, 4)
    with sharing():
        values = load_file(tmp_path / "linear")
        with Watching() as mode:  # type: ignore[no-untyped-call]  # torch's
            network.load_state_dict(values)
    assert mode.copies == 2
    assert torch.equal(network.weight, values["weight"])
    assert not is_shared(network.weight)
