"""`load_state_dict` of shared values: stock and shared, side by side."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from modelbroker import _pages as pages
from modelbroker._sharing import context, load_state, twins
from support.blocks import is_over_block, mapped

Tensors: TypeAlias = "dict[str, torch.Tensor]"
Map: TypeAlias = "Callable[[Tensors], Tensors]"

original: Any = nn.Module.load_state_dict


@pytest.fixture(autouse=True)
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shares; afterwards torch is as it was."""
    monkeypatch.setattr(nn.Module, "load_state_dict", original)
    monkeypatch.setattr(context, "is_inside", lambda: True)
    load_state.install()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def map_tensors(tmp_path: Path) -> Map:
    files: list[Path] = []

    def make(tensors: Tensors) -> Tensors:
        files.append(tmp_path / f"block{len(files)}")
        return mapped(files[-1], tensors)

    return make


def stock(module: nn.Module, tensors: Any, **named: Any) -> Any:
    """module.load_state_dict as it is without us."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", original)
        return module.load_state_dict(tensors, **named)


def ours(module: nn.Module, tensors: Any, **named: Any) -> Any:
    return module.load_state_dict(tensors, **named)


def values_for(module: nn.Module) -> Tensors:
    """Other ones than it has."""
    torch.manual_seed(5)
    return {
        name: torch.randn(value.shape).mul(10).to(value.dtype)
        for name, value in module.state_dict().items()
    }


def everything(module: nn.Module) -> Tensors:
    return dict(module.state_dict(keep_vars=True))


def assert_alike(shared: nn.Module, expected: nn.Module) -> None:
    now, wanted = everything(shared), everything(expected)
    assert now.keys() == wanted.keys()
    for name, value in wanted.items():
        found = now[name]
        assert torch.equal(found, value), name
        assert (type(found), found.dtype, found.stride(), found.requires_grad, found._version) == (
            type(value), value.dtype, value.stride(), value.requires_grad, value._version,
        ), name  # fmt: skip


# ---- what is shared


class Renaming(nn.Linear):
    """Takes the names of an older version of itself."""

    def _load_from_state_dict(self, tensors: Any, prefix: str, *rest: Any) -> None:
        if prefix + "kernel" in tensors:
            tensors[prefix + "weight"] = tensors.pop(prefix + "kernel")
        super()._load_from_state_dict(tensors, prefix, *rest)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


class Nested(nn.Module):
    """Loads a part of itself by a call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        mine = {name[5:]: value for name, value in state_dict.items() if name.startswith("part.")}
        self.part.load_state_dict(mine)
        return super().load_state_dict(state_dict, strict, assign)


class HalfTable(nn.Module):
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.bfloat16))
        self.register_buffer("table", torch.zeros(4, 4, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float16))


SHARED: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 6),
    "deep": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.PReLU())),
    "batch norm: buffers, one of them a scalar": lambda: nn.BatchNorm2d(4),
    "a recurrent network": lambda: nn.LSTM(3, 4),
    "other dtypes": HalfTable,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "a call inside the call": Nested,
    "an override of _load_from_state_dict": lambda: Renaming(4, 4),
    "frozen": lambda: nn.Linear(4, 6).requires_grad_(False),
}


@pytest.mark.parametrize("around", [nullcontext, lambda: torch.device("cpu")])
@pytest.mark.parametrize("what", SHARED)
def test_parameters_are_put_over_the_values(
    map_tensors: Map, what: str, around: Callable[[], AbstractContextManager[Any]]
) -> None:
    module, expected = SHARED[what](), SHARED[what]()
    tensors = map_tensors(values_for(module))
    objects = everything(module)
    with around():
        assert stock(expected, tensors) == module.load_state_dict(tensors)
    assert_alike(module, expected)
    for name, value in everything(module).items():
        assert value is objects[name]
        assert is_over_block(value), name
        assert value.data_ptr() != tensors[name].data_ptr()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_is_loaded_as_without(map_tensors: Map) -> None:
    module, expected = (torch.jit.script(nn.Linear(4, 4)) for _ in "12")
    tensors = map_tensors(values_for(module))
    stock(expected, tensors)
    module.load_state_dict(tensors)
    assert_alike(module, expected)


def test_one_parameter_under_two_names_is_shared(map_tensors: Map) -> None:
    module, expected = Tied(), Tied()
    tensors = map_tensors({name: torch.randn(10, 4) for name in everything(module)})
    stock(expected, tensors)
    module.load_state_dict(tensors)
    assert_alike(module, expected)
    assert module.head.weight is module.embed.weight


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_becomes_real_and_is_shared(map_tensors: Map) -> None:
    module, expected = nn.LazyLinear(4), nn.LazyLinear(4)
    tensors = map_tensors({"weight": torch.randn(4, 5), "bias": torch.randn(4)})
    stock(expected, tensors)
    module.load_state_dict(tensors)
    assert_alike(module, expected)
    assert is_over_block(module.weight)


def test_a_training_goes_on_as_without(map_tensors: Map) -> None:
    module, expected = nn.Linear(8, 8), nn.Linear(8, 8)
    inputs = torch.linspace(0, 1, 24).view(3, 8)
    held = [list(each.parameters()) for each in (module, expected)]  # as optimizers do
    tensors = map_tensors(values_for(module))
    stock(expected, tensors)
    module.load_state_dict(tensors)
    for each, parameters in zip((module, expected), held, strict=True):
        for _ in range(3):
            loss: Any = each(inputs).square().mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=0.01)
    assert_alike(module, expected)


# ---- what is copied: somebody would see it


class Plain(nn.Module):
    """One parameter and one buffer, of which tests make what they want."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))
        self.register_buffer("table", torch.zeros(4, 6))


class OwnParameter(nn.Parameter):
    pass


def inference_buffer(module: Plain) -> None:
    with torch.inference_mode():
        module.table = torch.zeros(4, 6)


def part_of_a_flat_buffer(module: Plain) -> torch.Tensor:
    flat = torch.zeros(48)
    module.weight.data, module.table = flat[:24].view(4, 6), flat[24:].view(4, 6)
    return flat


def memory_of_numpy(module: Plain) -> np.ndarray[Any, Any]:
    array = np.zeros((4, 6), np.float32)
    module.table = torch.from_numpy(array)
    return array


def channels_last(module: Plain) -> None:
    module.weight = nn.Parameter(torch.zeros(6, 4).t())


def a_pending_graph(module: Plain) -> torch.Tensor:
    return (torch.ones(2, 4) @ module.weight.square()).sum()


def share(module: Plain) -> None:
    storage: Any = module.table.untyped_storage()
    storage.share_memory_()


# What is done to the module before, which of its names are copied then; the result is kept.
SEEN: dict[str, tuple[Callable[[Plain], Any], tuple[str, ...]]] = {
    "a view": (lambda it: it.weight.view(-1), ("weight",)),
    "a detached one": (lambda it: it.weight.detach(), ("weight",)),
    "its state dict": (lambda it: it.state_dict(), ("weight", "table")),
    "an array": (lambda it: it.table.numpy(), ("table",)),
    "an array of the detached": (lambda it: it.weight.detach().numpy(), ("weight",)),
    "DLPack": (lambda it: np.from_dlpack(it.table), ("table",)),
    "its storage": (lambda it: it.weight.untyped_storage(), ("weight",)),
    "numpy's memory": (memory_of_numpy, ("table",)),
    "shared memory": (share, ("table",)),
    "a part of a larger storage": (part_of_a_flat_buffer, ("weight", "table")),
    "a subclass": (
        lambda it: setattr(it, "weight", OwnParameter(torch.zeros(4, 6))),
        ("weight",),
    ),
    "an inference tensor": (inference_buffer, ("table",)),
    "other strides": (channels_last, ("weight",)),
    "another dtype": (lambda it: it.double(), ("weight", "table")),
}


@pytest.mark.parametrize("what", SEEN)
def test_what_others_see_is_copied(map_tensors: Map, what: str) -> None:
    prepare, copied = SEEN[what]
    tensors = map_tensors({"weight": torch.randn(4, 6), "table": torch.randn(4, 6)})
    modules = Plain(), Plain()
    kept = [prepare(module) for module in modules]
    inference = what == "an inference tensor"
    with torch.inference_mode() if inference else nullcontext():
        stock(modules[0], tensors)
        modules[1].load_state_dict(tensors)
    found = everything(modules[1])
    for name, value in everything(modules[0]).items():
        assert torch.equal(value, found[name])
        assert value.stride() == found[name].stride()
        assert is_over_block(found[name]) == (name not in copied and not inference), name
    for one, other in [kept]:
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        elif isinstance(one, np.ndarray):
            assert np.array_equal(one, other)
        elif isinstance(one, dict):
            assert all(torch.equal(one[name], other[name]) for name in one)
        elif isinstance(one, torch.UntypedStorage):
            assert bytes(one) == bytes(other)


def test_a_graph_that_needs_the_old_values_fails_as_without(map_tensors: Map) -> None:
    tensors = map_tensors({"weight": torch.randn(4, 6), "table": torch.randn(4, 6)})
    for load in (stock, ours):
        module = Plain()
        loss = a_pending_graph(module)
        load(module, tensors)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch's


class Watching(TorchFunctionMode):
    copies = 0

    def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        self.copies += function is torch.Tensor.copy_
        return function(*args, **(named or {}))


def test_a_mode_that_watches_torch_sees_the_copies(map_tensors: Map) -> None:
    module = Plain()
    tensors = map_tensors(values_for(module))
    with Watching() as mode:
        module.load_state_dict(tensors)
    assert mode.copies == 2
    assert not any(map(is_over_block, everything(module).values()))


def in_forward_mode(module: nn.Module, tensors: Tensors) -> None:
    with torch.autograd.forward_ad.dual_level():
        module.load_state_dict(tensors)


def from_a_written_page(module: nn.Module, tensors: Tensors) -> None:
    tensors["weight"][0, 0] += 1
    module.load_state_dict(tensors)


def from_a_conjugate(module: nn.Module, tensors: Tensors) -> None:
    module.load_state_dict({name: torch._neg_view(value) for name, value in tensors.items()})


def without_blocking(module: nn.Module, tensors: Tensors) -> None:
    with torch.no_grad():
        for name, value in everything(module).items():
            value.copy_(tensors[name], non_blocking=True)


def outside(module: nn.Module, tensors: Tensors) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "is_inside", lambda: False)
        module.load_state_dict(tensors)


COPIED: dict[str, Callable[[nn.Module, Tensors], None]] = {
    "forward mode": in_forward_mode,
    "a written page": from_a_written_page,
    "values that are negated when read": from_a_conjugate,
    "a copy outside of load_state_dict": without_blocking,
    "outside": outside,
}


@pytest.mark.parametrize("what", COPIED)
def test_what_cannot_be_shared_is_copied(map_tensors: Map, what: str) -> None:
    tensors = map_tensors({"weight": torch.randn(4, 6), "table": torch.randn(4, 6)})
    module = Plain()
    COPIED[what](module, tensors)
    sign = -1 if what == "values that are negated when read" else 1
    for name, value in everything(module).items():
        assert torch.equal(value, sign * tensors[name])
        assert not is_over_block(value)


def test_a_block_that_cannot_be_opened_again_is_copied(map_tensors: Map, tmp_path: Path) -> None:
    tensors = map_tensors({"weight": torch.randn(4, 6), "table": torch.randn(4, 6)})
    for file in tmp_path.iterdir():
        file.unlink()
    module = Plain()
    module.load_state_dict(tensors)
    for name, value in everything(module).items():
        assert torch.equal(value, tensors[name])
        assert not is_over_block(value)


def test_it_looks_as_before() -> None:
    wrapped: Any = nn.Module.load_state_dict
    load_state.install()
    now: Any = nn.Module.load_state_dict
    assert now is wrapped, "installed once"
    assert inspect.signature(wrapped) == inspect.signature(original)
    assert (wrapped.__qualname__, wrapped.__doc__) == (original.__qualname__, original.__doc__)
    assert wrapped.__wrapped__ is original


def test_assign_is_torchs(map_tensors: Map) -> None:
    module = Plain()
    tensors = map_tensors(values_for(module))
    module.load_state_dict(tensors, assign=True)
    assert module.weight.data_ptr() == tensors["weight"].data_ptr()


# ---- writes


def fill(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.fill_(value)


def test_nobody_sees_anothers_writes(map_tensors: Map) -> None:
    module, other = Plain(), Plain()
    tensors = map_tensors(values_for(module))
    right = {name: value.clone() for name, value in tensors.items()}
    module.load_state_dict(tensors)
    other.load_state_dict(tensors)
    fill(module.weight, 1)
    assert torch.equal(other.weight, right["weight"])
    assert torch.equal(tensors["weight"], right["weight"])
    fill(tensors["weight"], 2)
    assert torch.equal(other.weight, right["weight"])
    assert torch.equal(module.table, right["table"])


def test_values_that_overlap_become_parameters_that_do_not(map_tensors: Map) -> None:
    rows = {"one": (0, 4), "two": (0, 4), "three": (2, 6), "four": (4, 8), "five": (0, 4)}
    module = nn.ParameterDict({name: torch.zeros(4, 4) for name in rows})
    value = map_tensors({"value": torch.randn(8, 4)})["value"]
    right = value.clone()
    module.load_state_dict({name: value[start:end] for name, (start, end) in rows.items()})
    for number, parameter in enumerate(module.values()):
        assert is_over_block(parameter)
        fill(parameter, number)
    for number, parameter in enumerate(module.values()):
        assert bool((parameter == number).all())
    assert torch.equal(value, right)


@pytest.mark.parametrize("written", [False, True])
def test_without_pagemap_values_are_compared(
    map_tensors: Map, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    def closed() -> int:
        raise PermissionError

    for user in (pages, twins):
        monkeypatch.setattr(user, "open_pagemap", closed)
    module = Plain()
    tensors = map_tensors(values_for(module))
    if written:
        fill(tensors["weight"], 3)
    module.load_state_dict(tensors)
    assert is_over_block(module.weight) != written
    assert torch.equal(module.weight, tensors["weight"])


@pytest.mark.parametrize("size", [(4, 6), (300, 41)])  # a part of a page; pages and two edges
def test_the_second_load_of_a_dict_gives_the_base_again(
    map_tensors: Map, size: tuple[int, int]
) -> None:
    names = ("first", "weight", "last")
    module = nn.ParameterDict({name: torch.zeros(size) for name in names})
    tensors = map_tensors(values_for(module))
    module.load_state_dict(tensors)
    place = module["weight"].data_ptr()
    view, array = module["weight"].view(-1), module["weight"].detach().numpy()
    for name in names:
        fill(module[name], 4)
    version = module["weight"]._version
    module.load_state_dict({"weight": tensors["weight"]}, strict=False)
    assert torch.equal(module["weight"], tensors["weight"])
    assert torch.equal(view, tensors["weight"].view(-1))
    assert np.array_equal(array, tensors["weight"].numpy())
    assert module["weight"].data_ptr() == place
    assert module["weight"]._version == version + 1
    assert all(bool((module[name] == 4).all()) for name in ("first", "last"))


def test_values_of_another_block_are_copied_over_the_first(map_tensors: Map) -> None:
    module = Plain()
    first, second = (map_tensors({n: torch.randn(4, 6) for n in everything(module)}) for _ in "12")
    module.load_state_dict(first)
    view = module.table.view(-1)
    module.load_state_dict(second)
    assert torch.equal(view, second["table"].view(-1))
    assert torch.equal(module.weight, second["weight"])
    module.load_state_dict(module.state_dict())
    assert torch.equal(module.weight, second["weight"])


# ---- errors, and other threads


class Raising(nn.Linear):
    def _load_from_state_dict(self, *_: Any) -> None:
        raise KeyError("mine")


ERRORS: dict[str, tuple[Callable[[], nn.Module], Tensors, bool]] = {
    "missing": (lambda: nn.Linear(4, 4), {"bias": torch.ones(4)}, True),
    "missing, and no matter": (lambda: nn.Linear(4, 4), {"bias": torch.ones(4)}, False),
    "unexpected": (
        lambda: nn.Linear(4, 1, bias=False),
        {"weight": torch.ones(1, 4), "more": torch.ones(1)},
        True,
    ),
    "another shape": (lambda: nn.Linear(4, 4, bias=False), {"weight": torch.ones(4, 5)}, False),
    "raised by an override": (lambda: Raising(4, 4), {"bias": torch.ones(4)}, True),
}


@pytest.mark.parametrize("what", ERRORS)
def test_results_and_errors_are_torchs(map_tensors: Map, what: str) -> None:
    make, values, strict = ERRORS[what]
    tensors = map_tensors(values)
    ends = []
    for load in (stock, ours):
        try:
            ends.append(load(make(), tensors, strict=strict))
        except (RuntimeError, KeyError) as error:
            ends.append((type(error), str(error)))
    assert ends[0] == ends[1]
    assert not hasattr(load_state._thread, "is_loading") or not load_state._thread.is_loading


def test_what_is_no_dict_is_refused_as_by_torch() -> None:
    thing: Any = [1]
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        Plain().load_state_dict(thing)


def test_threads_load_at_once(map_tensors: Map) -> None:
    tensors = map_tensors({"weight": torch.randn(4, 6), "table": torch.randn(4, 6)})
    modules = [Plain() for _ in range(40)]
    parts = [modules[at::4] for at in range(4)]
    threads = [
        threading.Thread(
            target=lambda part: [it.load_state_dict(tensors) for it in part], args=(p,)
        )
        for p in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fill(modules[0].weight, 1)
    for module in modules[1:]:
        assert torch.equal(module.weight, tensors["weight"])
        assert is_over_block(module.weight)


# ---- who still has the parameters in a variable


@pytest.mark.parametrize("kind", [Plain, Tied])
def test_load_model_of_safetensors_shares(
    map_tensors: Map, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    import safetensors.torch

    module, expected = kind(), kind()
    tensors = map_tensors(values_for(module))
    tensors.pop("head.weight", None)
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_, **__: tensors)
    missing, unexpected = safetensors.torch.load_model(module, "file")
    assert (set(missing), unexpected) == (set(), [])
    stock(expected, tensors, strict=False)
    assert_alike(module, expected)
    assert all(map(is_over_block, everything(module).values()))
