"""Which modules an adapter can run beside, and what each of them is."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import operations

# What tensors are multiplied in; a weight of another dtype is packed, or only stored that way.
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """A module as adapters see it. Its weight is [out, in, *kernel], a norm's [*shape]."""

    module: nn.Module
    operation: operations.Operation
    out_features: int
    in_features: int
    kernel: tuple[int, ...] = ()
    transposed: bool = False  # the module keeps [in, out]
    norm: tuple[int, ...] | None = None  # the shape of a norm's weight

    @property
    def what(self) -> str:
        """Its class, for messages."""
        return type(self.module).__name__

    @functools.cached_property
    def form(self) -> tuple[object, ...]:
        """Whether a change fits, and in which shapes, is the same for layers of one form."""
        kinds = type(self.module), type(self.operation)
        return *kinds, self.out_features, self.in_features, self.kernel, self.transposed, self.norm

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, as `operation` takes it."""
        return self.norm or (self.out_features, self.in_features, *self.kernel)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the weight, as the module keeps it."""
        return self.shape[::-1] if self.transposed else self.shape

    def stored(self, weight: Tensor) -> Tensor:
        """A weight of `shape` as the module keeps it: a view. The other way as well."""
        return weight.t() if self.transposed else weight

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for this weight [out, in, *kernel], without a bias."""
        return self.operation.apply(x, weight)

    def weight(self) -> Tensor | None:
        """The module's weight as it keeps it, or None where it is packed (quantised)."""
        weight = getattr(self.module, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != self.stored_shape:
            return None
        return weight.detach() if weight.dtype in COMPUTED else None

    def bias(self) -> Tensor | None:
        """The module's bias."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def without_bias(self, y: Tensor) -> Tensor:
        """The layer's output less its bias: what `Beside.add` wants as `plain`."""
        bias = self.bias()
        return y if bias is None else y - self.operation.spread(bias, y)


def layer_of(module: nn.Module) -> Layer | str:
    """The module as adapters see it, or why nothing can run beside it."""
    if type(module) is nn.Linear:  # most are
        return _linear(module)
    name = type(module).__name__
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its weight is read without calling it"
    if isinstance(module, nn.Embedding):
        return _embedding(module)
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module)
    if isinstance(module, nn.GroupNorm):
        return _group_norm(module)
    if isinstance(module, nn.LayerNorm):
        return _last_dimensions(module, tuple(module.normalized_shape), module.eps)
    if name.endswith("RMSNorm") or name == "T5LayerNorm":
        return _root_mean_square(module)
    if _is_transposed_linear(module):
        return _transposed_linear(module)
    return _linear(module)


def _linear(module: Any) -> Layer | str:
    out_features = getattr(module, "out_features", None)
    in_features = getattr(module, "in_features", None)
    if not isinstance(out_features, int) or not isinstance(in_features, int):
        return f"adapters cannot run beside {type(module).__name__}"
    return Layer(module, operations.Linear(), out_features, in_features)


def _transposed_linear(module: Any) -> Layer:
    return Layer(module, operations.Linear(), module.nf, module.nx, transposed=True)


def _is_transposed_linear(module: Any) -> bool:
    """Of transformers' Conv1D, which is not imported for this: a linear layer, despite its name."""
    if not any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (
        getattr(module, "nx", None),
        getattr(module, "nf", None),
    )


def _embedding(module: nn.Embedding) -> Layer | str:
    if module.max_norm is not None:
        return "it writes its own weight (max_norm)"
    scale = getattr(module, "embed_scale", 1.0)
    if isinstance(scale, Tensor):
        scale = scale.to(module.weight.dtype)
    lookup = operations.Lookup(float(scale))
    return Layer(module, lookup, module.embedding_dim, module.num_embeddings, transposed=True)


def _convolution(module: nn.modules.conv._ConvNd) -> Layer | str:
    if module.transposed:
        return "it is a transposed convolution"
    if module.groups != 1:
        return f"it is a grouped convolution ({module.groups} groups)"
    padding = module.padding
    operation = operations.Convolution(
        dimensions=len(module.kernel_size),
        stride=tuple(module.stride),
        padding=padding if isinstance(padding, str) else tuple(padding),
        dilation=tuple(module.dilation),
        padding_mode=module.padding_mode,
        padding_of_input=tuple(module._reversed_padding_repeated_twice),
    )
    return Layer(
        module, operation, module.out_channels, module.in_channels, tuple(module.kernel_size)
    )


def _group_norm(module: nn.GroupNorm) -> Layer | str:
    if not module.affine:
        return "it has no weight"
    channels = module.num_channels
    operation = operations.GroupNorm(module.num_groups, module.eps)
    return Layer(module, operation, channels, channels, norm=(channels,))


def _last_dimensions(module: nn.Module, shape: tuple[int, ...], epsilon: float) -> Layer | str:
    if getattr(module, "weight", None) is None:
        return "it has no weight"
    size = operations.elements(shape)
    return Layer(module, operations.LayerNorm(shape, epsilon), size, size, norm=shape)


def _root_mean_square(module: nn.Module) -> Layer | str:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "it has no weight"
    epsilon = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    shape = tuple(weight.shape)
    size = operations.elements(shape)
    operation = operations.RootMeanSquare(shape, epsilon)
    return Layer(module, operation, size, size, norm=shape)
