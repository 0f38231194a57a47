"""Each kind of adapter beside each type of layer equals a layer whose weight was changed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelbroker._lora import dora, kinds
from support import lora_cases as cases
from support import lora_formulae as formulae
from support.lora_cases import ALPHA, Base, Case

pytestmark = pytest.mark.usefixtures("same_numbers")


@pytest.mark.parametrize(("case", "base"), cases.each(library=False))
def test_equals_changed_weights(case: Case, base: Base) -> None:
    cases.check_equals_changed_weights(case, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_is_within_four_roundings_of_float64(case: Case, dtype: torch.dtype) -> None:
    base = next(base for base in case.bases.values() if not base.library)
    module, layer, x = cases.made(base, dtype)
    group = {role: tensor.to(dtype) for role, tensor in case.make(layer).items()}
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=case.peft)
    own: Any = module.weight
    got = formulae.forward(module, layer, [(part.beside(layer, own), 0.3)], x)
    assert got.dtype == dtype

    exact, exact_layer, _ = cases.made(base)
    exact.load_state_dict(module.state_dict())
    changed = formulae.changed_weights(
        exact,
        exact_layer,
        {role: tensor.double() for role, tensor in group.items()},
        alpha=ALPHA,
        strength=0.3,
        peft=case.peft,
    )
    wanted = formulae.with_weights(exact, *changed, x if base.entries else x.double())
    assert formulae.relative(got, wanted) <= 4 * torch.finfo(dtype).eps


COMPILED = [
    ("LoRA", "linear"),
    ("LoCon", "conv2d, circular"),
    ("Tucker", "conv3d"),
    ("LoHa of rank 1", "conv2d"),
    ("LoHa of cores", "conv1d"),
    ("LoKr by factors", "linear"),
    ("LoKr by a core", "conv2d of one picture"),
    ("DoRA by rows", "linear"),
    ("DoRA of LoCon by columns", "conv2d"),
    ("DoRA of PEFT", "embedding"),
    ("diff with a bias", "conv2d"),
    ("norm with a bias", "RMSNorm"),
]


@pytest.mark.parametrize(("name", "layer_name"), COMPILED)
def test_compiles_whole_and_at_most_twice(name: str, layer_name: str) -> None:
    case = next(case for case in cases.CASES if case.id == name)
    module, layer, x = cases.made(case.bases[layer_name])
    part = kinds.read("module", case.make(layer), alpha=ALPHA, rslora=False, peft=case.peft)
    own: Any = module.weight
    beside = part.beside(layer, own)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    def plain(x: Tensor, strength: float) -> Tensor:
        return formulae.forward(module, layer, [(beside, strength)], x)

    torch._dynamo.reset()
    compiled = torch.compile(plain, fullgraph=True, backend=backend)
    for strength in (1.0, 0.3, -1.0):
        assert torch.equal(compiled(x, strength), plain(x, strength))
    assert len(graphs) <= 2


def test_several_add_up() -> None:
    makers = {
        "LoRA": cases.lora,
        "rows": cases.dora(cases.lora, "rows"),
        "columns": cases.dora(cases.lora, "columns"),
        "other columns": cases.dora(cases.lokr("whole", "factors"), "columns"),
        "diff": cases.diffs,
    }
    module, layer, x = cases.made(cases.LINEAR)
    own: Any = module.weight
    own_bias: Any = module.bias
    weight, bias = own.clone(), own_bias.clone()
    besides = []
    for strength, make in zip((0.5, 0.3, -0.4, 1.2, 2.0), makers.values(), strict=True):
        group = make(layer)
        part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=False)
        besides.append((part.beside(layer, own), strength))
        changed = formulae.changed_weights(module, layer, group, alpha=ALPHA, strength=strength)
        weight += changed[0] - own
        assert changed[1] is not None
        bias += changed[1] - own_bias
    wanted = formulae.with_weights(module, weight, bias, x)
    assert formulae.relative(formulae.forward(module, layer, besides, x), wanted) <= 1e-12


class Made(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """The most elements of a tensor that was made, in memory of its own, while this was on."""

    most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None and not function.is_view:
            self.most = max(self.most, made.numel())
        return made


NEVER_WHOLE = {
    "LoRA": cases.lora,
    "LoHa": cases.loha(3),
    "LoKr": cases.lokr("whole", "factors"),
    "LoKr, both": cases.lokr("factors", "factors"),
    "DoRA by rows": cases.dora(cases.lora, "rows"),
    "DoRA by columns": cases.dora(cases.lora, "columns"),
    "DoRA of LoHa": cases.dora(cases.loha(3), "rows"),
    "DoRA of LoKr by rows": cases.dora(cases.lokr("whole", "factors"), "rows"),
    "DoRA of LoKr by columns": cases.dora(cases.lokr("whole", "factors"), "columns"),
}


@pytest.mark.parametrize("name", NEVER_WHOLE)
def test_never_makes_a_tensor_of_the_weights_size(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dora, "_CHUNK_ELEMENTS", 1000)
    base = Base(lambda: nn.Linear(100, 120), (1, 100))
    module, layer, x = cases.made(base, torch.float16)
    group = {role: tensor.half() for role, tensor in NEVER_WHOLE[name](layer).items()}
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=False)
    own: Any = module.weight
    made = Made()  # type: ignore[no-untyped-call]  # torch's
    with made:
        beside = part.beside(layer, own)
        formulae.forward(module, layer, [(beside, 0.5)], x)
    assert 0 < made.most <= own.numel() / 5


def test_lengths_of_dora_are_made_once_for_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = dora.lengths_of

    def counted(*args: Any, **named: Any) -> dora.Lengths:
        calls.append(1)
        return real(*args, **named)

    monkeypatch.setattr(dora, "lengths_of", counted)
    module, layer, x = cases.made(cases.LINEAR)
    group = cases.dora(cases.lora, "rows")(layer)
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=False)
    own: Any = module.weight
    for _ in range(2):
        part.beside(layer, own)
    assert len(calls) == 1
    own.mul_(2)
    changed = formulae.changed_weights(module, layer, group, alpha=ALPHA, strength=1.0)
    got = formulae.forward(module, layer, [(part.beside(layer, own), 1.0)], x)
    assert formulae.relative(got, formulae.with_weights(module, *changed, x)) <= 1e-12
    assert len(calls) == 2


def test_a_row_that_dora_leaves_nothing_of_is_zero() -> None:
    module, layer, x = cases.made(Base(lambda: nn.Linear(6, 8, bias=False)))
    own: Any = module.weight
    own[2] = 0
    group = cases.dora(cases.lora, "rows")(layer)
    group["up"][2] = 0
    for is_peft in (False, True):
        part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=is_peft)
        y = formulae.forward(module, layer, [(part.beside(layer, own), 1.0)], x)
        assert torch.count_nonzero(y[..., 2]) == 0
        assert y.isfinite().all()


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_tensors_are_the_files_own(case: Case) -> None:
    base = next(base for base in case.bases.values() if not base.library)
    module, layer, _ = cases.made(base)
    group = case.make(layer)
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=case.peft)
    own: Any = module.weight
    beside = part.beside(layer, own)
    of_file = {tensor.data_ptr() for tensor in group.values()}
    assert {tensor.data_ptr() for tensor in part.tensors()} == of_file
    if case.kind != "DoRA":
        assert {tensor.data_ptr() for tensor in beside.tensors()} == of_file
    assert (beside.dtype, beside.device) == (torch.float64, torch.device("cpu"))
    assert beside.to(torch.device("cpu"), torch.float32).dtype == torch.float32


def test_is_used_with_gradients_after_it_was_made_in_inference_mode() -> None:
    module, layer, x = cases.made(cases.LINEAR, torch.float32)
    group = cases.dora(cases.lora, "rows")(layer)
    own: Any = module.weight
    with torch.inference_mode():
        part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=False)
        beside = part.beside(layer, own)
    with torch.enable_grad():
        x.requires_grad_(True)
        total = formulae.forward(module, layer, [(beside, 1.0)], x).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch's
    assert x.grad is not None


@pytest.mark.parametrize(
    ("alpha", "rslora", "scale"),
    [
        (None, False, 1.0),
        (None, True, 1.0),
        (0.0, False, 0.0),
        (6.0, False, 2.0),
        (-3.0, False, -1.0),
        (6.0, True, 6 / math.sqrt(3)),
    ],
)
def test_scale(alpha: float | None, rslora: bool, scale: float) -> None:
    _, layer, _ = cases.made(cases.LINEAR)
    part = kinds.read("module", cases.lora(layer), alpha=alpha, rslora=rslora, peft=False)
    assert part.scale == pytest.approx(scale, rel=1e-15)


def test_alpha_counts_for_nothing_where_lokr_is_whole() -> None:
    _, layer, _ = cases.made(cases.LINEAR)
    group = cases.lokr("whole", "whole")(layer)
    assert kinds.read("module", group, alpha=0.5, rslora=False, peft=False).scale == 1.0
