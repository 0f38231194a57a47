"""What one module gets from an adapter, read from its tensors' roles and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._errors import FailedPreconditionError
from . import dora
from .beside import Beside, plain_tensors
from .deltas import Delta, Factors, Whole
from .groups import Group, change_of
from .layers import COMPUTED, Layer
from .operations import Lookup

# Of DoRA for one module of a file: by the layer, with what its weight was.
KnownLengths: TypeAlias = "WeakKeyDictionary[nn.Module, tuple[object, dora.Lengths]]"


@dataclass(eq=False)
class Magnitude:
    """DoRA's learned lengths, one a row or one a column."""

    vector: Tensor
    columns: bool
    peft: bool  # a weight between 0 and 1 is read as PEFT reads it
    known: KnownLengths = field(default_factory=WeakKeyDictionary)


@dataclass(eq=False)
class Part:
    """What one module gets. Its tensors are views of the file's."""

    name: str  # the module's, as in the file
    kind: str
    change: Delta | None
    scale: float = 1.0
    bias: Tensor | None = None  # added to the layer's
    magnitude: Magnitude | None = None

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        change = [] if self.change is None else self.change.tensors()
        magnitude = None if self.magnitude is None else self.magnitude.vector
        return change + [tensor for tensor in (self.bias, magnitude) if tensor is not None]

    def misfit(self, layer: Layer) -> str:
        """Why it cannot be applied to this layer, or ''."""
        if layer.norm is not None and not isinstance(self.change, (Whole, type(None))):
            return f"{self.kind} cannot be applied to a norm"
        if self.bias is not None and self.bias.numel() != layer.out_features:
            return (
                f"it changes a bias of {self.bias.numel()} values, "
                f"and this {layer.what} has {layer.out_features} outputs"
            )
        misfit = "" if self.change is None else self.change.misfit(layer)
        return misfit or self._misfit_of_magnitude(layer)

    def _misfit_of_magnitude(self, layer: Layer) -> str:
        if self.magnitude is None:
            return ""
        columns, has = self.magnitude.columns, self.magnitude.vector.numel()
        if layer.norm is not None or (columns and isinstance(layer.operation, Lookup)):
            return f"DoRA {'by columns ' if columns else ''}cannot be applied to {layer.what}"
        wanted = layer.in_features if columns else layer.out_features
        if has == wanted:
            return ""
        sides = "inputs" if columns else "outputs"
        return f"DoRA has {has} lengths, and this {layer.what} has {wanted} {sides}"

    def knowing(self, known: dict[str, KnownLengths]) -> Part:
        """With what an earlier part of the same file found out for DoRA, by the module's name."""
        if self.magnitude is None:
            return self
        held = known.setdefault(self.name, self.magnitude.known)
        return replace(self, magnitude=replace(self.magnitude, known=held))

    def delta(self, layer: Layer, dtype: torch.dtype) -> Tensor:
        """What it adds to the layer's weight at weight 1, as the module keeps it; a new tensor.

        Without DoRA's lengths. On the device of the adapter's tensors.
        """
        if self.change is None:
            return torch.zeros(layer.stored_shape, dtype=dtype, device=self.tensors()[0].device)
        change = self.change.fitted(layer).changed(lambda tensor: tensor.to(dtype))
        return layer.stored(change.dense() * self.scale)

    def delta_of_bias(self, dtype: torch.dtype) -> Tensor | None:
        """What it adds to the layer's bias at weight 1; without DoRA's lengths, as `delta`."""
        total = None if self.bias is None else self.bias.to(dtype)
        if isinstance(self.change, Factors) and self.change.up_bias is not None:
            scaled = self.change.up_bias.to(dtype) * self.scale
            total = scaled if total is None else total + scaled
        return total

    def beside(self, layer: Layer, base_weight: Tensor | None) -> Beside:
        """What runs beside this layer, in the dtype and on the device of its weight.

        `base_weight` is the weight as the module keeps it, or None where it is packed: DoRA alone
        needs its values, and reads them once for a layer.
        """
        change = None if self.change is None else self.change.fitted(layer)
        made = Beside(layer.operation, change, self.scale, self.bias)
        if self.magnitude is not None:
            made = self._with_lengths(made, self.magnitude, layer, base_weight)
        return made.to(*_computed_in(self.tensors()[0], base_weight))

    def _with_lengths(
        self, made: Beside, magnitude: Magnitude, layer: Layer, weight: Tensor | None
    ) -> Beside:
        with plain_tensors():
            lengths = self._lengths(magnitude, layer, weight)
            columns, peft = magnitude.columns, magnitude.peft
            return dora.beside(made, magnitude.vector, lengths, columns=columns, peft=peft)

    def _lengths(self, magnitude: Magnitude, layer: Layer, weight: Tensor | None) -> dora.Lengths:
        """Made once for a layer, as long as its weight is the same tensor unchanged."""
        if weight is None or weight.device.type == "meta" or weight.dtype not in COMPUTED:
            raise FailedPreconditionError(
                f"{self.name}: DoRA needs the values of the layer's weight, and this "
                f"{layer.what} has none that can be read (packed, or not loaded): load the weights "
                "unquantised, or use the adapter without DoRA"
            )
        mark = _mark(weight)
        known = magnitude.known.get(layer.module)
        if known is not None and known[0] == mark:
            return known[1]
        assert self.change is not None
        matrix, change = layer.stored(weight.detach()), self.change.fitted(layer)
        lengths = dora.lengths_of(matrix, change, self.scale, columns=magnitude.columns)
        magnitude.known[layer.module] = (mark, lengths)
        return lengths


def read(
    name: str, group: Mapping[str, Tensor], *, alpha: float | None, rslora: bool, peft: bool
) -> Part:
    """What the module `name` gets by these tensors, by their roles.

    `alpha` None means a scale of 1; 0 is legal. `peft`: the file is PEFT's, whose DoRA is by rows
    and whose weight between 0 and 1 means another blend. Raises InvalidArgumentError, which names
    the module, where the tensors do not belong together.
    """
    tensors = Group(name, group)
    found = change_of(tensors)
    bias = tensors.vector("diff_b" if "diff_b" in tensors else "b_norm")
    if found is None:
        if bias is None or "dora_scale" in tensors:
            raise tensors.fault(f"no change of a weight in {sorted(tensors)}")
        return Part(name, "norm" if "b_norm" in tensors else "bias", None, 1.0, bias)
    kind, change, rank = found
    scale = scale_of(alpha, rank, rslora=rslora)
    magnitude = _magnitude(tensors, change, peft)
    return Part(name, kind if magnitude is None else "DoRA", change, scale, bias, magnitude)


def scale_of(alpha: float | None, rank: int, *, rslora: bool) -> float:
    """What the product of the factors is multiplied by; 1 where no alpha is given."""
    if alpha is None or not rank:
        return 1.0
    return alpha / (math.sqrt(rank) if rslora else rank)


def _magnitude(group: Group, change: Delta, peft: bool) -> Magnitude | None:
    """By rows or by columns, which the shape tells: [out, 1, ...] or [1, in, ...].

    PEFT has [out] and, for convolutions, [1, out, 1, ...]: rows both.
    """
    vector = group.vector("dora_scale")
    if vector is None:
        return None
    shape = group.tensor("dora_scale").shape
    if vector.numel() == 1:
        columns = change.out_features != 1
    else:
        columns = len(shape) > 1 and shape[0] == 1 and not (peft and len(shape) > 2)
    return Magnitude(vector, columns, peft)


def _computed_in(own: Tensor, base: Tensor | None) -> tuple[torch.device, torch.dtype]:
    """Where and in what it is multiplied: as the weight is, if that can be computed with."""
    device, dtype = own.device, own.dtype if own.dtype in COMPUTED else torch.float32
    if base is None:
        return device, dtype
    if base.device.type != "meta":
        device = base.device
    return device, base.dtype if base.dtype in COMPUTED else dtype


def _mark(weight: Tensor) -> object:
    """Another one where the weight is another tensor or was written to.

    A write through `.data`, as by PEFT's fusing, counts nowhere: some of the values tell.
    """
    version = -1 if weight.is_inference() else weight._version
    steps = tuple(slice(None, None, max(1, size // 16)) for size in weight.shape)
    some = tuple(weight.detach()[steps].flatten().tolist())
    return weight.data_ptr(), weight.device, weight.dtype, weight.stride(), version, some
