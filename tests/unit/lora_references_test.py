"""Adapters beside a layer against LyCORIS' own merge and PEFT's own modules."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from lycoris import modules as lycoris_modules
from lycoris.functional import general, locon, loha, lokr
from torch import Tensor, nn

from modelbroker._lora import kinds
from modelbroker._lora.layers import Layer
from support import lora_cases as cases
from support import lora_formulae as formulae
from support.lora_cases import ALPHA, Base, Case
from support.lora_formulae import Group

pytestmark = pytest.mark.usefixtures("same_numbers")


@pytest.mark.parametrize(("case", "base"), cases.each(library=True))
def test_equals_changed_weights_beside_layers_of_libraries(case: Case, base: Base) -> None:
    cases.check_equals_changed_weights(case, base)


LYCORIS_KINDS = {"LoRA", "LoCon", "Tucker", "LoHa", "LoKr", "DoRA"}
BY_LYCORIS = [
    parameter
    for parameter in cases.each(library=False)
    if parameter.values[0].kind in LYCORIS_KINDS and not parameter.values[0].peft
]


def lycoris_delta(group: Group) -> Tensor:
    """The change, [out, in times kernel], by the functions of LyCORIS."""
    named = {name.removeprefix("embedding_"): tensor for name, tensor in group.items()}
    get = named.get
    rank_of = {"down": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0}
    rank = next((named[name].shape[at] for name, at in rank_of.items() if name in named), 1)
    if "down" in named:
        made = locon.diff_weight(named["down"], named["up"], get("mid"), gamma=ALPHA / rank)
    elif "hada_w1_a" in named:
        halves = ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")
        gamma = torch.tensor(ALPHA / rank, dtype=torch.float64)
        made = loha.diff_weight(*(get(f"hada_{name}") for name in halves), gamma=gamma)
    else:
        factors = [
            get(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        ]
        # It divides by the columns of w2_a, which is not the rank where there is a core.
        wrong = named["lokr_w2_a"].shape[1] / rank if "lokr_t2" in named else 1
        made = lokr.diff_weight(*factors, gamma=ALPHA * wrong)
    return torch.as_tensor(made)


@pytest.mark.parametrize(("case", "base"), BY_LYCORIS)
def test_equals_the_functions_of_lycoris(case: Case, base: Base) -> None:
    module, layer, x = cases.made(base)
    group = case.make(layer)
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=False)
    delta = lycoris_delta(group).reshape(layer.shape)
    got = layer.stored(part.delta(layer, torch.float64))
    torch.testing.assert_close(got, delta, rtol=0, atol=1e-12)

    old: Any = module.weight
    weight = layer.stored(old) + delta
    if "dora_scale" in group:
        by_rows = group["dora_scale"].shape[0] != 1
        weight = general.weight_decompose(weight, group["dora_scale"], 1, by_rows)
    bias = formulae.changed_weights(module, layer, group, alpha=ALPHA, strength=1.0)[1]
    wanted = formulae.with_weights(module, layer.stored(weight), bias, x)
    beside = part.beside(layer, old)
    assert formulae.relative(formulae.forward(module, layer, [(beside, 1.0)], x), wanted) <= 1e-12


KEYS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
WIDE = {
    "linear": Base(lambda: nn.Linear(32, 64), (2, 5, 32)),
    "conv2d": Base(lambda: nn.Conv2d(32, 64, 3, padding=1), (2, 32, 5, 4)),
    "LayerNorm": cases.NORMS["LayerNorm"],
    "GroupNorm": cases.NORMS["GroupNorm"],
}
# LyCORIS' own loader reads neither DoRA by columns, nor LoKr by a core, nor a core of Tucker that
# is not square. Its merge multiplies LoHa and LoKr by their scale twice, its forward once: alpha is
# the rank with these.
MERGED: list[tuple[str, cases.Maker, str, float]] = [
    ("LoRA", cases.lora, "linear", ALPHA),
    ("LoCon", cases.locon, "conv2d", ALPHA),
    ("LoHa", cases.loha(1), "linear", 1),
    ("LoHa", cases.loha(3), "conv2d", 3),
    ("LoHa", cases.loha_of_cores, "conv2d", 3),
    ("LoKr", cases.lokr("whole", "factors"), "linear", 3),
    ("LoKr", cases.lokr("whole", "factors"), "conv2d", 3),
    ("LoKr", cases.lokr("whole", "whole"), "linear", ALPHA),
    ("DoRA", cases.dora(cases.lora, "rows"), "linear", ALPHA),
    ("DoRA", cases.dora(cases.locon, "rows"), "conv2d", ALPHA),
    ("diff", cases.diffs, "linear", ALPHA),
    ("diff", cases.diffs, "conv2d", ALPHA),
    ("norm", cases.norms, "LayerNorm", ALPHA),
    ("norm", cases.norms, "GroupNorm", ALPHA),
]


@pytest.mark.parametrize(("kind", "make", "name", "alpha"), MERGED)
def test_equals_the_merge_of_lycoris(kind: str, make: cases.Maker, name: str, alpha: float) -> None:
    module, layer, x = cases.made(WIDE[name], torch.float32)
    group = {role: tensor.float() for role, tensor in make(layer).items()}
    state = {f"m.{KEYS.get(role, role)}": tensor for role, tensor in group.items()}
    state["m.alpha"] = torch.tensor(alpha)
    found, tensors = lycoris_modules.get_module(state, "m")
    reference = lycoris_modules.make_module(found, tensors, "m", module)
    weight, bias = reference.get_merged_weight(1, shape=layer.shape)
    own_bias: Any = module.bias
    wanted = formulae.with_weights(module, weight, own_bias if bias is None else bias, x)

    part = kinds.read("m", group, alpha=alpha, rslora=False, peft=False)
    assert part.kind == kind
    own: Any = module.weight
    got = formulae.forward(module, layer, [(part.beside(layer, own), 1.0)], x)
    assert formulae.relative(got, wanted) <= 1e-5


# PEFT gives its convolutions neither the layer's dilation nor its padding mode.
PEFT_BASES = {
    "linear": cases.LINEAR,
    "Conv1D of transformers": cases.MATRICES["Conv1D of transformers"],
    "embedding": cases.EMBEDDING["embedding"],
    "conv1d": Base(lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 11)),
    "conv2d": Base(lambda: nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=1), cases.CONV2D_SIZE),
    "conv3d": cases.CONVOLUTIONS["conv3d"],
}


def in_peft(base: Base, dtype: torch.dtype, **options: Any) -> tuple[Any, Layer, Tensor, Group]:
    """PEFT's module around a layer with random factors; the layer, an input, the factors."""
    module, layer, x = cases.made(base, dtype)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["layer"], init_lora_weights=False, **options
    )
    config.fan_in_fan_out = layer.transposed and base.library == "transformers"
    whole: Any = peft.inject_adapter_in_model(config, nn.ModuleDict({"layer": module}))
    wrapped = whole["layer"].to(dtype).requires_grad_(False)
    if isinstance(module, nn.Embedding):
        factors = wrapped.lora_embedding_A["default"], wrapped.lora_embedding_B["default"]
        group = {"embedding_down": factors[0], "embedding_up": factors[1]}
    else:
        factors = wrapped.lora_A["default"], wrapped.lora_B["default"]
        group = {"down": factors[0].weight, "up": factors[1].weight}
        if factors[1].bias is not None:
            group["up_bias"] = factors[1].bias
    if "default" in wrapped.lora_magnitude_vector:
        magnitude = wrapped.lora_magnitude_vector["default"].weight
        group["dora_scale"] = magnitude.mul_(1 + torch.rand_like(magnitude))
    return wrapped, layer, x, {role: tensor.detach() for role, tensor in group.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PEFT_BASES)
def test_is_bit_equal_to_peft(name: str, dtype: torch.dtype) -> None:
    wrapped, layer, x, group = in_peft(PEFT_BASES[name], dtype)
    part = kinds.read("m", group, alpha=6.0, rslora=False, peft=True)
    beside = part.beside(layer, wrapped.base_layer.weight)
    assert {id(tensor) for tensor in part.tensors()} == {id(tensor) for tensor in group.values()}
    for strength in (1.0, 0.5, -2.0):
        wrapped.set_scale("default", strength)
        got = formulae.forward(layer.module, layer, [(beside, strength)], x)
        assert torch.equal(got, wrapped(x))


@pytest.mark.parametrize("options", [{"lora_bias": True}, {"use_rslora": True}], ids=str)
def test_is_bit_equal_to_peft_with_options(options: dict[str, bool]) -> None:
    wrapped, layer, x, group = in_peft(cases.LINEAR, torch.float32, **options)
    part = kinds.read("m", group, alpha=6.0, rslora="use_rslora" in options, peft=True)
    beside = part.beside(layer, wrapped.base_layer.weight)
    assert torch.equal(formulae.forward(layer.module, layer, [(beside, 1.0)], x), wrapped(x))


@pytest.mark.parametrize("name", PEFT_BASES)
def test_equals_dora_of_peft(name: str) -> None:
    wrapped, layer, x, group = in_peft(PEFT_BASES[name], torch.float32, use_dora=True)
    part = kinds.read("m", group, alpha=6.0, rslora=False, peft=True)
    assert (part.kind, part.misfit(layer)) == ("DoRA", "")
    beside = part.beside(layer, wrapped.base_layer.weight)
    for strength in (1.0, 0.5, -2.0):
        wrapped.set_scale("default", strength)
        got = formulae.forward(layer.module, layer, [(beside, strength)], x)
        assert formulae.relative(got, wrapped(x)) <= 1e-5


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding"])
def test_is_bit_equal_to_peft_in_autocast(name: str) -> None:
    wrapped, layer, x, group = in_peft(PEFT_BASES[name], torch.float32)
    part = kinds.read("m", group, alpha=6.0, rslora=False, peft=True)
    beside = part.beside(layer, wrapped.base_layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = formulae.forward(layer.module, layer, [(beside, 1.0)], x)
        wanted = wrapped(x)
    assert got.dtype == wanted.dtype
    assert torch.equal(got, wanted)
