"""shared(x): what of modules, pipelines and dicts is the broker's memory, and why the rest not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

import modelbroker
from modelbroker import _memory
from modelbroker import _pages as pages
from modelbroker._sharing.shared import Shared, shared
from support import files
from support.broker import BrokerProcess

torch.set_num_threads(1)


def network() -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1), torch.nn.Linear(40, 20)
    )


SIZES = {name: tensor.numel() * 4 for name, tensor in network().state_dict().items()}
ALL = sum(SIZES.values())


@pytest.fixture
def weights(broker: BrokerProcess, tmp_path: Path) -> Iterator[modelbroker.Weights]:
    tensors = {
        name: ("F32", list(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in network().state_dict().items()
    }
    path = files.write(tmp_path / "net.safetensors", tensors)
    with broker.connect() as client, client.attach(path) as attached:
        yield attached


@pytest.fixture
def module(weights: modelbroker.Weights) -> Any:
    with torch.device("meta"):
        made = network()
    weights.apply_to(made)
    return made


def in_numbers(found: Shared) -> tuple[int, int, int]:
    return found.shared_bytes, found.written_bytes, found.copied_bytes


def a_pipeline(module: Any, _: modelbroker.Weights) -> Any:
    parts = {"unet": module[0], "vae": module[1:], "tokenizer": object(), "safety": None}
    return SimpleNamespace(components=parts)


def as_safetensors_slices(_: Any, weights: modelbroker.Weights) -> Any:
    """Slices of one storage over the whole block, seen as what they are."""
    memory = _memory.find(weights["2.bias"].torch().data_ptr())
    assert memory is not None
    assert memory.header is not None
    whole = torch.from_numpy(np.asarray(memory)).untyped_storage()
    made = {}
    for name, _dtype, shape, offset, nbytes in memory.entries().values():
        start = memory.header.payload + offset
        piece = torch.asarray(whole[start : start + nbytes], dtype=torch.uint8)
        made[name] = piece.view(torch.float32).reshape(shape)
    return made


def in_itself(_: Any, weights: modelbroker.Weights) -> Any:
    state: dict[str, Any] = dict(weights.state_dict())
    state["self"] = state
    return state


FORMS: dict[str, Callable[[Any, modelbroker.Weights], Any]] = {
    "a module": lambda module, _: module,
    "a pipeline": a_pipeline,
    "weights": lambda _, weights: weights,
    "a state dict": lambda _, weights: weights.state_dict(),
    "a checkpoint": lambda _, weights: {"net": weights.state_dict(), "step": 3, "ema": None},
    "a list of modules": lambda module, _: [module[0], (module[1], module[2])],
    "parameters": lambda module, _: module.parameters(),
    "named parameters": lambda module, _: module.named_parameters(),
    "with views and ties": lambda module, _: [module, module, module[2].weight[3:5], module.cpu()],
    "slices of a storage": as_safetensors_slices,
    "a dict in itself": in_itself,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_shared_as_a_whole(
    module: Any, weights: modelbroker.Weights, form: str
) -> None:
    found = shared(FORMS[form](module, weights))
    assert in_numbers(found) == (ALL, 0, 0)
    assert (found.bytes, found.copied, found.written(), found.restore()) == (ALL, [], [], 0)


@pytest.mark.parametrize("form", [[], {}, torch.empty(0, 4), [torch.nn.Identity()]])
def test_what_has_no_bytes_is_not_an_error(form: Any) -> None:
    assert in_numbers(shared(form)) == (0, 0, 0)
    assert "0 B" in str(shared(form))


@pytest.mark.parametrize("form", [None, 3, "path", b"", object(), ["a"], [3], {"a": object()}])
def test_other_things_are_refused_by_the_name_of_their_type(form: Any) -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match="is not a torch module"):
        shared(form)


@pytest.mark.parametrize("form", ["a pipeline", "a module"])
def test_names_are_those_of_the_form(module: Any, weights: modelbroker.Weights, form: str) -> None:
    with torch.no_grad():
        module[0].bias += 1
    prefix = "unet." if form == "a pipeline" else "0."
    found = shared(FORMS[form](module, weights))
    assert found.written() == [f"{prefix}bias"]
    with pytest.raises(modelbroker.NotFoundError, match="'bias'"):
        found.restore(["bias"])
    found.restore(f"{prefix}bias")
    assert found.written() == weights.written() == []


def test_what_is_written_counts_under_these_tensors_alone(
    module: Any, weights: modelbroker.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {name: weights.raw(name).tobytes() for name in weights}
    found, stem = shared(module), shared({"stem": module[0]})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    assert set(found.written()) == set(base)
    assert (found.written_bytes, stem.written_bytes) == (2 * 4096, 4096)
    assert "8.19 kB written" in str(found)
    with monkeypatch.context() as patched:
        patched.setattr(pages, "open_pagemap", lambda: -1)
        assert found.written_bytes == 2 * 4096
    assert stem.written() == ["stem.weight", "stem.bias"]
    stem.restore()
    changed = {name for name in base if weights.raw(name).tobytes() != base[name]}
    assert changed == {name for name in base if not name.startswith("0.")} == set(found.written())
    found.restore(name for name in base if name != "2.bias")
    assert found.written() == ["2.bias"]
    assert found.restore() > 0
    assert {name: weights.raw(name).tobytes() for name in weights} == base
    assert found.written_bytes == 0


def test_it_keeps_nothing_alive(broker: BrokerProcess, weights: modelbroker.Weights) -> None:
    found = shared(weights)
    weights.raw("0.bias")[:] = 0
    assert found.written() == ["0.bias"]
    weights.release()
    gc.collect()
    assert broker.books()["leases"] == 0
    assert (found.written(), found.written_bytes, found.restore()) == ([], 0, 0)
    assert found.shared_bytes == ALL


def test_without_pagemap_and_block_what_is_written_is_not_known(
    broker: BrokerProcess, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "open_pagemap", lambda: -1)
    monkeypatch.setattr(pages, "read_smaps", lambda: "")
    monkeypatch.setattr(_memory.Memory, "again", unavailable)
    assert broker.alive()
    found = shared(module)
    assert "of which an unknown part written" in str(found)
    with pytest.raises(modelbroker.UnavailableError):
        found.written()


def unavailable(*_: object) -> None:
    raise modelbroker.UnavailableError("no broker")


# ---- why


def set_weight(change: Callable[[torch.Tensor], torch.Tensor], at: int = 0) -> Any:
    def act(module: Any) -> Any:
        module[at].weight = torch.nn.Parameter(change(module[at].weight.detach()))
        return module

    return act


def with_buffer(make: Callable[[], torch.Tensor]) -> Any:
    def act(module: Any) -> Any:
        module.register_buffer("extra", make(), persistent=False)
        return module

    return act


def shell(module: Any) -> Any:
    return torch.nn.ModuleDict({"model": set_weight(torch.clone)(module)})


UNKNOWN = "in no attached file under this name"
CHANGES: list[tuple[str, Any, tuple[str, int, str]]] = [
    (
        "half",
        set_weight(torch.Tensor.half),
        ("0.weight", 432, "float16 here, float32 in the file"),
    ),
    ("channels last", set_weight(lambda weight: weight.to(memory_format=torch.channels_last)),
     ("0.weight", 864, "channels_last")),
    ("1 x 1, channels last",
     set_weight(lambda weight: weight.clone().to(memory_format=torch.channels_last), 1),
     ("1.weight", 128, "channels_last")),
    ("clone", set_weight(torch.clone), ("0.weight", 864, "copied by the program")),
    ("transposed", set_weight(lambda weight: weight.t().contiguous(), 2),
     ("2.weight", 3200, "transposed and copied: [40, 20] here, [20, 40] in the file")),
    ("strides", set_weight(lambda weight: weight.t().contiguous().t(), 2),
     ("2.weight", 3200, "transposed")),
    ("reshaped", set_weight(lambda weight: weight.reshape(8, -1).clone()),
     ("0.weight", 864, "reshaped and copied: [8, 27] here, [8, 3, 3, 3] in the file")),
    ("below a prefix", shell, ("model.0.weight", 864, "copied by the program")),
    ("a part", lambda module: set_weight(torch.clone, 2)(module)[2],
     ("weight", 3200, "copied by the program")),
    ("a buffer", with_buffer(lambda: torch.ones(10)), ("extra", 40, UNKNOWN)),
    ("meta", with_buffer(lambda: torch.ones(10, device="meta")), ("extra", 40, "on meta")),
    ("sparse", with_buffer(lambda: torch.ones(4, 4).to_sparse()),
     ("extra", 64, "sparse_coo layout")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "copied"), [one[1:] for one in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_the_reason_for_a_copy(module: Any, act: Any, copied: tuple[str, int, str]) -> None:
    found = shared(act(module))
    assert found.copied == [copied]
    assert found.bytes == found.shared_bytes + copied[1]
    assert f"{copied[0]}: {copied[2]}" in str(found)


class Wrapping(torch.Tensor):
    """A subclass without memory of its own, as quantisers make them."""

    @staticmethod
    def __new__(cls, count: int) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, [count])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says so itself, but in its types
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} was called")


class Contrary(torch.Tensor):
    """A subclass that refuses everything; its memory is a tensor's."""

    @classmethod
    def __torch_function__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{func} was called")


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(10)


HIDDEN: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "a wrapper": (lambda: Wrapping(10), "a Wrapping, which does not show its memory"),
    "a fake": (fake, "a FakeTensor, which does not show its memory"),
    "a contrary one": (lambda: torch.ones(10).as_subclass(Contrary), UNKNOWN),
    "a lazy one": (torch.nn.UninitializedParameter, ""),
    "a freed one": (lambda: freed(torch.ones(10)), ""),
    "a quantised one": (
        lambda: torch.quantize_per_tensor(torch.ones(40), 1.0, 0, torch.qint8), UNKNOWN,
    ),
    "a conjugate": (lambda: torch.ones(5, dtype=torch.complex64).conj(), UNKNOWN),
}  # fmt: skip


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", HIDDEN)
def test_odd_tensors_are_copies_and_never_errors(kind: str) -> None:
    make, reason = HIDDEN[kind]
    odd = make()
    found = shared([odd, odd])
    assert found.copied == ([("0", 40, reason)] if reason else [])


def test_a_tensor_within_vmap_is_not_an_error() -> None:
    seen: list[Shared] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(shared([tensor]))
        return tensor * 2

    torch.vmap(look)(torch.ones(3, 4))
    assert [one.copied[0].reason for one in seen] == ["a Tensor, which does not show its memory"]


def test_it_prints_the_totals_and_the_ten_largest_copies(module: Any) -> None:
    for index in range(12):
        module.register_buffer(f"more{index}", torch.ones(1000 * (12 - index)))
    lines = str(shared(module)).splitlines()
    assert lines[:4] == [
        "316 kB in 18 tensors",
        "  shared 4.32 kB (1.4 %), of which 0 B written",
        "  copied 312 kB (98.6 %)",
        f"       48 kB  more0: {UNKNOWN}",
    ]
    assert lines[-2:] == [f"       12 kB  more9: {UNKNOWN}", "       12 kB  in 2 others"]
    assert len(lines) == 14


def test_every_name_of_a_copied_tensor_is_known_to_restore(module: Any) -> None:
    module[0].weight = torch.nn.Parameter(module[0].weight.detach().clone())
    assert shared(module).restore(["0.weight", "0.bias"]) == 0


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("converted", {}, "float32 here, float16 in the file"),
        ("left-out", {"skip": ["*"]}, "its file is not shared: in --skip"),
        ("deleted", {}, UNKNOWN),
    ],
)
def test_the_reason_is_known_where_no_mapping_is_left(
    broker: BrokerProcess, tmp_path: Path, name: str, options: Any, reason: str
) -> None:
    path = files.write(tmp_path / "m.safetensors", {name: ("F16", [100], bytes(200))})
    with modelbroker.sharing(endpoint=broker.endpoint, min_size=0, **options):
        converted = {name: load_file(path)[name].float()}
    if name == "deleted":
        path.unlink()
    assert shared(converted).copied == [(name, 400, reason)]
