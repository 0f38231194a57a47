"""What a file's modules get, by form: hundreds of modules have a few dozen forms.

Whether two factors belong together and fit the layer is found out once for each form.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from . import kinds
from .deltas import Factors
from .layers import Layer

_FACTORS = frozenset(("down", "up"))


class Forms:
    """Of one file."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[str, str]] = {}  # kind and misfit

    def part(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        layer: Layer,
        *,
        alpha: float | None,
        rslora: bool,
        peft: bool,
    ) -> tuple[kinds.Part, str]:
        """As kinds.read(), and why it does not fit the layer, or ''."""
        if tensors.keys() != _FACTORS:
            part = kinds.read(name, tensors, alpha=alpha, rslora=rslora, peft=peft)
            return part, part.misfit(layer)
        down, up = tensors["down"], tensors["up"]
        form = down.shape, up.shape, layer.form
        known = self._known.get(form)
        if known is None:
            part = kinds.read(name, tensors, alpha=alpha, rslora=rslora, peft=peft)
            known = self._known[form] = part.kind, part.misfit(layer)
        kind, misfit = known
        scale = kinds.scale_of(alpha, down.shape[0], rslora=rslora)
        return kinds.Part(name, kind, Factors(down, up), scale), misfit
