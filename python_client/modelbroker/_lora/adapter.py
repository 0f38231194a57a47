"""An adapter's file over the layers of a target: all of it is looked at before anything is touched.

Imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch

from .._errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from . import family as families
from . import keys, kinds
from .beside import Beside
from .config import Configuration
from .finite import first_bad
from .layers import Layer, layer_of
from .names import Finder, Place
from .source import AdapterFile
from .words import shown

Group: TypeAlias = "dict[str, str]"  # the file's key of each role

_SGM = ("input_blocks", "middle_block", "output_blocks")


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
    family: str
    bound: dict[str, Bound] = field(default_factory=dict)  # by component
    skipped: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    private_bytes: int = 0

    def __deepcopy__(self, _: object) -> Adapter:
        return self

    @property
    def applied(self) -> int:
        """Layers."""
        return sum(self.kinds.values())

    def added(self, name: str, began: float) -> Added:
        """The report of an add() that began at this time.perf_counter()."""
        return Added(
            name,
            self.applied,
            dict(self.skipped),
            dict(self.kinds),
            self.family,
            self.shared_bytes,
            self.private_bytes,
            time.perf_counter() - began,
        )


def make(file: AdapterFile, components: Mapping[str, torch.nn.Module], *, force: bool) -> Adapter:
    """Of a file for these components; errors name what is wrong with it."""
    groups, skipped = _grouped(file)
    if not groups:
        raise InvalidArgumentError(
            f"{file.label} holds no adapter: "
            + (f"its first key is {shown(next(iter(file.tensors)))}" if file.tensors else "nothing")
        )
    adapter = Adapter(file, _family(file, groups), skipped=skipped)
    _check_family(adapter, components, force=force)
    _Binding(adapter, components, groups).run(force=force)
    return adapter


def _grouped(file: AdapterFile) -> tuple[dict[str, Group], dict[str, str]]:
    """The keys of each module, diffusers' names before sgm's: of two for one layer the first wins."""
    groups: dict[str, Group] = {}
    skipped: dict[str, str] = {}
    for name in file.tensors:
        key = keys.split(name)
        if key is None:
            skipped[name] = "no part of an adapter"
        else:
            held = groups.setdefault(key.module, {})
            if key.role in held:
                skipped[name] = f"says what {shown(held[key.role])} says"
            else:
                held[key.role] = name
    return dict(sorted(groups.items(), key=lambda item: _is_sgm(item[0]))), skipped


def _is_sgm(module: str) -> bool:
    return any(word in module for word in _SGM)


def _family(file: AdapterFile, groups: Mapping[str, Group]) -> str:
    shapes = {
        module: {role: tuple(file.tensors[name].shape) for role, name in group.items()}
        for module, group in groups.items()
    }
    return families.of_adapter(shapes)


def _check_family(
    adapter: Adapter, components: Mapping[str, torch.nn.Module], *, force: bool
) -> None:
    base = families.of_components(components)
    if adapter.family and base and adapter.family != base and not force:
        raise FailedPreconditionError(
            f"{adapter.file.label} is an adapter for {adapter.family}, and this is {base}: "
            "force=True applies the layers that fit"
        )


class _Binding:
    """Finds each module's layer, and makes what lies beside it."""

    def __init__(
        self,
        adapter: Adapter,
        components: Mapping[str, torch.nn.Module],
        groups: Mapping[str, Group],
    ) -> None:
        self._adapter = adapter
        self._file = adapter.file
        self._groups = groups
        self._finder = Finder(components)
        self._configuration = Configuration(adapter.file)
        self._misfits: list[str] = []

    def run(self, *, force: bool) -> None:
        found: list[tuple[Place, kinds.Part, Layer]] = []
        for module, group in self._groups.items():
            self._look(module, group, found)
        self._check_fit(len(found), force=force)
        self._check_numbers(found)
        for place, part, layer in found:
            self._bind(place, part, layer)

    def _look(
        self,
        module: str,
        group: Group,
        found: list[tuple[Place, kinds.Part, Layer]],
    ) -> None:
        place = self._finder.find(module)
        if isinstance(place, str):
            self._skip(group, place)
            return
        layer = layer_of(place.module)
        if isinstance(layer, str):
            self._skip(group, layer)
            return
        layers = self._adapter.bound.setdefault(place.component, Bound({}, {})).layers
        if place.path in layers:
            self._skip(group, f"another key is for {shown(place.path)}, too")
            return
        part = self._part(module, group, place)
        misfit = part.misfit(layer)
        if misfit:
            self._misfits.append(misfit)
            self._skip(group, misfit)
            return
        layers[place.path] = layer
        found.append((place, part, layer))

    def _skip(self, group: Group, why: str) -> None:
        for name in group.values():
            self._adapter.skipped[name] = why

    def _part(self, module: str, group: Group, place: Place) -> kinds.Part:
        tensors = {
            role: self._file.tensors[name] for role, name in group.items() if role != "alpha"
        }
        alpha, rslora = self._configuration.rule(place.component, place.path)
        if "alpha" in group:
            alpha = self._alpha(group["alpha"])
        if not tensors:
            raise InvalidArgumentError(f"{self._file.label}: {shown(module)} has an alpha alone")
        return kinds.read(module, tensors, alpha=alpha, rslora=rslora, peft=_is_peft(group))

    def _alpha(self, name: str) -> float:
        tensor = self._file.tensors[name]
        if tensor.numel() != 1:
            raise InvalidArgumentError(
                f"{self._file.label}: {shown(name)} must be one number, not of shape "
                f"{list(tensor.shape)}"
            )
        return float(tensor)

    def _check_fit(self, fitting: int, *, force: bool) -> None:
        label = self._file.label
        if fitting == 0:
            reasons = list(dict.fromkeys(self._adapter.skipped.values()))[:3]
            raise InvalidArgumentError(f"nothing of {label} fits here: {'; '.join(reasons)}")
        if len(self._misfits) > fitting and not force:
            raise FailedPreconditionError(
                f"{label} is an adapter for another model: {len(self._misfits)} layers have "
                f"other shapes ({self._misfits[0]}), {fitting} fit: force=True applies those"
            )

    def _check_numbers(self, found: list[tuple[Place, kinds.Part, Layer]]) -> None:
        used = {
            name: self._file.tensors[name]
            for group in self._groups.values()
            for name in group.values()
            if name not in self._adapter.skipped
        }
        bad = first_bad(self._file, used)
        if bad is not None:
            raise DataLossError(f"{self._file.label}: {shown(bad)} holds NaN or Inf")

    def _bind(self, place: Place, part: kinds.Part, layer: Layer) -> None:
        adapter = self._adapter
        beside = part.beside(layer, getattr(place.module, "weight", None))
        adapter.bound[place.component].parts[place.path] = beside
        adapter.kinds[part.kind] = adapter.kinds.get(part.kind, 0) + 1
        for tensor in beside.tensors():
            if self._file.is_shared(tensor):
                adapter.shared_bytes += tensor.nbytes
            else:
                adapter.private_bytes += tensor.nbytes


def _is_peft(group: Group) -> bool:
    return any(".lora_magnitude_vector" in name for name in group.values())
