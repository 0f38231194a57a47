"""Names of modules in adapters' files: which module of the real tree each one means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from . import sgm
from .tree import Tree
from .words import shown

READ_WITHOUT_A_CALL = "its weight is read without calling it"


@dataclass(frozen=True, slots=True)
class Place:
    """A module of the target: `path` within its component, as without PEFT and torch.compile."""

    component: str
    path: str
    module: torch.nn.Module


_IMAGE = ("unet", "transformer")
_TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")

# What stands before a module's name, and the components it may mean, the likeliest first.
_PREFIXES: dict[str, tuple[str, ...]] = {
    "lora_unet__": _IMAGE,  # before the next, whose name it begins with
    "lora_unet_": _IMAGE,
    "lora_transformer_": ("transformer", "unet"),
    "lora_te_": _TEXTS[:1],
    "lora_te1_": _TEXTS[:1],
    "lora_te2_": _TEXTS[1:2],
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),  # T5, which is Flux' second
    "lycoris_": (),  # LyCORIS' own, for any module
    "diffusion_model.": _IMAGE,
    "model.diffusion_model.": _IMAGE,
    "text_encoders.clip_l.transformer.": _TEXTS[:1],
    "text_encoders.clip_g.transformer.": _TEXTS[1:2],
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", "text_encoder_2"),
}
_PREFIX = re.compile("|".join(map(re.escape, _PREFIXES)))
_COMPONENTS = frozenset((*_IMAGE, *_TEXTS, "transformer_2", "text_encoder_4", "vae"))
_PEFT = "base_model.model."


class Finder:
    """Finds modules of some components (one of the name "": a module given by itself)."""

    def __init__(self, components: Mapping[str, torch.nn.Module]) -> None:
        places: dict[int, Place] = {}
        self._components = {name: _Names(name, root, places) for name, root in components.items()}
        self._alone = self._components.get("")

    @property
    def trees(self) -> dict[str, Mapping[str, torch.nn.Module]]:
        """Each component's modules by their paths, for family.of_trees."""
        return {name: names.modules for name, names in self._components.items()}

    def is_current(self) -> bool:
        """Whether no module was added, replaced or taken away since."""
        return all(names.tree.is_current() for names in self._components.values())

    def find(self, module_key: str) -> Place | str:
        """The module that `module_key` means, or the reason why there is none."""
        key = module_key.removeprefix(_PEFT)
        if self._alone is not None:  # its own names first: it may have a part called `unet`
            found = self._alone.look(module_key) or self._alone.look(key)
            if found is not None:
                return found
        components, name = self._addressed(key)
        if not components:
            return self._anywhere(name)
        for component in (*components, ""):
            names = self._components.get(component)
            found = names.look(name) if names else None
            if found is not None:
                return found
        if self._components.keys().isdisjoint((*components, "")):
            return f"the target has no {components[0]}"
        return _nowhere(name)

    def _addressed(self, key: str) -> tuple[tuple[str, ...], str]:
        """The components that the key's first part means, none where it says nothing; the rest."""
        prefix = _PREFIX.match(key)
        if prefix is not None:
            return _PREFIXES[prefix[0]], key[prefix.end() :]
        first, dot, rest = key.partition(".")
        if dot and (first in self._components or first in _COMPONENTS):
            return (first,), rest.removeprefix(_PEFT)
        return (), key

    def _anywhere(self, name: str) -> Place | str:
        """A name that does not say its component: the image model's, else the only one's."""
        found: dict[int, Place] = {}
        reason = _nowhere(name)
        for component in dict.fromkeys((*_IMAGE, *self._components)):
            names = self._components.get(component)
            place = names.look(name) if names else None
            if isinstance(place, str):
                reason = place
            elif place is not None:
                if component in _IMAGE:
                    return place
                found[id(place.module)] = place
        if len(found) > 1:
            of = " or ".join(place.component for place in found.values())
            return f"it may be of {of}: the name does not say which"
        return next(iter(found.values()), reason)


def _nowhere(name: str) -> str:
    return f"no module has the name {shown(name)}"


class _Names:
    """The names that lead to the modules of one component."""

    def __init__(self, component: str, root: torch.nn.Module, places: dict[int, Place]) -> None:
        """`places`: what was found so far; a module of two names stays where it was found first."""
        self._component = component
        self._places = places
        self.tree = Tree(root)
        self.modules, self._unreachable = self.tree.modules, self.tree.unreachable

    def look(self, name: str) -> Place | str | None:
        """The module, the reason why it cannot be had, or None where no module is called so."""
        found = self._at(name)
        if found is None and "." not in name:
            found = self._at_flat(name)
        return found or self._by_other_spelling(name)

    def _at(self, path: str) -> Place | str | None:
        if path in self._unreachable:
            return READ_WITHOUT_A_CALL
        module = self.modules.get(path)
        if module is None:
            return None
        place = self._places.get(id(module))
        if place is None:
            place = self._places[id(module)] = Place(self._component, path, module)
        return place

    def _at_flat(self, flat: str) -> Place | str | None:
        """By a name as trainers write it, with `_` for each dot."""
        paths = self._flat.get(flat, ())
        if len(paths) > 1:
            return f"{shown(flat)} may be {' or '.join(map(shown, paths))}"
        return self._at(paths[0]) if paths else None

    def _by_other_spelling(self, name: str) -> Place | str | None:
        """As older versions of the libraries spelled it, or in the original layout's names."""
        for other in self._respelled(name):
            found = self._at(other) or self._at_flat(other)
            if found is not None:
                return found
        return self._at_flat(self._sgm.in_diffusers(name.replace(".", "_")))

    def _respelled(self, name: str) -> Iterator[str]:
        dot = "." if "." in name else "_"
        if name.startswith(f"text_model{dot}"):  # which transformers 5 left out of CLIPTextModel
            yield name[len("text_model") + 1 :]
        elif "text_model" in self.modules:
            yield f"text_model{dot}{name}"
        if ".processor." in name:
            yield name.replace(".processor.", ".")

    @cached_property
    def _flat(self) -> dict[str, tuple[str, ...]]:
        """More than one path where more than one module with weights has the name."""
        found: dict[str, tuple[str, ...]] = {}
        for path in (*self.modules, *self._unreachable):
            flat = path.replace(".", "_")
            found[flat] = self._likelier(found[flat], path) if flat in found else (path,)
        return found

    def _likelier(self, paths: tuple[str, ...], path: str) -> tuple[str, ...]:
        """A container is not what an adapter is for, and one module of two names is one."""
        both = {id(self.modules.get(each)): each for each in (*paths, path)}
        return tuple(each for each in both.values() if self._has_weights(each)) or paths

    def _has_weights(self, path: str) -> bool:
        module = self.modules.get(path)
        return module is None or any(w is not None for w in module._parameters.values())

    @cached_property
    def _sgm(self) -> sgm.Blocks:
        return sgm.Blocks(self.modules)
