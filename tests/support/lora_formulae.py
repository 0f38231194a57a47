"""The weights that an adapter makes, by the plain formulae; the forward of a layer beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modelbroker._lora import layers
from modelbroker._lora.beside import Beside
from modelbroker._lora.layers import Layer

Group: TypeAlias = "dict[str, Tensor]"

RANK = 3  # of all adapters in these tests, but for some LoHa


def dense(group: Group, layer: Layer, alpha: float) -> Tensor | None:
    """What the adapter adds to the weight, [out, in, *kernel]."""
    named = {name.removeprefix("embedding_"): tensor for name, tensor in group.items()}
    shape = layer.shape
    if "mid" in named:
        up, down = named["up"].flatten(1), named["down"].flatten(1)
        return alpha / RANK * torch.einsum("mn...,im,nj->ij...", named["mid"], up, down)
    if "up" in named:
        return (alpha / RANK * named["up"].flatten(1) @ named["down"].flatten(1)).reshape(shape)
    if "hada_t1" in named:
        first, second = (
            torch.einsum(
                "ij...,ip,jr->pr...",
                named[f"hada_t{number}"],
                named[f"hada_w{number}_a"],
                named[f"hada_w{number}_b"],
            )
            for number in "12"
        )
        return alpha / RANK * first * second
    if "hada_w1_a" in named:
        first, second = (named[f"hada_w{n}_a"] @ named[f"hada_w{n}_b"] for n in "12")
        return (alpha / named["hada_w1_b"].shape[0] * first * second).reshape(shape)
    if "lokr_w1" in named or "lokr_w1_a" in named:
        return _kronecker(named, layer, alpha)
    if "diff" in named:
        return layer.stored(named["diff"])
    return named.get("w_norm")


def _kronecker(named: Group, layer: Layer, alpha: float) -> Tensor:
    scale = 1.0 if "lokr_w1" in named and "lokr_w2" in named else alpha / RANK
    first = named["lokr_w1"] if "lokr_w1" in named else named["lokr_w1_a"] @ named["lokr_w1_b"]
    if "lokr_w2" in named:
        second = named["lokr_w2"]
    elif "lokr_t2" in named:
        second = torch.einsum(
            "ij...,ip,jr->pr...", named["lokr_t2"], named["lokr_w2_a"], named["lokr_w2_b"]
        )
    else:
        second = (named["lokr_w2_a"] @ named["lokr_w2_b"]).reshape(
            named["lokr_w2_a"].shape[0], -1, *layer.kernel
        )
    blocks = torch.einsum("ac,bd...->abcd...", first, second)
    return scale * blocks.reshape(layer.shape)


def changed_weights(
    module: Any, layer: Layer, group: Group, *, alpha: float, strength: float, peft: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The layer's weight and bias as the module keeps them: W + strength·(W' - W).

    With `peft`, DoRA's weight at the strength, as PEFT has it.
    """
    old = layer.stored(module.weight)
    delta = dense(group, layer, alpha)
    delta = torch.zeros_like(old) if delta is None else delta
    new = old + strength * delta
    if "dora_scale" in group:
        vector, dimensions = _lengths(group["dora_scale"], layer, peft)
        if peft:
            new = vector * new / torch.linalg.vector_norm(new, dim=dimensions, keepdim=True)
        else:
            whole = old + delta
            whole = vector * whole / torch.linalg.vector_norm(whole, dim=dimensions, keepdim=True)
            new = old + strength * (whole - old)
    bias = getattr(module, "bias", None)
    added = group.get("diff_b", group.get("b_norm"))
    if "up_bias" in group:
        added = (added if added is not None else 0) + alpha / RANK * group["up_bias"]
    if added is not None:
        added = strength * added
        if layer.norm is not None:
            added = added.reshape(layer.norm)
        bias = added if bias is None else bias + added
    return layer.stored(new), bias


def _lengths(scale: Tensor, layer: Layer, peft: bool) -> tuple[Tensor, tuple[int, ...]]:
    kernel = tuple(range(2, 2 + len(layer.kernel)))
    if peft or scale.shape[0] != 1:
        return scale.reshape(-1, 1, *(1 for _ in kernel)), (1, *kernel)
    return scale, (0, *kernel)


def with_weights(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The module's output with other weights; a bias may come to one that has none."""
    named = {"weight": weight}
    has_bias = getattr(module, "bias", None) is not None
    if has_bias and bias is not None:
        named["bias"] = bias
    y: Tensor = torch.func.functional_call(module, named, (x,))
    if bias is not None and not has_bias:
        layer = layers.layer_of(module)
        assert isinstance(layer, Layer)
        y = y + layer.operation.spread(bias, y)
    return y


def forward(
    module: Callable[[Tensor], Tensor],
    layer: Layer,
    besides: list[tuple[Beside, float]],
    x: Tensor,
) -> Tensor:
    """The forward of a layer with adapters."""
    total = None
    for beside, weight in besides:
        gain = beside.gain(weight)
        if gain is not None:
            total = gain if total is None else total + gain
    y = module(x) if total is None else module(x * (1 + total))
    wants_plain = any(beside.needs_plain for beside, _ in besides)
    plain = layer.without_bias(module(x)) if wants_plain else None
    for beside, weight in besides:
        y = beside.add(y, x, plain, weight)
    return y


def relative(got: Tensor, wanted: Tensor) -> float:
    """The error's length over the wanted one's."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())
