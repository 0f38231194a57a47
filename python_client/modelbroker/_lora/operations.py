"""What a layer does with a weight, without the weight: plain functions of its settings.

A weight is [out, in, *kernel] here, however the layer stores it; a norm's has the norm's shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

_CONVOLUTIONS: dict[int, Any] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


class Operation(Protocol):
    """A layer's own linear operation; holds settings only, so that a copied layer can keep it."""

    @property
    def channel_dimension(self) -> int:
        """Where inputs and outputs have their channels, from the end."""

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for this weight, without a bias."""

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A matrix over the channels alone: no stride, no padding. As `shaped` returns it."""

    def shaped(self, matrix: Tensor) -> Tensor:
        """A matrix [out, in] as `pointwise` takes it: a view."""

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:
        """One value a channel, as it multiplies or adds to `like`: a view."""

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's input in this dtype."""


@dataclass(frozen=True)
class Linear:
    """y = x·Wᵀ over the last dimension."""

    @property
    def channel_dimension(self) -> int:
        """As Operation says."""
        return -1

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        return functional.linear(x, weight)

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As Operation says."""
        return functional.linear(x, weight, bias)

    def shaped(self, matrix: Tensor) -> Tensor:
        """As Operation says."""
        return matrix

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - last dimension always
        """As Operation says."""
        return vector

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As Operation says."""
        return x if x.dtype == dtype else x.to(dtype)


@dataclass(frozen=True)
class Convolution:
    """A convolution of one to three dimensions in one group."""

    dimensions: int
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    padding_of_input: tuple[int, ...]  # for functional.pad, where the mode is not "zeros"

    @property
    def channel_dimension(self) -> int:
        """As Operation says."""
        return -1 - self.dimensions

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x = functional.pad(x, self.padding_of_input, mode=self.padding_mode)
            padding = (0,) * self.dimensions
        convolution = _CONVOLUTIONS[self.dimensions]
        result: Tensor = convolution(x, weight, None, self.stride, padding, self.dilation)
        return result

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As Operation says."""
        result: Tensor = _CONVOLUTIONS[self.dimensions](x, weight, bias)
        return result

    def shaped(self, matrix: Tensor) -> Tensor:
        """As Operation says."""
        return matrix.reshape(*matrix.shape[:2], *(1,) * self.dimensions)

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - the dimensions are known
        """As Operation says."""
        return vector.reshape(-1, *(1,) * self.dimensions)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As Operation says."""
        return x if x.dtype == dtype else x.to(dtype)


@dataclass(frozen=True)
class Lookup(Linear):
    """An embedding: its input are numbers of columns of the weight [width, entries]."""

    factor: float = 1.0  # what some embeddings multiply their output by

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        found = functional.embedding(x, weight.t())
        return found if self.factor == 1.0 else found * self.factor

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002 - numbers stay numbers
        """As Operation says."""
        return x


class _Norm:
    """What all norms share: they have one value a channel and mix no channels."""

    @property
    def channel_dimension(self) -> int:
        """A norm has no matrix."""
        raise NotImplementedError

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A norm has no matrix."""
        raise NotImplementedError

    def shaped(self, matrix: Tensor) -> Tensor:
        """A norm has no matrix."""
        raise NotImplementedError

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As Operation says."""
        return x if x.dtype == dtype else x.to(dtype)


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """torch's LayerNorm and its subclasses."""

    shape: tuple[int, ...]
    epsilon: float

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        return functional.layer_norm(x, self.shape, weight, None, self.epsilon)

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - last dimensions
        """As Operation says."""
        return vector.reshape(self.shape)


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """torch's GroupNorm and its subclasses."""

    groups: int
    epsilon: float

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        return functional.group_norm(x, self.groups, weight, None, self.epsilon)

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:
        """As Operation says."""
        return vector.reshape(-1, *(1,) * (like.dim() - 2))


@dataclass(frozen=True)
class RootMeanSquare(_Norm):
    """RMSNorm of torch, of transformers and of diffusers."""

    shape: tuple[int, ...]
    epsilon: float | None

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As Operation says."""
        wide = x if x.dtype == torch.float64 else x.float()
        epsilon = torch.finfo(x.dtype).eps if self.epsilon is None else self.epsilon
        dimensions = tuple(range(-len(self.shape), 0))
        mean = wide.pow(2).mean(dimensions, keepdim=True)
        return (wide * torch.rsqrt(mean + epsilon)).to(x.dtype) * weight

    def spread(self, vector: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - last dimensions
        """As Operation says."""
        return vector.reshape(self.shape)


def elements(shape: tuple[int, ...]) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)
