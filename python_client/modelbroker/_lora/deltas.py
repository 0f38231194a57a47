"""What an adapter adds to a weight, kept as the small tensors that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .layers import Layer
from .operations import Lookup, Operation, elements

Change = Callable[[Tensor], Tensor]


class Delta(Protocol):
    """A change of a weight, at weight 1 and before the scale."""

    @property
    def out_features(self) -> int:
        """Rows of the change."""

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""

    def changed(self, change: Change) -> Delta:
        """The same with `change` of each tensor."""

    def misfit(self, layer: Layer) -> str:
        """Why it cannot be applied to this layer, or ''."""

    def fitted(self, layer: Layer) -> Delta:
        """Views in the shapes that the layer's operation takes; where it has no misfit."""

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """What it adds to the layer's output. Of a fitted one, as are the two below."""

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """Its change as a product of [out, rank] and [rank, in, *kernel], if that is small."""

    def dense(self) -> Tensor:
        """The change itself, [out, in, *kernel]."""


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as messages have it."""
    return str(list(shape)) if shape else "a scalar"


def viewed(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor in another shape: itself where it has that one, which is quicker than a view."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


@dataclass(eq=False)
class Factors:
    """up · [mid ·] down: LoRA, LoCon and Tucker."""

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    up_bias: Tensor | None = None

    @property
    def out_features(self) -> int:
        """As Delta says."""
        return self.up.shape[0]

    def tensors(self) -> list[Tensor]:
        """As Delta says."""
        if self.mid is None and self.up_bias is None:  # most
            return [self.down, self.up]
        optional = (self.mid, self.up_bias)
        return [self.down, self.up, *(tensor for tensor in optional if tensor is not None)]

    def changed(self, change: Change) -> Factors:
        """As Delta says."""
        return Factors(
            change(self.down),
            change(self.up),
            None if self.mid is None else change(self.mid),
            None if self.up_bias is None else change(self.up_bias),
        )

    def misfit(self, layer: Layer) -> str:
        """As Delta says."""
        shape = (self.out_features, *self.down.shape[1:])
        kernel = layer.kernel
        if self.mid is not None:
            shape = (self.out_features, self.down.shape[1], *self.mid.shape[2:])
            if tuple(self.mid.shape[2:]) != kernel or isinstance(layer.operation, Lookup):
                return not_of_this_shape(shape, layer)
            kernel = ()
        inputs = elements(tuple(self.down.shape[1:]))
        own_kernel = tuple(self.down.shape[2:])
        fits = (
            self.out_features == layer.out_features
            and inputs == layer.in_features * elements(kernel)
            and (own_kernel in ((), kernel) or elements(own_kernel) == elements(kernel) == 1)
        )
        return "" if fits else not_of_this_shape(shape, layer)

    def fitted(self, layer: Layer) -> Factors:
        """As Delta says."""
        rank, wide = self.down.shape[0], self.up.shape[1]
        ones = (1,) * len(layer.kernel)
        up = viewed(self.up, (layer.out_features, wide, *ones))
        if self.mid is None:
            down = viewed(self.down, (rank, layer.in_features, *layer.kernel))
            if down is self.down and up is self.up:
                return self
            return Factors(down, up, None, self.up_bias)
        down = viewed(self.down, (rank, layer.in_features, *ones))
        return Factors(down, up, self.mid, self.up_bias)

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """As Delta says."""
        if self.mid is None:
            inner = operation.apply(x, self.down)
        else:
            inner = operation.apply(operation.pointwise(x, self.down), self.mid)
        return operation.pointwise(inner, self.up, self.up_bias)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """As Delta says."""
        up = self.up.flatten(1)
        if self.mid is None:
            return up, self.down
        return up, torch.einsum("mn...,ni->mi...", self.mid, self.down.flatten(1))

    def dense(self) -> Tensor:
        """As Delta says."""
        up, down = self.low_rank()
        return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


@dataclass(eq=False)
class Whole:
    """The change as it is: full `diff`, and a norm's."""

    diff: Tensor

    @property
    def out_features(self) -> int:
        """As Delta says."""
        return self.diff.shape[0]

    def tensors(self) -> list[Tensor]:
        """As Delta says."""
        return [self.diff]

    def changed(self, change: Change) -> Whole:
        """As Delta says."""
        return Whole(change(self.diff))

    def misfit(self, layer: Layer) -> str:
        """As Delta says."""
        shape = tuple(self.diff.shape)
        wanted = layer.stored_shape
        if shape == wanted or _without_ones(shape, len(wanted)) == wanted:
            return ""
        return not_of_this_shape(shape, layer)

    def fitted(self, layer: Layer) -> Whole:
        """As Delta says."""
        return Whole(layer.stored(self.diff.reshape(layer.stored_shape)))

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """As Delta says."""
        return operation.apply(x, self.diff)

    def low_rank(self) -> None:
        """As Delta says."""
        return

    def dense(self) -> Tensor:
        """As Delta says."""
        return self.diff


def not_of_this_shape(shape: tuple[int, ...], layer: Layer) -> str:
    """The reason where a change is for another layer."""
    return (
        f"it changes a weight of {shape_text(shape)}, "
        f"and this {layer.what}'s is {shape_text(layer.stored_shape)}"
    )


def _without_ones(shape: tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """Without the kernel of a 1x1 convolution that the layer has as a matrix."""
    if all(size == 1 for size in shape[dimensions:]):
        return shape[:dimensions]
    return shape
