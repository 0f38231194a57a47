"""Layers, and adapters of each kind for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from modelbroker._lora import kinds, layers
from modelbroker._lora.layers import Layer
from support.lora_formulae import RANK, Group, changed_weights, forward, relative, with_weights

Maker: TypeAlias = "Callable[[Layer], Group]"

ALPHA = 2.0
STRENGTHS = (1.0, 0.3, -1.0, 0.5)


@dataclass(frozen=True)
class Base:
    """A layer and an input for it."""

    make: Callable[[], nn.Module]
    size: tuple[int, ...] = (2, 5, 6)
    entries: int = 0  # of an embedding: the input are numbers below this
    library: str = ""  # the layer's, where it is not torch's: slow to import
    exact: bool = True  # the layer itself computes in float64

    def input(self) -> Tensor:
        if self.entries:
            return torch.randint(0, self.entries, self.size)
        return torch.randn(self.size, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A kind, what makes its tensors for a layer, and the layers that it is tried on."""

    kind: str
    make: Maker
    bases: dict[str, Base]
    name: str = ""
    peft: bool = False

    @property
    def id(self) -> str:
        return self.name or self.kind


def _conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    made: nn.Module = Conv1D(8, 6)
    return made


def _llama_norm() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    made: nn.Module = LlamaRMSNorm(6)
    return made


def _diffusers_norm() -> nn.Module:
    from diffusers.models.normalization import RMSNorm

    made: nn.Module = RMSNorm(6, eps=1e-5, bias=True)
    return made


CONV2D_SIZE = (2, 6, 7, 9)
LINEAR = Base(lambda: nn.Linear(6, 8))
CONV2D = Base(lambda: nn.Conv2d(6, 8, 3, padding=1), CONV2D_SIZE)
MATRICES = {
    "linear": LINEAR,
    "linear without a bias": Base(lambda: nn.Linear(6, 8, bias=False)),
    "Conv1D of transformers": Base(_conv1d_of_transformers, library="transformers"),
}
CONV2D_1X1 = {"conv2d 1x1": Base(lambda: nn.Conv2d(6, 8, 1, stride=2), CONV2D_SIZE)}
CONVOLUTIONS = {
    "conv1d": Base(lambda: nn.Conv1d(6, 8, 3, stride=2, padding=2, dilation=2), (2, 6, 11)),
    "conv2d": CONV2D,
    "conv2d, all settings": Base(
        lambda: nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False),
        CONV2D_SIZE,
    ),
    "conv2d of one picture": Base(lambda: nn.Conv2d(6, 8, 3, padding="same"), CONV2D_SIZE[1:]),
    "conv2d, circular": Base(
        lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), CONV2D_SIZE
    ),
    "conv3d": Base(lambda: nn.Conv3d(6, 8, (1, 2, 3), padding=(0, 1, 1)), (2, 6, 3, 4, 5)),
}
EMBEDDING = {"embedding": Base(lambda: nn.Embedding(6, 8, padding_idx=1), (2, 5), entries=6)}
ALL = {**MATRICES, **CONV2D_1X1, **CONVOLUTIONS}
NORMS = {
    "LayerNorm": Base(lambda: nn.LayerNorm(6)),
    "LayerNorm of two dimensions": Base(lambda: nn.LayerNorm((5, 6))),
    "GroupNorm": Base(lambda: nn.GroupNorm(3, 6), CONV2D_SIZE),
    "RMSNorm": Base(lambda: nn.RMSNorm(6)),
    "RMSNorm of transformers": Base(_llama_norm, library="transformers", exact=False),
    "RMSNorm of diffusers": Base(_diffusers_norm, library="diffusers", exact=False),
}


def each(*, library: bool) -> list[Any]:
    """Parameters of a test: each case with each of its layers that are torch's, or with the others.

    The others for a test that imports their libraries anyway.
    """
    return [
        pytest.param(case, base, id=f"{case.id}-{name}")
        for case in CASES
        for name, base in case.bases.items()
        if bool(base.library) == library
    ]


def check_equals_changed_weights(case: Case, base: Base) -> None:
    """Beside the layer, the adapter does what its change of the weight would do."""
    module, layer, x = made(base)
    group = case.make(layer)
    part = kinds.read("module", group, alpha=ALPHA, rslora=False, peft=case.peft)
    assert (part.kind, part.misfit(layer)) == (case.kind, "")
    weight: Any = module.weight
    before = weight.clone()
    beside = part.beside(layer, weight)
    for strength in STRENGTHS:
        changed = changed_weights(
            module, layer, group, alpha=ALPHA, strength=strength, peft=case.peft
        )
        wanted = with_weights(module, *changed, x)
        got = forward(module, layer, [(beside, strength)], x)
        assert relative(got, wanted) <= (1e-12 if base.exact else 1e-6)
    assert torch.equal(weight, before)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def lora(layer: Layer) -> Group:
    return {"down": random(RANK, layer.in_features), "up": random(layer.out_features, RANK)}


def lora_of_convolution(layer: Layer) -> Group:
    """As kohya stores a linear layer that was a 1x1 convolution."""
    return {name: tensor[..., None, None] for name, tensor in lora(layer).items()}


def lora_of_embedding(layer: Layer) -> Group:
    return {f"embedding_{name}": tensor for name, tensor in lora(layer).items()}


def locon(layer: Layer) -> Group:
    return {
        "down": random(RANK, layer.in_features, *layer.kernel),
        "up": random(layer.out_features, RANK, *(1 for _ in layer.kernel)),
    }


def tucker(layer: Layer) -> Group:
    ones = [1] * len(layer.kernel)
    return {
        "down": random(RANK, layer.in_features, *ones),
        "mid": random(2, RANK, *layer.kernel),
        "up": random(layer.out_features, 2, *ones),
    }


def loha(rank: int) -> Maker:
    """Of rank 1, it is applied as a product; of rank 3, as a change for the call."""

    def make(layer: Layer) -> Group:
        inputs = layer.in_features * math.prod(layer.kernel)
        return {
            "hada_w1_a": random(layer.out_features, rank),
            "hada_w1_b": random(rank, inputs),
            "hada_w2_a": random(layer.out_features, rank),
            "hada_w2_b": random(rank, inputs),
        }

    return make


def loha_of_cores(layer: Layer) -> Group:
    return {
        "hada_w1_a": random(RANK, layer.out_features),
        "hada_w1_b": random(RANK, layer.in_features),
        "hada_w2_a": random(RANK, layer.out_features),
        "hada_w2_b": random(RANK, layer.in_features),
        "hada_t1": random(RANK, RANK, *layer.kernel),
        "hada_t2": random(RANK, RANK, *layer.kernel),
    }


def _divided(size: int) -> tuple[int, int]:
    """As LyCORIS divides a size: by the largest divisor that is at most its root."""
    least = max(divisor for divisor in range(1, math.isqrt(size) + 1) if size % divisor == 0)
    return least, size // least


def lokr(first: str, second: str) -> Maker:
    """Each half `whole` or by `factors`, the second by a `core` too."""

    def make(layer: Layer) -> Group:
        outs, ins = _divided(layer.out_features), _divided(layer.in_features)
        group: Group = {}
        if first == "whole":
            group["lokr_w1"] = random(outs[0], ins[0])
        else:
            group["lokr_w1_a"] = random(outs[0], RANK)
            group["lokr_w1_b"] = random(RANK, ins[0])
        if second == "whole":
            group["lokr_w2"] = random(outs[1], ins[1], *layer.kernel)
        elif second == "factors":
            group["lokr_w2_a"] = random(outs[1], RANK)
            group["lokr_w2_b"] = random(RANK, ins[1] * math.prod(layer.kernel))
        else:
            group["lokr_w2_a"] = random(RANK, outs[1])
            group["lokr_w2_b"] = random(RANK, ins[1])
            group["lokr_t2"] = random(RANK, RANK, *layer.kernel)
        return group

    return make


def dora(change: Maker, axis: str) -> Maker:
    """With lengths of `rows` or `columns` as LyCORIS has them, or as PEFT has them."""

    def make(layer: Layer) -> Group:
        ones = [1] * len(layer.kernel)
        shape = {
            "rows": (layer.out_features, 1, *ones),
            "columns": (1, layer.in_features, *ones),
            "peft": (1, layer.out_features, *ones) if ones else (layer.out_features,),
        }[axis]
        return {**change(layer), "dora_scale": random(*shape).abs() + 0.5}

    return make


def diff(layer: Layer) -> Group:
    return {"diff": random(*layer.stored_shape)}


def diffs(layer: Layer) -> Group:
    return {**diff(layer), "diff_b": random(layer.out_features)}


def norm(layer: Layer) -> Group:
    return {"w_norm": random(*layer.stored_shape)}


def norms(layer: Layer) -> Group:
    return {**norm(layer), "b_norm": random(layer.out_features)}


def biases(layer: Layer) -> Group:
    """Of the adapter's second matrix, and one beside the adapter."""
    return {
        **lora(layer),
        "up_bias": random(layer.out_features),
        "diff_b": random(layer.out_features),
    }


CASES = [
    Case("LoRA", lora, {**MATRICES, **CONV2D_1X1, **EMBEDDING}),
    Case("LoRA", locon, CONV2D_1X1, "LoRA with a kernel of 1"),
    Case("LoRA", lora_of_convolution, {"linear": LINEAR}, "LoRA of a convolution"),
    Case("LoRA", lora_of_embedding, EMBEDDING, "LoRA of an embedding"),
    Case("LoRA", biases, {"linear": LINEAR, "conv2d 1x1": CONV2D_1X1["conv2d 1x1"]}, "biases"),
    Case("LoCon", locon, CONVOLUTIONS),
    Case("Tucker", tucker, {**CONV2D_1X1, **CONVOLUTIONS}),
    Case("LoHa", loha(1), {**ALL, **EMBEDDING}, "LoHa of rank 1"),
    Case("LoHa", loha(3), {**ALL, **EMBEDDING}, "LoHa of rank 3"),
    Case("LoHa", loha_of_cores, {**CONV2D_1X1, **CONVOLUTIONS}, "LoHa of cores"),
    Case("LoKr", lokr("whole", "whole"), ALL, "LoKr whole"),
    Case("LoKr", lokr("whole", "factors"), ALL, "LoKr by factors"),
    Case("LoKr", lokr("factors", "whole"), {"linear": LINEAR, "conv2d": CONV2D}, "LoKr, first"),
    Case("LoKr", lokr("factors", "factors"), {"linear": LINEAR, "conv2d": CONV2D}, "LoKr, both"),
    Case("LoKr", lokr("whole", "core"), {**CONV2D_1X1, **CONVOLUTIONS}, "LoKr by a core"),
    Case("DoRA", dora(lora, "rows"), {**MATRICES, **CONV2D_1X1}, "DoRA by rows"),
    Case("DoRA", dora(lora, "columns"), {**MATRICES, **CONV2D_1X1}, "DoRA by columns"),
    Case("DoRA", dora(locon, "rows"), CONVOLUTIONS, "DoRA of LoCon by rows"),
    Case("DoRA", dora(locon, "columns"), CONVOLUTIONS, "DoRA of LoCon by columns"),
    Case("DoRA", dora(tucker, "rows"), {"conv2d": CONV2D}, "DoRA of Tucker by rows"),
    Case("DoRA", dora(tucker, "columns"), {"conv2d": CONV2D}, "DoRA of Tucker by columns"),
    Case("DoRA", dora(loha(1), "rows"), {"linear": LINEAR}, "DoRA of LoHa by rows"),
    Case("DoRA", dora(loha(3), "rows"), {"conv2d": CONV2D}, "DoRA of LoHa of rank 3 by rows"),
    Case("DoRA", dora(loha(3), "columns"), {"conv2d": CONV2D}, "DoRA of LoHa by columns"),
    Case("DoRA", dora(lokr("whole", "factors"), "rows"), ALL, "DoRA of LoKr by rows"),
    Case("DoRA", dora(lokr("whole", "factors"), "columns"), ALL, "DoRA of LoKr by columns"),
    Case("DoRA", dora(lokr("whole", "core"), "columns"), CONVOLUTIONS, "DoRA of LoKr by a core"),
    Case("DoRA", dora(lora, "peft"), {**MATRICES, **CONV2D_1X1, **EMBEDDING}, "DoRA of PEFT", True),
    Case("DoRA", dora(locon, "peft"), CONVOLUTIONS, "DoRA of PEFT's LoCon", True),
    Case("diff", diff, {**ALL, **EMBEDDING}),
    Case("diff", diffs, ALL, "diff with a bias"),
    Case("bias", lambda layer: {"diff_b": random(layer.out_features)}, ALL),
    Case("norm", norm, NORMS),
    Case("norm", norms, NORMS, "norm with a bias"),
    Case("norm", lambda layer: {"b_norm": random(layer.out_features)}, NORMS, "bias of a norm"),
]


def made(base: Base, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Layer, Tensor]:
    """A layer with random weights, as adapters see it, and an input."""
    module = base.make().to(dtype)
    for parameter in module.parameters():
        parameter.requires_grad_(False).normal_()
    layer = layers.layer_of(module)
    assert isinstance(layer, Layer), layer
    x = base.input()
    return module, layer, x if base.entries else x.to(dtype)
