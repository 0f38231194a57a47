"""DoRA: the changed weight keeps a learned length for each of its rows, or of its columns.

W' = m * (W + sD) / |W + sD|, where |.| is the length of a row (all that leads to one output) or of
a column (all that comes from one input), m the learned lengths and D the change of another kind.
The lengths at any weight follow from three vectors: W², W·sD and (sD)², one value a row or column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .beside import Beside, plain_tensors
from .deltas import Change, Delta
from .products import Kronecker

# Of W, this many elements are widened at a time.
_CHUNK_ELEMENTS = 1 << 22


@dataclass(eq=False)
class Lengths:
    """The three vectors, for rows or for columns, in float32 (float64 for a float64 weight)."""

    base: Tensor
    cross: Tensor
    change: Tensor

    def at(self, weight: float) -> Tensor:
        """The lengths of W + weight·sD; 1 in place of 0, as nothing is left to be scaled there."""
        squared = self.base + self.cross * (2.0 * weight) + self.change * (weight * weight)
        return torch.where(squared > 0, squared, 1.0).sqrt()


@dataclass(eq=False)
class _Factored(Beside):
    """With m / |W + sD|, which does not depend on the adapter's weight: the blend is linear."""

    factor: Tensor
    factor_less_one: Tensor  # made before it is rounded to half precision

    def tensors(self) -> list[Tensor]:
        """As Beside says."""
        return [*super().tensors(), self.factor, self.factor_less_one]

    def _changed(self, change: Change) -> dict[str, Any]:
        own = {
            "factor": change(self.factor),
            "factor_less_one": change(self.factor_less_one),
        }
        return {**super()._changed(change), **own}


@dataclass(eq=False)
class Rows(_Factored):
    """By rows: each output has its factor."""

    needs_plain = True

    def _add_change(self, y: Tensor, x: Tensor, plain: Tensor | None, weight: float) -> Tensor:
        assert plain is not None
        spread = self.operation.spread
        inner = self._run(x) * (self.scale * weight)
        stretched = spread(self.factor_less_one, y) * weight * plain
        return y + stretched + spread(self.factor, y) * inner


@dataclass(eq=False)
class Columns(_Factored):
    """By columns: each input has its factor."""

    def gain(self, weight: float) -> Tensor:
        """As Beside says."""
        return self.operation.spread(self.factor_less_one, self.factor_less_one) * weight

    def _add_change(self, y: Tensor, x: Tensor, plain: Tensor | None, weight: float) -> Tensor:  # noqa: ARG002 - for DoRA by rows
        return y + self._run(x * self.operation.spread(self.factor, x)) * (self.scale * weight)


@dataclass(eq=False)
class PeftRows(Beside):
    """By rows, as PEFT reads its weight: W' at that weight, so that the lengths depend on it."""

    magnitude: Tensor
    lengths: Lengths

    needs_plain = True

    def tensors(self) -> list[Tensor]:
        """As Beside says."""
        lengths = self.lengths
        own = [self.magnitude, lengths.base, lengths.cross, lengths.change]
        return [*super().tensors(), *own]

    def to(self, device: torch.device, dtype: torch.dtype) -> Beside:
        """As Beside says; the lengths stay wide: half precision would leave little of them."""
        lengths = self.lengths
        with plain_tensors():
            own: dict[str, Any] = {
                "magnitude": self.magnitude.to(device),
                "lengths": Lengths(
                    lengths.base.to(device), lengths.cross.to(device), lengths.change.to(device)
                ),
            }
            changed = self._changed(lambda tensor: tensor.to(device=device, dtype=dtype))
            return replace(self, **own, **changed)

    def _add_change(self, y: Tensor, x: Tensor, plain: Tensor | None, weight: float) -> Tensor:
        assert plain is not None
        factor = self.magnitude / self.lengths.at(weight)
        less_one = self.operation.spread((factor - 1).to(self.dtype), y)
        factor = self.operation.spread(factor.to(self.dtype), y)
        return y + less_one * plain + factor * (self._run(x) * (self.scale * weight))


def beside(
    plain: Beside, magnitude: Tensor, lengths: Lengths, *, columns: bool, peft: bool
) -> Beside:
    """DoRA around `plain`; with `peft`, by PEFT's reading of a weight between 0 and 1."""
    parts = (plain.operation, plain.delta, plain.scale, plain.bias)
    wide = magnitude.to(device=lengths.base.device, dtype=lengths.base.dtype)
    if peft and not columns:
        return PeftRows(*parts, wide, lengths)
    factor = wide / lengths.at(1.0)
    kind = Columns if columns else Rows
    return kind(*parts, factor, factor - 1)


def lengths_of(weight: Tensor, delta: Delta, scale: float, *, columns: bool) -> Lengths:
    """The three vectors of a weight [out, in, *kernel] and a fitted change, without making that."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    delta = delta.changed(lambda tensor: tensor.to(device=weight.device, dtype=wide))
    if isinstance(delta, Kronecker):
        sums = _of_kronecker(weight, delta, wide, columns)
    elif (factors := delta.low_rank()) is not None:
        sums = _of_product(weight, *factors, wide, columns)
    else:
        sums = _of_dense(weight, delta.dense(), wide, columns)
    return Lengths(sums.base, sums.cross * scale, sums.change * (scale * scale))


def _of_product(
    weight: Tensor, up: Tensor, down: Tensor, wide: torch.dtype, columns: bool
) -> Lengths:
    flat = down.flatten(1)
    if columns:
        crossed = torch.zeros_like(flat)
        base = flat.new_zeros(weight.shape[1])
        for rows, chunk in _chunks(weight, wide):
            crossed += up[rows].t() @ chunk.flatten(1)
            base += _by_column(chunk.square())
        cross = _by_column((crossed * flat).reshape(down.shape))
        change = _by_column((((up.t() @ up) @ flat) * flat).reshape(down.shape))
        return Lengths(base, cross, change)
    bases, crosses = [], []
    for rows, chunk in _chunks(weight, wide):
        matrix = chunk.flatten(1)
        bases.append(matrix.square().sum(1))
        crosses.append(((matrix @ flat.t()) * up[rows]).sum(1))
    change = ((up @ (flat @ flat.t())) * up).sum(1)
    return Lengths(torch.cat(bases), torch.cat(crosses), change)


def _of_dense(weight: Tensor, dense: Tensor, wide: torch.dtype, columns: bool) -> Lengths:
    if columns:
        base, cross = (dense.new_zeros(weight.shape[1]) for _ in range(2))
        for rows, chunk in _chunks(weight, wide):
            base += _by_column(chunk.square())
            cross += _by_column(chunk * dense[rows])
        return Lengths(base, cross, _by_column(dense.square()))
    bases, crosses = [], []
    for rows, chunk in _chunks(weight, wide):
        matrix = chunk.flatten(1)
        bases.append(matrix.square().sum(1))
        crosses.append((matrix * dense[rows].flatten(1)).sum(1))
    return Lengths(torch.cat(bases), torch.cat(crosses), dense.flatten(1).square().sum(1))


def _of_kronecker(weight: Tensor, delta: Kronecker, wide: torch.dtype, columns: bool) -> Lengths:
    """By blocks of rows, one for each row of the first half."""
    first, second = delta.first.dense(), delta.second.dense()
    second = second.flatten(2) if second.dim() > 2 else second.unsqueeze(2)
    summed = 0 if columns else 1
    change = torch.outer(first.square().sum(summed), second.square().sum((summed, 2))).flatten()
    bases, crosses = [], []
    for factors, rows in zip(first, weight.chunk(first.shape[0]), strict=True):
        # [out of second, in of first, in of second, kernel]
        block = rows.to(wide).reshape(second.shape[0], first.shape[1], second.shape[1], -1)
        if columns:
            bases.append(block.square().sum((0, 3)))
            crosses.append(torch.einsum("oijk,ojk->ij", block, second) * factors[:, None])
        else:
            bases.append(block.square().sum((1, 2, 3)))
            crosses.append(torch.einsum("oijk,ojk->oi", block, second) @ factors)
    if columns:
        return Lengths(
            torch.stack(bases).sum(0).flatten(), torch.stack(crosses).sum(0).flatten(), change
        )
    return Lengths(torch.cat(bases), torch.cat(crosses), change)


def _by_column(tensor: Tensor) -> Tensor:
    """Sums of [out, in, *kernel] for each input."""
    return tensor.sum((0, *range(2, tensor.dim())))


def _chunks(weight: Tensor, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight by rows, widened."""
    height = max(1, _CHUNK_ELEMENTS * weight.shape[0] // weight.numel())
    for start in range(0, weight.shape[0], height):
        rows = slice(start, start + height)
        yield rows, weight[rows].to(wide)
