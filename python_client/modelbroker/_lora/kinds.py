"""What one module gets from an adapter, read from its tensors' roles and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import InvalidArgumentError
from .beside import Beside
from .deltas import Delta, Factors, Whole, shape_text
from .layers import COMPUTED, Layer


@dataclass(frozen=True)
class Part:
    """What one module gets. Its tensors are views of the file's."""

    name: str  # the module's, as in the file
    kind: str
    delta_of_weight: Delta | None
    scale: float = 1.0
    bias: Tensor | None = None  # added to the layer's

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        delta = [] if self.delta_of_weight is None else self.delta_of_weight.tensors()
        return delta + [tensor for tensor in (self.bias,) if tensor is not None]

    def misfit(self, layer: Layer) -> str:
        """Why it cannot be applied to this layer, or ''."""
        is_norm = layer.norm is not None
        if is_norm and not isinstance(self.delta_of_weight, Whole | None):
            return f"a {self.kind} cannot be applied to a norm"
        if self.bias is not None and self.bias.numel() != layer.out_features:
            return (
                f"it changes a bias of {self.bias.numel()} values, "
                f"and this {layer.what} has {layer.out_features} outputs"
            )
        return "" if self.delta_of_weight is None else self.delta_of_weight.misfit(layer)

    def delta(self, layer: Layer, dtype: torch.dtype) -> Tensor:
        """What it adds to the layer's weight at weight 1, as the module keeps it; a new tensor."""
        if self.delta_of_weight is None:
            return torch.zeros(layer.stored_shape, dtype=dtype)
        delta = self.delta_of_weight.fitted(layer).changed(lambda tensor: tensor.to(dtype))
        return layer.stored(delta.dense() * self.scale)

    def delta_of_bias(self, dtype: torch.dtype) -> Tensor | None:
        """What it adds to the layer's bias at weight 1."""
        total = None if self.bias is None else self.bias.to(dtype)
        if isinstance(self.delta_of_weight, Factors) and self.delta_of_weight.up_bias is not None:
            scaled = self.delta_of_weight.up_bias.to(dtype) * self.scale
            total = scaled if total is None else total + scaled
        return total

    def beside(self, layer: Layer, base_weight: Tensor | None) -> Beside:
        """What runs beside this layer, in the dtype and on the device of its weight."""
        delta = None if self.delta_of_weight is None else self.delta_of_weight.fitted(layer)
        made = Beside(layer.operation, delta, self.scale, self.bias)
        return made.to(*_computed_in(self.tensors()[0], base_weight))


def _computed_in(own: Tensor, base: Tensor | None) -> tuple[torch.device, torch.dtype]:
    """Where and in what it is multiplied: as the weight is, if that can be computed with."""
    device, dtype = own.device, own.dtype if own.dtype in COMPUTED else torch.float32
    if base is None:
        return device, dtype
    if base.device.type != "meta":
        device = base.device
    return device, base.dtype if base.dtype in COMPUTED else dtype


class _Group:
    """The tensors of one module by role; remembers which were asked for."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self._tensors = tensors

    def __contains__(self, role: str) -> bool:
        return role in self._tensors

    def fault(self, words: str) -> InvalidArgumentError:
        """An error that names the module."""
        return InvalidArgumentError(f"{self.name}: {words}")

    def matrix(self, role: str, *, with_kernel: bool = True) -> Tensor:
        """A tensor of two dimensions, or more where it may have a kernel."""
        tensor = self._tensors.get(role)
        if tensor is None:
            there = " and ".join(repr(there) for there in sorted(self._tensors) if there != "alpha")
            raise self.fault(f"{role!r} is missing, with {there} there")
        most = 5 if with_kernel else 2
        if not 2 <= tensor.dim() <= most or not tensor.numel():
            raise self.fault(f"{role!r} must be a matrix, and is {shape_text(tuple(tensor.shape))}")
        return tensor

    def optional(self, role: str) -> Tensor | None:
        """A tensor that may be absent."""
        return self._tensors.get(role)

    def vector(self, role: str) -> Tensor | None:
        """One value an output; absent is None."""
        tensor = self._tensors.get(role)
        if tensor is None:
            return None
        if not tensor.dim() or max(tensor.shape) != tensor.numel() or not tensor.numel():
            raise self.fault(f"{role!r} must be a vector, and is {shape_text(tuple(tensor.shape))}")
        return tensor.reshape(-1)


def read(
    name: str,
    group: Mapping[str, Tensor],
    *,
    alpha: float | None,
    rslora: bool,
    peft: bool,  # noqa: ARG001 - of DoRA
) -> Part:
    """What the module `name` gets by these tensors, by their roles.

    `alpha` None means a scale of 1; 0 is legal. Raises InvalidArgumentError, which names the
    module, where the tensors do not belong together.
    """
    tensors = _Group(name, group)
    kind, delta, rank = _factors(tensors)
    return Part(name, kind, delta, _scale(alpha, rank, rslora), bias=tensors.vector("diff_b"))


def _scale(alpha: float | None, rank: int, rslora: bool) -> float:
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if rslora else rank)


def _factors(group: _Group) -> tuple[str, Delta, int]:
    down, up = group.matrix("down"), group.matrix("up")
    mid = group.matrix("mid") if "mid" in group else None
    wide = mid.shape[0] if mid is not None else down.shape[0]
    inner = mid.shape[1] if mid is not None else up.shape[1]
    if up.shape[1] != wide or down.shape[0] != inner:
        raise group.fault(
            f"the ranks disagree: 'down' is {shape_text(tuple(down.shape))}, "
            f"'up' is {shape_text(tuple(up.shape))}"
            + (f", 'mid' is {shape_text(tuple(mid.shape))}" if mid is not None else "")
        )
    if any(size != 1 for size in up.shape[2:]):
        raise group.fault(f"'up' must be a matrix, and is {shape_text(tuple(up.shape))}")
    if mid is not None and any(size != 1 for size in down.shape[2:]):
        raise group.fault(
            f"'down' must be a matrix, with a 'mid' there, and is {shape_text(tuple(down.shape))}"
        )
    delta = Factors(down, up, mid, group.vector("up_bias"))
    if mid is not None:
        return "Tucker", delta, down.shape[0]
    has_kernel = any(size != 1 for size in down.shape[2:])
    return "LoCon" if has_kernel else "LoRA", delta, down.shape[0]
