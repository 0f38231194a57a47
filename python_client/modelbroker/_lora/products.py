"""Changes that are products of small matrices: LoHa (element by element) and LoKr (Kronecker)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .deltas import Change, Factors, not_of_this_shape
from .layers import Layer
from .operations import Lookup, Operation, elements


@dataclass(eq=False)
class Hadamard:
    """(w1_a·w1_b) times (w2_a·w2_b), element by element: LoHa.

    With cores, each half is a Tucker product: w_a and w_b are [rank, out] and [rank, in] there.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    kernel: tuple[int, ...] = ()  # of the layer; known once fitted

    @property
    def out_features(self) -> int:
        """As Delta says."""
        return self.w1_a.shape[0 if self.t1 is None else 1]

    def tensors(self) -> list[Tensor]:
        """As Delta says."""
        cores = [core for core in (self.t1, self.t2) if core is not None]
        return [self.w1_a, self.w1_b, self.w2_a, self.w2_b, *cores]

    def changed(self, change: Change) -> Hadamard:
        """As Delta says."""
        return Hadamard(
            change(self.w1_a),
            change(self.w1_b),
            change(self.w2_a),
            change(self.w2_b),
            None if self.t1 is None else change(self.t1),
            None if self.t2 is None else change(self.t2),
            self.kernel,
        )

    def misfit(self, layer: Layer) -> str:
        """As Delta says."""
        inputs = self.w1_b.shape[1]
        if self.t1 is None:
            shape: tuple[int, ...] = (self.out_features, inputs)
            fits = inputs == layer.in_features * elements(layer.kernel)
        else:
            shape = (self.out_features, inputs, *self.t1.shape[2:])
            fits = shape[1:] == (layer.in_features, *layer.kernel)
        if fits and self.out_features == layer.out_features:
            return ""
        return not_of_this_shape(shape, layer)

    def fitted(self, layer: Layer) -> Hadamard:
        """As Delta says."""
        return Hadamard(self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.t1, self.t2, layer.kernel)

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """As Delta says; makes the change for the call where that is the smaller one."""
        if self.is_low_rank():
            factors = self.factors()
            up = operation.shaped(factors.up)
            return operation.pointwise(operation.apply(x, factors.down), up)
        return operation.apply(x, self.dense())

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """As Delta says."""
        if not self.is_low_rank():
            return None
        factors = self.factors()
        return factors.up, factors.down

    def is_low_rank(self) -> bool:
        """Whether its exact form of rank r² is smaller than the change itself."""
        if self.t1 is not None:
            return False
        rank = self.w1_b.shape[0] * self.w2_b.shape[0]
        out, inputs = self.w1_a.shape[0], self.w1_b.shape[1]
        return rank * (out + inputs) < out * inputs

    def factors(self) -> Factors:
        """The same as one product: all pairs of columns of the ups, and of rows of the downs."""
        up = (self.w1_a.unsqueeze(2) * self.w2_a.unsqueeze(1)).flatten(1)
        down = (self.w1_b.unsqueeze(1) * self.w2_b.unsqueeze(0)).flatten(0, 1)
        return Factors(self._with_kernel(down), up)

    def dense(self) -> Tensor:
        """As Delta says."""
        if self.t1 is None or self.t2 is None:
            return self._with_kernel((self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b))
        first = tucker(self.t1, self.w1_a, self.w1_b)
        return first * tucker(self.t2, self.w2_a, self.w2_b)

    def _with_kernel(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(matrix.shape[0], -1, *self.kernel)


@dataclass(eq=False)
class Half:
    """One side of a Kronecker product: whole, or two factors, or these and a core (Tucker)."""

    whole: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    core: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix, or of the convolution's weight as far as its factors tell."""
        if self.whole is not None:
            return tuple(self.whole.shape)
        a, b = self.pair()
        if self.core is not None:
            return (a.shape[1], b.shape[1], *self.core.shape[2:])
        return (a.shape[0], *b.shape[1:])

    def pair(self) -> tuple[Tensor, Tensor]:
        """Its factors."""
        assert self.a is not None
        assert self.b is not None
        return self.a, self.b

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        optional = (self.whole, self.a, self.b, self.core)
        return [tensor for tensor in optional if tensor is not None]

    def changed(self, change: Change) -> Half:
        """The same with `change` of each tensor."""
        return Half(
            None if self.whole is None else change(self.whole),
            None if self.a is None else change(self.a),
            None if self.b is None else change(self.b),
            None if self.core is None else change(self.core),
        )

    def dense(self) -> Tensor:
        """The matrix, or the convolution's weight."""
        if self.whole is not None:
            return self.whole
        a, b = self.pair()
        if self.core is not None:
            return tucker(self.core, a, b)
        return (a.flatten(1) @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])

    def shaped(self, inputs: int, kernel: tuple[int, ...], operation: Operation) -> Half:
        """Views as `run` takes them."""
        if self.whole is not None:
            return Half(self.whole.reshape(-1, inputs, *kernel))
        a, b = self.pair()
        if self.core is not None:
            return Half(a=a, b=b, core=self.core)
        return Half(a=operation.shaped(a), b=b.reshape(b.shape[0], inputs, *kernel))

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """This half as a layer of its own."""
        if self.whole is not None:
            return operation.apply(x, self.whole)
        a, b = self.pair()
        if self.core is None:
            return operation.pointwise(operation.apply(x, b), a)
        inner = operation.apply(operation.pointwise(x, operation.shaped(b)), self.core)
        return operation.pointwise(inner, operation.shaped(a.t()))


@dataclass(eq=False)
class Kronecker:
    """The Kronecker product of two halves: LoKr. The second has the kernel."""

    first: Half
    second: Half

    @property
    def out_features(self) -> int:
        """As Delta says."""
        return self.first.shape[0] * self.second.shape[0]

    def tensors(self) -> list[Tensor]:
        """As Delta says."""
        return self.first.tensors() + self.second.tensors()

    def changed(self, change: Change) -> Kronecker:
        """As Delta says."""
        return Kronecker(self.first.changed(change), self.second.changed(change))

    def misfit(self, layer: Layer) -> str:
        """As Delta says."""
        if isinstance(layer.operation, Lookup):
            return "LoKr cannot be applied to an embedding"
        inputs = self.first.shape[1]
        second = self.second.shape
        has_kernel = second[2:] in ((), layer.kernel) or elements(second[2:]) == 1
        fits = (
            has_kernel
            and self.out_features == layer.out_features
            and layer.in_features % inputs == 0
            and inputs * elements(second[1:]) == layer.in_features * elements(layer.kernel)
        )
        shape = (self.out_features, inputs * second[1], *second[2:])
        return "" if fits else not_of_this_shape(shape, layer)

    def fitted(self, layer: Layer) -> Kronecker:
        """As Delta says."""
        inputs = layer.in_features // self.first.shape[1]
        return Kronecker(self.first, self.second.shaped(inputs, layer.kernel, layer.operation))

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """As Delta says: kron(w1, w2)·x is w1·X·w2ᵀ, x as a matrix X: nothing large is made."""
        mixer = self.first.dense()
        out, inputs = mixer.shape
        channels = operation.channel_dimension
        if channels == -1:
            inner = self.second.run(operation, x.reshape(*x.shape[:-1], inputs, -1))
            return torch.matmul(mixer, inner).flatten(-2)
        batch = x.shape[:channels]
        inner = self.second.run(
            operation, x.reshape(-1, x.shape[channels] // inputs, *x.shape[channels + 1 :])
        )
        pixels = inner.shape[2:]
        mixed = torch.matmul(mixer, inner.reshape(-1, inputs, inner[0].numel()))
        return mixed.reshape(*batch, out * inner.shape[1], *pixels)

    def low_rank(self) -> None:
        """As Delta says."""
        return

    def dense(self) -> Tensor:
        """As Delta says."""
        first, second = self.first.dense(), self.second.dense()
        first = first.reshape(*first.shape, *(1,) * (second.dim() - 2))
        return torch.kron(first, second.contiguous())


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The core [r, r, *kernel] with a [r, out] and b [r, in]: [out, in, *kernel]."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b)
