"""apply_to: the module's own parameters over the shared memory, or an error and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import modelbroker
from support.broker import BrokerProcess


class Net(torch.nn.Module):
    """Parameters, a frozen one, buffers of both kinds, and a tensor of no dimension."""

    steps: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.second = torch.nn.Linear(16, 4, bias=False)
        self.second.weight.requires_grad = False
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("table", torch.linspace(0, 1, 16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.norm(self.first(x)) + self.table)
        return y


def on_meta() -> Net:
    """As a caller builds it: what no file has is real."""
    with torch.device("meta"):
        net = Net()
    net.table = torch.linspace(0, 1, 16)
    return net


@pytest.fixture
def net() -> Net:
    torch.manual_seed(7)
    net = Net()
    net.norm.running_mean = torch.rand(16)
    return net.eval()


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with broker.connect() as client:
        yield client


@pytest.fixture
def path(net: Net, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    return path


def assert_untouched(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    now = module.state_dict(keep_vars=True)
    assert now.keys() == before.keys()
    assert all(now[name] is before[name] for name in before)


def test_a_meta_module_becomes_what_load_state_dict_would_make_of_it(
    client: modelbroker.Broker, path: Path, net: Net
) -> None:
    with client.attach(path) as weights:
        module = on_meta()
        report = weights.apply_to(module)
        addresses = {name: tensor.data_ptr() for name, tensor in weights.state_dict().items()}
    assert report == modelbroker.AppliedReport([], [], [])
    expected = on_meta()
    expected.load_state_dict(safetensors.torch.load_file(path), assign=True)
    assert module.state_dict().keys() == addresses.keys()
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == expected.state_dict()[name].dtype
        assert torch.equal(tensor, expected.state_dict()[name])
        assert tensor.data_ptr() == addresses[name], "it was copied"
    x = torch.rand(3, 8)
    assert torch.equal(module.eval()(x), net(x))


def test_requires_grad_and_the_kind_of_each_tensor_stay(
    client: modelbroker.Broker, path: Path
) -> None:
    module = on_meta()
    client.attach(path).apply_to(module)
    expected = Net()
    assert {name: p.requires_grad for name, p in module.named_parameters()} == {
        name: p.requires_grad for name, p in expected.named_parameters()
    }
    assert [name for name, _ in module.named_buffers()] == [
        name for name, _ in expected.named_buffers()
    ]
    assert all(isinstance(p, torch.nn.Parameter) for p in module.parameters())
    assert not module.steps.requires_grad


def test_a_module_with_memory_of_its_own_takes_the_weights_too(
    client: modelbroker.Broker, path: Path, net: Net
) -> None:
    module = Net().eval()
    report = client.attach(path).apply_to(module)
    assert report == modelbroker.AppliedReport([], [], [])
    x = torch.rand(3, 8)
    assert torch.equal(module(x), net(x))


def test_training_steps_stay_in_this_process(client: modelbroker.Broker, path: Path) -> None:
    stock = safetensors.torch.load_file(path)
    module = Net()
    client.attach(path).apply_to(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.rand(6, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.first.weight, stock["first.weight"])
    assert torch.equal(module.second.weight, stock["second.weight"])
    fresh = client.attach(path).state_dict()
    assert all(torch.equal(fresh[name], stock[name]) for name in stock)


def test_the_dtype_becomes_the_files(client: modelbroker.Broker, tmp_path: Path) -> None:
    stock = {"weight": torch.rand(4, 3).to(torch.bfloat16), "bias": torch.rand(4).half()}
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(stock, path)
    module = torch.nn.Linear(3, 4, device="meta")
    client.attach(path).apply_to(module)
    assert module.weight.dtype == torch.bfloat16
    assert module.bias.dtype == torch.float16
    assert torch.equal(module.weight, stock["weight"])


def test_a_prefix_chooses_a_part(client: modelbroker.Broker, path: Path, net: Net) -> None:
    module = torch.nn.Linear(8, 16, device="meta")
    with client.attach(path) as weights:
        assert weights.apply_to(module, prefix="first.").still_on_meta == []
    assert torch.equal(module.weight, net.first.weight)
    assert torch.equal(module.bias, net.first.bias)


def test_what_does_not_fit_is_an_error_and_changes_nothing(
    client: modelbroker.Broker, path: Path
) -> None:
    missing = on_meta()
    missing.more = torch.nn.Linear(2, 2, device="meta")
    unexpected = on_meta()
    del unexpected.steps
    misshapen = on_meta()
    misshapen.second = torch.nn.Linear(16, 5, bias=False, device="meta")
    cases = [
        (missing, r"missing \['more.weight', 'more.bias'\]"),
        (unexpected, r"unexpected \['steps'\]"),
        (misshapen, r"size mismatch for second.weight: .*\[4, 16\].*\[5, 16\]"),
        (torch.nn.Linear(8, 16), "does not fit Linear"),
    ]
    with client.attach(path) as weights:
        for module, message in cases:
            before = module.state_dict(keep_vars=True)
            with pytest.raises(modelbroker.InvalidArgumentError, match=message):
                weights.apply_to(module)
            assert_untouched(module, before)
            assert all(tensor.is_meta for tensor in before.values()) or module is cases[3][0]
            assert module.training


def test_without_strict_it_does_what_it_can_and_reports_the_rest(
    client: modelbroker.Broker, path: Path, net: Net
) -> None:
    module = on_meta()
    module.more = torch.nn.Linear(2, 2, device="meta")
    module.table = torch.empty(16, device="meta")
    del module.steps
    report = client.attach(path).apply_to(module, strict=False)
    assert report.missing == ["more.weight", "more.bias"]
    assert report.unexpected == ["steps"]
    assert report.still_on_meta == ["more.weight", "more.bias", "table"]
    assert torch.equal(module.first.weight, net.first.weight)


def test_another_shape_is_an_error_even_without_strict(
    client: modelbroker.Broker, path: Path
) -> None:
    module = on_meta()
    module.first = torch.nn.Linear(8, 17, device="meta")
    before = module.state_dict(keep_vars=True)
    with pytest.raises(modelbroker.InvalidArgumentError, match=r"size mismatch for first\.weight"):
        client.attach(path).apply_to(module, strict=False)
    assert_untouched(module, before)


def test_long_lists_in_errors_are_cut_short(client: modelbroker.Broker, path: Path) -> None:
    module = torch.nn.Sequential(*[torch.nn.Linear(1, 1, device="meta") for _ in range(10)])
    with pytest.raises(modelbroker.InvalidArgumentError, match="and 15 more"):
        client.attach(path).apply_to(module)


class Tied(torch.nn.Module):
    """An embedding whose weight is also the head's, as language models have it."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4, device=device)
        self.head = torch.nn.Linear(4, 10, bias=False, device=device)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.embedding(x))
        return y


def test_tied_parameters_that_the_file_has_twice_are_both_there(
    client: modelbroker.Broker, tmp_path: Path
) -> None:
    model = Tied("cpu")
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_file({n: t.clone() for n, t in model.state_dict().items()}, path)
    module = Tied("meta")
    assert client.attach(path).apply_to(module).still_on_meta == []
    assert module.head.weight is module.embedding.weight
    x = torch.arange(10)
    assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
def test_tied_parameters_that_the_file_has_once_stay_tied(
    client: modelbroker.Broker, tmp_path: Path, strict: bool
) -> None:
    model = Tied("cpu")
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_file({"embedding.weight": model.embedding.weight.detach()}, path)
    module = Tied("meta")
    report = client.attach(path).apply_to(module, strict=strict)
    assert report == modelbroker.AppliedReport([], [], [])
    assert module.head.weight is module.embedding.weight
    x = torch.arange(10)
    assert torch.equal(module(x), model(x))


def test_parameters_that_nobody_filled_are_reported_under_each_of_their_names(
    client: modelbroker.Broker, path: Path
) -> None:
    module = on_meta()
    module.table = torch.empty(16, device="meta")
    module.tied = Tied("meta")
    report = client.attach(path).apply_to(module, strict=False)
    assert report.missing == ["tied.embedding.weight", "tied.head.weight"]
    assert set(report.still_on_meta) == {"tied.embedding.weight", "tied.head.weight", "table"}


def test_readonly_weights_apply_and_compute(
    client: modelbroker.Broker, path: Path, net: Net
) -> None:
    module = on_meta()
    client.attach(path, mode="readonly").apply_to(module)
    x = torch.rand(3, 8)
    with torch.inference_mode():
        assert torch.equal(module.eval()(x), net(x))
