"""What runs beside a layer: it adds to the layer's output and never touches its weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .deltas import Change, Delta
from .operations import Operation


@contextmanager
def plain_tensors() -> Iterator[None]:
    """What is made here can be used with gradients later, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclass(eq=False)
class Beside:
    """Adds a change of the weight, and of the bias, times the weight of the adapter.

    The forward of a layer with several: `y = base(x * (1 + sum of gains))`, or base(x) where there
    is no gain; then `y = beside.add(y, x, plain, weight)` for each, where `plain` is W·x without
    the bias and without gains, for those with `needs_plain`.
    """

    operation: Operation
    delta: Delta | None
    scale: float
    bias: Tensor | None

    needs_plain = False

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.tensors()[0].dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.tensors()[0].device

    def tensors(self) -> list[Tensor]:
        """All that it needs."""
        delta = [] if self.delta is None else self.delta.tensors()
        return delta if self.bias is None else [*delta, self.bias]

    def to(self, device: torch.device, dtype: torch.dtype) -> Beside:
        """The same there; tensors that are there and in that dtype stay the same ones."""

        for tensor in self.tensors():
            if tensor.dtype != dtype or tensor.device != device:
                break
        else:
            return self
        with plain_tensors():
            changed = self._changed(lambda tensor: tensor.to(device=device, dtype=dtype))
            return replace(self, **changed)

    def _changed(self, change: Change) -> dict[str, Any]:
        """Its fields that are computed with, after `change`."""
        return {
            "delta": None if self.delta is None else self.delta.changed(change),
            "bias": None if self.bias is None else change(self.bias),
        }

    def gain(self, weight: float) -> Tensor | None:  # noqa: ARG002 - for DoRA by columns
        """What is added to 1 to make the factor on the layer's input."""
        return None

    def add(self, y: Tensor, x: Tensor, plain: Tensor | None, weight: float) -> Tensor:
        """The layer's output with this adapter's part at this weight; x is the layer's input."""
        total = y
        if self.delta is not None:
            total = self._add_change(y, self.operation.cast(x, self.dtype), plain, weight)
        if self.bias is not None:
            total = total + self.operation.spread(self.bias, y) * weight
        return total.to(y.dtype)

    def _add_change(self, y: Tensor, x: Tensor, plain: Tensor | None, weight: float) -> Tensor:  # noqa: ARG002 - for DoRA by rows
        return y + self._run(x) * (self.scale * weight)

    def _run(self, x: Tensor) -> Tensor:
        assert self.delta is not None
        return self.delta.run(self.operation, x)
