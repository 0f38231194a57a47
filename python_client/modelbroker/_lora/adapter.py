"""An adapter's file over the layers of a target: all of it is looked at before anything is touched.

Imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .._errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
)
from . import family as families
from . import kinds
from .beside import Beside, plain_tensors
from .config import Configuration
from .finite import Numbers
from .forms import Forms
from .layers import Layer
from .plan import Group, Layers, Plan, Target
from .source import AdapterFile
from .words import shown


@dataclass(frozen=True)
class Added:
    """What add() did."""

    name: str
    applied: int  # layers
    skipped: Mapping[str, str]  # the reason by the file's key
    kinds: Mapping[str, int]  # layers of each kind
    family: str  # "sd1", "sdxl", "flux", …; "" where it cannot be told
    shared_bytes: int
    private_bytes: int
    seconds: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        skipped = f", {len(self.skipped)} keys skipped" if self.skipped else ""
        return (
            f"{self.name}: {self.applied} layers ({kinds}){skipped}; {self.shared_bytes} bytes "
            f"shared, {self.private_bytes} private; {self.seconds * 1e3:.1f} ms"
        )


class Bound(NamedTuple):
    """What an adapter has for one component, by the layers' paths."""

    parts: dict[str, Beside]
    layers: dict[str, Layer]


@dataclass
class Adapter:
    """An adapter that fits a target. It does not change; deep copies of the target share it."""

    file: AdapterFile
    family: str  # first the base's
    skipped: dict[str, str]
    targets: list[Target] = field(default_factory=list)
    bound: dict[str, Bound] = field(default_factory=dict)  # by component
    kinds: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    private_bytes: int = 0

    def __deepcopy__(self, _: object) -> Adapter:
        return self

    def added(self, name: str, began: float) -> Added:
        """The report of an add() that began at this time.perf_counter()."""
        return Added(
            name,
            len(self.targets),
            dict(self.skipped),
            dict(self.kinds),
            self.family,
            self.shared_bytes,
            self.private_bytes,
            time.perf_counter() - began,
        )


@contextmanager
def named_in_errors(file: AdapterFile) -> Iterator[None]:
    """What is wrong with a key says in which file."""
    try:
        yield
    except (InvalidArgumentError, UnimplementedError, FailedPreconditionError) as error:
        if file.label in str(error):
            raise
        raise type(error)(f"{file.label}: {error}") from None


def make(file: AdapterFile, layers: Layers, *, force: bool) -> Adapter:
    """Of a file for these layers; errors name what is wrong with it."""
    numbers = Numbers(file)
    plan = layers.plan(file.tensors)
    if not plan.groups:
        first = f"its first key is {shown(plan.keys[0])}" if plan.keys else "it is empty"
        raise InvalidArgumentError(f"{file.label} holds no adapter: {first}")
    adapter = Adapter(file, layers.family, dict(plan.skipped))
    with plain_tensors():
        _Binding(adapter, plan, numbers, layers.lengths(file.identity)).run(force=force)
    return adapter


def _family(file: AdapterFile, plan: Plan) -> str:
    return families.of_adapter(
        {
            module: {role: tuple(file.tensors[name].shape) for role, name in group.items()}
            for module, group in plan.groups.items()
        }
    )


class _Binding:
    """Makes what lies beside each layer."""

    def __init__(
        self,
        adapter: Adapter,
        plan: Plan,
        numbers: Numbers,
        known: dict[str, kinds.KnownLengths],
    ) -> None:
        self._numbers = numbers
        self._known = known
        self._forms = Forms()
        self._adapter = adapter
        self._file = adapter.file
        self._plan = plan
        self._configuration = Configuration(adapter.file)

    def run(self, *, force: bool) -> None:
        found: list[tuple[Target, kinds.Part]] = []
        misfits: list[str] = []
        for target in self._plan.targets:
            part, misfit = self._part(target)
            if misfit:
                misfits.append(misfit)
                self._adapter.skipped.update(dict.fromkeys(target.group.values(), misfit))
            else:
                found.append((target, part))
        self._check_family(force=force)
        self._check_fit(len(found), misfits, force=force)
        self._check_numbers()
        for target, part in found:
            self._bind(target, part)

    def _part(self, target: Target) -> tuple[kinds.Part, str]:
        """And why it does not fit its layer, or ''."""
        group = target.group
        alpha, rslora = self._configuration.rule(target.place.component, target.place.path)
        if "alpha" in group:
            alpha = self._alpha(group["alpha"])
            if len(group) == 1:
                raise InvalidArgumentError(
                    f"{self._file.label}: {shown(target.module)} has an alpha alone"
                )
        tensors = {
            role: self._file.tensors[name] for role, name in group.items() if role != "alpha"
        }
        part, misfit = self._forms.part(
            target.module, tensors, target.layer, alpha=alpha, rslora=rslora, peft=_is_peft(group)
        )
        return part.knowing(self._known), misfit

    def _alpha(self, name: str) -> float:
        tensor = self._file.tensors[name]
        if tensor.numel() != 1:
            raise InvalidArgumentError(
                f"{self._file.label}: {shown(name)} must be one number, not of shape "
                f"{list(tensor.shape)}"
            )
        return float(tensor)

    def _check_family(self, *, force: bool) -> None:
        """Where all of it fits, it is for this base; to tell it by shapes takes milliseconds."""
        adapter, base = self._adapter, self._adapter.family
        if base and not adapter.skipped:
            return
        adapter.family = _family(self._file, self._plan)
        if adapter.family and base and adapter.family != base and not force:
            raise FailedPreconditionError(
                f"{self._file.label} is an adapter for {adapter.family}, and this is {base}: "
                "force=True applies the layers that fit"
            )

    def _check_fit(self, fitting: int, misfits: list[str], *, force: bool) -> None:
        label = self._file.label
        if fitting == 0:
            reasons = list(dict.fromkeys(self._adapter.skipped.values()))[:3]
            raise InvalidArgumentError(f"nothing of {label} fits here: {'; '.join(reasons)}")
        if len(misfits) > fitting and not force:
            raise FailedPreconditionError(
                f"{label} is an adapter for another model: {len(misfits)} layers have other "
                f"shapes ({misfits[0]}), {fitting} fit: force=True applies those"
            )

    def _check_numbers(self) -> None:
        skipped = self._adapter.skipped
        used = (name for name in self._file.tensors if name not in skipped)
        bad = self._numbers.first_bad(used)
        if bad is not None:
            raise DataLossError(f"{self._file.label}: {shown(bad)} holds NaN or Inf")

    def _bind(self, target: Target, part: kinds.Part) -> None:
        adapter, place = self._adapter, target.place
        beside = part.beside(target.layer, _weight(place.module))
        bound = adapter.bound.get(place.component)
        if bound is None:
            bound = adapter.bound[place.component] = Bound({}, {})
        bound.parts[place.path], bound.layers[place.path] = beside, target.layer
        adapter.targets.append(target)
        adapter.kinds[part.kind] = adapter.kinds.get(part.kind, 0) + 1
        # Most computes with the file's own tensors: quicker told than by their addresses.
        same = beside.delta is part.change and beside.bias is part.bias
        unchanged = self._file.all_shared and part.magnitude is None and same
        for tensor in beside.tensors():
            if unchanged or self._file.is_shared(tensor):
                adapter.shared_bytes += tensor.nbytes
            else:
                adapter.private_bytes += tensor.nbytes


def _weight(module: torch.nn.Module) -> torch.Tensor | None:
    """As the module keeps it; of a quantised layer it may be a method."""
    weight: Any = module._parameters.get("weight")  # quicker than the module's own way
    if weight is None:
        weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def _is_peft(group: Group) -> bool:
    """By its name for DoRA's lengths, of which alone the two kinds of files differ."""
    return ".lora_magnitude_vector" in group.get("dora_scale", "")
