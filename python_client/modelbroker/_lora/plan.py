"""Which layers the keys of a file are for: by their names alone, so styles of one trainer share it.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch

from . import family as families
from . import keys
from .kinds import KnownLengths
from .layers import Layer, layer_of
from .names import Finder, Place
from .words import shown

Group: TypeAlias = "dict[str, str]"  # the file's key by its role

_KEPT = 8  # files of whose names and numbers something is remembered
_SGM = ("input_blocks", "middle_block", "output_blocks")


class Target(NamedTuple):
    """A layer, and the keys that are for it."""

    module: str  # as the file calls it
    group: Group
    place: Place
    layer: Layer


@dataclass
class Plan:
    """For the keys of a file and the modules of some components."""

    keys: tuple[str, ...]
    groups: dict[str, Group]
    targets: list[Target] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # the reason by key


class Layers:
    """The components' modules as they are now, and what was found out about them before."""

    def __init__(self, components: Mapping[str, torch.nn.Module], before: Layers | None) -> None:
        """`before`: what it found out counts where the modules are still the same ones."""
        self.components = dict(components)
        self._finder = Finder(components)
        self._plans: list[Plan] = []
        self._family: str | None = None
        self._lengths: dict[tuple[object, ...], dict[str, KnownLengths]] = {}
        if before is not None:
            self._lengths = before._lengths
        if before is not None and before._finder.trees == self._finder.trees:
            self._family, self._plans = before._family, before._plans

    def are_of(self, components: Mapping[str, torch.nn.Module]) -> bool:
        """Whether these components are the same ones, with the same modules in them."""
        return self.components == components and self._finder.is_current()

    def has(self, targets: Iterable[Target]) -> bool:
        """Whether these are still where they were."""
        trees = self._finder.trees
        return all(
            trees[target.place.component].get(target.place.path) is target.place.module
            for target in targets
        )

    @property
    def family(self) -> str:
        """Of the base; "" where it cannot be told."""
        if self._family is None:
            self._family = families.of_trees(self._finder.trees)
        return self._family

    def lengths(self, file: tuple[object, ...]) -> dict[str, KnownLengths]:
        """What was found out for the DoRA of this file, by its identity: it takes seconds."""
        known = self._lengths.pop(file, {})
        self._lengths = dict([*self._lengths.items(), (file, known)][-_KEPT:])
        return known

    def plan(self, names: Iterable[str]) -> Plan:
        """For a file with these keys; UnimplementedError for kinds that are not known."""
        wanted = tuple(names)
        for plan in self._plans:
            if plan.keys == wanted:
                return plan
        plan = _Making(wanted, self._finder).plan
        self._plans = [plan, *self._plans[: _KEPT - 1]]
        return plan


class _Making:
    """Of two groups for one layer the first wins: diffusers' names stand before sgm's."""

    def __init__(self, names: tuple[str, ...], finder: Finder) -> None:
        self.plan = Plan(names, {})
        self._finder = finder
        self._taken: set[tuple[str, str]] = set()
        self._group()
        for module, group in self.plan.groups.items():
            target = self._target(module, group)
            if isinstance(target, str):
                self.plan.skipped.update(dict.fromkeys(group.values(), target))
            else:
                self.plan.targets.append(target)

    def _group(self) -> None:
        groups: dict[str, Group] = {}
        for name in self.plan.keys:
            key = keys.split(name)
            if key is None:
                self.plan.skipped[name] = "no part of an adapter"
                continue
            held = groups.setdefault(key.module, {})
            if key.role in held:
                self.plan.skipped[name] = f"says what {shown(held[key.role])} says"
            else:
                held[key.role] = name
        self.plan.groups = dict(sorted(groups.items(), key=lambda item: _is_sgm(item[0])))

    def _target(self, module: str, group: Group) -> Target | str:
        place = self._finder.find(module)
        if isinstance(place, str):
            return place
        layer = layer_of(place.module)
        if isinstance(layer, str):
            return layer
        if (place.component, place.path) in self._taken:
            return f"another key is for {shown(place.path)}, too"
        self._taken.add((place.component, place.path))
        return Target(module, group, place, layer)


def _is_sgm(module: str) -> bool:
    return any(word in module for word in _SGM)
