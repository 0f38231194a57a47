"""apply_to beside torch's own load_state_dict: what that takes, what stays tied, and errors."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import modelbroker
from support.broker import BrokerProcess

Tensors = dict[str, torch.Tensor]
Attach = Callable[[Tensors], modelbroker.Weights]


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with shared.connect() as client:
        yield client


@pytest.fixture
def attach(client: modelbroker.Broker, tmp_path: Path) -> Attach:
    def attach(tensors: Tensors) -> modelbroker.Weights:
        path = tmp_path / f"{uuid.uuid4().hex}.safetensors"
        safetensors.torch.save_file(tensors, path)
        return client.attach(path)

    return attach


def everything(module: nn.Module) -> dict[str, Any]:
    """Each tensor and attribute, by where it is."""
    return {
        f"{path}/{type(part).__name__}.{key}": dict(value) if key in ("_parameters", "_buffers")
        else list(value) if isinstance(value, list) else value
        for path, part in module.named_modules(remove_duplicate=False)
        for key, value in vars(part).items()
    }  # fmt: skip


def assert_same_things(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Not merely equal ones."""
    assert now.keys() == before.keys()
    for key, value in before.items():
        if isinstance(value, dict):
            assert now[key].keys() == value.keys()
            assert all(now[key][name] is value[name] for name in value), key
        elif isinstance(value, list):
            assert list(map(id, now[key])) == list(map(id, value)), key
        else:
            assert now[key] is value, key


# ---- what torch takes


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Extra(nn.Linear):
    """Its extra state is no tensor, as TransformerEngine's; a file can only hold one."""

    seen: object = None

    def get_extra_state(self) -> object:
        return {"scale": 1}

    def set_extra_state(self, state: object) -> None:
        self.seen = state


class Renaming(nn.Linear):
    """Takes the names of an older version of itself."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]  # torch's
            self._rename
        )

    @staticmethod
    def _rename(_module: nn.Module, tensors: Tensors, prefix: str, *_: object) -> None:
        tensors[prefix + "weight"] = tensors.pop(prefix + "kernel")


TAKEN: dict[str, tuple[Tensors, Callable[[], nn.Module]]] = {
    "old names of weight_norm (wav2vec2, HiFi-GAN)": (
        {"weight_g": torch.ones(4, 1), "weight_v": torch.randn(4, 4), "bias": torch.zeros(4)},
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ),
    "BatchNorm without num_batches_tracked": (
        {name: torch.ones(4) for name in ("weight", "bias", "running_mean", "running_var")},
        lambda: nn.BatchNorm2d(4),
    ),
    "[1] in the file for a scalar": ({"scale": torch.full((1,), 7.0)}, Scale),
    "a lazy module": (
        {"weight": torch.ones(4, 5), "bias": torch.zeros(4)},
        lambda: nn.LazyLinear(4),
    ),
    "an extra state": (
        {"weight": torch.ones(4, 4), "bias": torch.zeros(4), "_extra_state": torch.zeros(0)},
        lambda: Extra(4, 4),
    ),
    "names that the module's hook knows": (
        {"kernel": torch.ones(4, 4), "bias": torch.zeros(4)},
        Renaming,
    ),
    "a recurrent network": (
        {name: torch.rand_like(value) for name, value in nn.LSTM(3, 4).state_dict().items()},
        lambda: nn.LSTM(3, 4),
    ),
    "a scripted module": (
        {"weight": torch.ones(4, 4), "bias": torch.zeros(4)},
        lambda: torch.jit.script(nn.Linear(4, 4)),
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("what", TAKEN)
def test_what_torch_takes_is_applied_as_torch_does(attach: Attach, what: str, device: str) -> None:
    tensors, make = TAKEN[what]
    if device == "meta" and what == "a scripted module":
        device = "cpu"  # a script has no meta device
    with torch.device(device):
        module, expected = make(), make()
    expected.load_state_dict(tensors, assign=True)
    with attach(tensors) as weights:
        addresses = {tensor.data_ptr() for tensor in weights.state_dict().values()}
        assert weights.apply_to(module) == modelbroker.AppliedReport([], [], [])
    found = dict(module.state_dict(keep_vars=True))
    wanted = dict(expected.state_dict(keep_vars=True))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        assert torch.equal(found[name], tensor)
        assert (type(found[name]), found[name].requires_grad) == (
            type(tensor),
            tensor.requires_grad,
        )
        assert name == "num_batches_tracked" or found[name].data_ptr() in addresses, "copied"
    if isinstance(module, nn.LSTM):
        assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    if isinstance(module, Extra):
        assert isinstance(module.seen, torch.Tensor)


# ---- errors


class Raising(nn.Linear):
    """A hook of its own fails when the module has been changed already."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(4, 4)
        self.state: str | None = None
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]  # torch's
            lambda *_: self._fail(error)
        )

    def _fail(self, error: BaseException) -> None:
        self.state = "changed"
        self.more = nn.Linear(2, 2)
        del self._parameters["bias"]
        raise error


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("ids", torch.arange(8), persistent=False)


def strict_only() -> nn.Module:
    class Old(nn.Linear):
        def load_state_dict(self, tensors: Any, strict: bool = True) -> Any:  # type: ignore[override]  # as such modules are
            return super().load_state_dict(tensors, strict)

    return Old(4, 4)


FULL = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}
REFUSED: dict[str, tuple[Tensors, Callable[[], nn.Module], str]] = {
    "a buffer of no file": (
        {"weight": torch.ones(4)},
        Positions,
        r"\['ids'\] would stay on the meta device.*from_pretrained\(None, config=config",
    ),
    "missing": ({"bias": torch.ones(4)}, lambda: nn.Linear(4, 4), r"missing \['weight'\].*strict="),
    "unexpected": (
        {**FULL, "more": torch.ones(1)},
        lambda: nn.Linear(4, 4),
        r"unexpected \['more'\].*prefix=",
    ),
    "integers for a parameter that learns": (
        {"bias": torch.ones(4), "weight": torch.ones(4, 4, dtype=torch.int8)},
        lambda: nn.Linear(4, 4),
        "can require gradients",
    ),
    "another shape": (
        {"bias": torch.ones(4), "weight": torch.ones(4, 5)},
        lambda: nn.Linear(4, 4),
        "size mismatch for weight",
    ),
    "unexpected in a lazy module": (
        {**FULL, "more": torch.ones(1)},
        lambda: nn.LazyLinear(4),
        r"unexpected \['more'\]",
    ),
    "one of a recurrent network is missing": (
        {name: value for name, value in nn.LSTM(3, 4).state_dict().items() if name != "bias_ih_l0"},
        lambda: nn.LSTM(3, 4),
        r"missing \['bias_ih_l0'\]",
    ),
    "a hook that raises": (FULL, lambda: Raising(KeyError("mine")), "KeyError: 'mine'"),
    "a load_state_dict that cannot assign": (FULL, strict_only, "'assign'"),
    "in a part": (
        {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.weight": torch.ones(3, 3)},
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)),
        "size mismatch for 1.weight",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("what", REFUSED)
def test_an_error_says_what_to_do_and_leaves_the_module_as_it_was(
    attach: Attach, what: str, device: str
) -> None:
    tensors, make, message = REFUSED[what]
    with torch.device("meta" if what == "a buffer of no file" else device):
        module = make()
    before, kind = everything(module), type(module)
    lazy = {name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)}
    with (
        attach(tensors) as weights,
        pytest.raises(modelbroker.InvalidArgumentError, match=f"(?s){message}") as caught,
    ):
        weights.apply_to(module)
    assert isinstance(caught.value, ValueError)
    assert "is left as it was" in str(caught.value)
    assert_same_things(everything(module), before)
    assert type(module) is kind
    assert lazy == {name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)}
    if lazy:
        assert module(torch.ones(2, 3, device=device)).shape == (2, 4), (
            "it has not become lazy again"
        )


def test_an_interruption_leaves_the_module_as_it_was(attach: Attach) -> None:
    module = Raising(KeyboardInterrupt())
    before = everything(module)
    with attach(FULL) as weights, pytest.raises(KeyboardInterrupt):
        weights.apply_to(module)
    assert_same_things(everything(module), before)


def test_what_is_no_module_is_refused(attach: Attach) -> None:
    thing: Any = {"weight": 1}
    with attach(FULL) as weights, pytest.raises(modelbroker.InvalidArgumentError, match="Module"):
        weights.apply_to(thing)


# ---- ties


class Tied(nn.Module):
    """A weight under three names, as T5 has it, and a table under two."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(10, 4)
        self.encoder = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.encoder.weight = self.head.weight = self.shared.weight
        self.register_buffer("table", torch.arange(3))
        self.head.register_buffer("table", self.table)

    def is_tied(self) -> bool:
        one = self.shared.weight
        weights = one is self.encoder.weight and one is self.head.weight
        return weights and self.table is self.head.table


WEIGHTS = {
    f"{name}.weight": torch.arange(40.0).view(10, 4) for name in ("shared", "encoder", "head")
}
TABLES = {name: torch.arange(3) for name in ("table", "head.table")}


def some(*names: str) -> Tensors:
    return {name: tensor for name, tensor in (WEIGHTS | TABLES).items() if name in names}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "names",
    [
        ("shared.weight", "table"),
        ("head.weight", "head.table"),
        ("encoder.weight", "shared.weight", "table", "head.table"),
        (*WEIGHTS, *TABLES),
    ],
)
def test_what_was_one_tensor_stays_one(
    attach: Attach, names: tuple[str, ...], device: str, strict: bool
) -> None:
    with torch.device(device):
        module = Tied()
    tensors = {name: tensor.clone() for name, tensor in some(*names).items()}
    with attach(tensors) as weights:
        report = weights.apply_to(module, strict=strict)
    assert report == modelbroker.AppliedReport([], [], [])
    assert module.is_tied()
    assert torch.equal(module.head.weight, WEIGHTS["head.weight"])
    assert torch.equal(module.table, TABLES["table"])
    assert len(list(module.parameters())) == 1


def test_a_module_under_two_names_is_missing_nothing(attach: Attach) -> None:
    with torch.device("meta"):
        one = nn.Linear(4, 4)
        module = nn.ModuleDict({"first": one, "second": one})
    with attach({"first.weight": torch.ones(4, 4), "first.bias": torch.ones(4)}) as weights:
        assert weights.apply_to(module) == modelbroker.AppliedReport([], [], [])
    assert module["first"] is module["second"]


def test_different_values_for_one_tensor_are_an_error_or_stay_apart(attach: Attach) -> None:
    tensors = {**some("shared.weight", "table"), "head.weight": torch.zeros(10, 4)}
    with torch.device("meta"):
        module = Tied()
    before = everything(module)
    with attach(tensors) as weights:
        with pytest.raises(modelbroker.InvalidArgumentError, match=r"shared\.weight/head\.weight"):
            weights.apply_to(module)
        assert_same_things(everything(module), before)
        report = weights.apply_to(module, strict=False)
    assert report == modelbroker.AppliedReport([], [], [])
    assert torch.equal(module.shared.weight, WEIGHTS["shared.weight"])
    assert module.encoder.weight is module.shared.weight
    assert not module.head.weight.any()


def test_a_tied_tensor_that_is_nowhere_in_the_file_is_missing(attach: Attach) -> None:
    with torch.device("meta"):
        module = Tied()
    with attach(some("table")) as weights:
        report = weights.apply_to(module, strict=False)
    assert report.missing == ["shared.weight", "encoder.weight", "head.weight"]
    assert report.still_on_meta == report.missing


def test_torch_may_be_told_to_change_tensors_in_place(attach: Attach) -> None:
    module = Tied()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with attach(some("shared.weight", "table")) as weights:
            report = weights.apply_to(module)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert report == modelbroker.AppliedReport([], [], [])
    assert module.is_tied()
    assert torch.equal(module.head.weight, WEIGHTS["head.weight"])
