"""Loras: the adapters of a pipeline or module. Threads: any. Imports torch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .._broker import Broker
from .._errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from . import adapter as adapters
from . import foreign
from . import source as sources
from . import weights as weighting
from .adapter import Adapter, Added
from .layers import Layer
from .plan import Layers
from .side import Active, Side, orphan_of
from .weights import Weight, Weights
from .words import shown

_HELD = "_modelbroker_loras"  # in the target's own dictionary: its deep copy has a deep copy
_COMPONENTS = ("unet", "transformer", "text_encoder", "prior")
_MB = 1_000_000
_making = threading.Lock()


class Loras:
    """The adapters of one pipeline or module; asked again, the same object.

    They are applied beside the layers, and never change a weight. Every method may be called from
    any thread, also while another one computes: one call of a component (the UNet, a text encoder)
    goes by one state, the old or the new.
    """

    _broker: Broker | None
    _max_adapters: int | None
    _memory_limit: float | None

    def __new__(cls, target: Any, *_: Any, **__: Any) -> Loras:
        target = _unwrapped(target)
        with _making:
            held = _dictionary(target).get(_HELD)
            if held is None:
                held = super().__new__(cls)
                held._begin(target)
                _dictionary(target)[_HELD] = held
            return held

    def __init__(
        self,
        target: Any,  # noqa: ARG002  __new__ has it
        broker: Broker | None = None,
        *,
        max_adapters: int | None = None,
        memory_limit_mb: float | None = None,
    ) -> None:
        """`target`: a diffusers pipeline (an object with `components`) or a torch module.

        Files are read by `broker`, else by the user's own, as connect() finds it; it is waited
        for once in a process. Limits count for later adds: `max_adapters`, and `memory_limit_mb`
        of all adapters' tensors together; None leaves them as they are, math.inf lifts them.
        """
        if not isinstance(broker, (Broker, type(None))):
            raise InvalidArgumentError(
                f"broker={broker!r:.80} must be a Broker: connect() gives one"
            )
        for word, limit in (("max_adapters", max_adapters), ("memory_limit_mb", memory_limit_mb)):
            if limit is not None and not (isinstance(limit, (int, float)) and limit >= 0):
                raise InvalidArgumentError(f"{word}={limit!r:.80} must be a number of 0 or more")
        with self._lock:
            if broker is not None:
                self._broker = broker
            if max_adapters is not None:
                self._max_adapters = max_adapters
            if memory_limit_mb is not None:
                self._memory_limit = memory_limit_mb * _MB

    def _begin(self, target: Any) -> None:
        components = _components(target)
        self._target = target
        self._broker = None
        self._max_adapters = self._memory_limit = None
        self._layers = Layers(components, None)
        self._sides: dict[str, Side] = {}
        self._adapters: dict[str, Adapter] = {}
        self._weights: dict[str, Weight] = {}
        self._locks()
        for component in components.values():
            for name, held, weight in _taken_over(component):
                self._adapters[name], self._weights[name] = held, weight
        self._rebuild(self._layers)

    def _locks(self) -> None:
        self._adding = threading.Lock()  # the longer one: files are read under it
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """For the deep copy of a pipeline: it has the same adapters, and weights of its own."""
        with self._lock:
            state = {**self.__dict__, "_broker": None}
        del state["_adding"], state["_lock"]
        return object.__new__, (Loras,), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for side in self._sides.values():
            side.is_owned = True
        self._locks()

    # ---- the verbs

    def add(
        self,
        path_or_name: str | os.PathLike[str],
        name: str,
        weight: Weight = 1.0,
        te_weight: float | None = None,
        *,
        force: bool = False,
    ) -> Added:
        """Applies an adapter: a .safetensors file, a PEFT folder, or what the broker calls so.

        `weight` counts for all components, `te_weight` for the text encoders instead; see
        `weights`. Another file under a name that is there takes its place in one step; the same
        one gets the weight. An adapter for another family of models is refused, unless `force`
        says to apply the layers that fit. After an error everything is as it was.
        """
        began = time.perf_counter()
        weight = weighting.checked(self._both(weight, te_weight), self._layers.components)
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(f"{name!r:.80} is not a name for an adapter")
        source = sources.find(path_or_name)
        with self._adding:
            with self._lock:
                self._look_again()
            held = self._adapters.get(name)
            if held is None or held.file.identity != source.identity:
                file = sources.open_source(source, self._broker)
                if held is None or held.file.identity != file.identity:
                    with adapters.named_in_errors(file):
                        file = foreign.translated(file, self._target, self._layers)
                        held = adapters.make(file, self._layers, force=force)
            with self._lock:
                self._check_limits(name, held)
                self._change({**self._adapters, name: held}, {**self._weights, name: weight})
        return held.added(name, began)

    def remove(self, name: str) -> None:
        """Takes it away, and nothing of it remains. NotFoundError for a name that is not there."""
        with self._lock:
            self._check_name(name)
            adapters = {key: held for key, held in self._adapters.items() if key != name}
            weights = {key: held for key, held in self._weights.items() if key != name}
            self._change(adapters, weights)

    def clear(self) -> None:
        """Takes all of them away."""
        with self._lock:
            self._change({}, {})

    @property
    def names(self) -> list[str]:
        """Of the adapters, in the order in which they were added."""
        return list(self._adapters)

    @property
    def weights(self) -> Weights:
        """By name; a mapping to read and to set.

        `weights[name] = x` changes one. Assigning a mapping sets those that it names and switches
        the others off (weight 0: nothing of them is computed). A value is a number, or diffusers'
        dictionary: {"unet": {"down": 0.5, "up": {"block_1": [0.2, 1.0]}}, "text_encoder": 0.3}.
        """
        return Weights(lambda: self._weights, self._weigh)

    @weights.setter
    def weights(self, weights: Mapping[str, Weight]) -> None:
        if not isinstance(weights, Mapping):
            raise InvalidArgumentError(f"weights must be a mapping by name, not {weights!r:.80}")
        with self._lock:
            others = dict.fromkeys(self._adapters.keys() - weights.keys(), 0.0)
            self._weigh({**others, **weights})

    def __repr__(self) -> str:
        return f"<Loras {dict(self._weights)!r}>"

    # ---- inside

    def _both(self, weight: Weight, te_weight: float | None) -> Weight:
        if te_weight is None:
            return weight
        encoders = [key for key in self._sides if key.startswith("text_encoder")]
        others = [key for key in self._sides if not key.startswith("text_encoder")]
        if isinstance(weight, Mapping):
            return {**weight, **dict.fromkeys(encoders, te_weight)}
        return {**dict.fromkeys(others, weight), **dict.fromkeys(encoders, te_weight)}

    def _check_name(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(map(shown, self._adapters)) or "none"
            raise NotFoundError(f"there is no adapter {name!r:.120}: there are {known}")

    def _check_limits(self, name: str, new: Adapter) -> None:
        others = [held for key, held in self._adapters.items() if key != name]
        if self._max_adapters is not None and len(others) + 1 > self._max_adapters:
            raise ResourceExhaustedError(
                f"{len(others)} adapters are there, and max_adapters is {self._max_adapters}: "
                "remove() one",
                {"limit": self._max_adapters},
            )
        size = sum(held.shared_bytes + held.private_bytes for held in (*others, new))
        if self._memory_limit is not None and size > self._memory_limit:
            raise ResourceExhaustedError(
                f"the adapters would be {size / _MB:.1f} MB, and memory_limit_mb is "
                f"{self._memory_limit / _MB:g}: remove() one",
                {"needed": size, "limit": int(self._memory_limit)},
            )

    def _weigh(self, weights: Mapping[str, Any]) -> None:
        with self._lock:
            for name in weights:
                self._check_name(name)
            checked = {
                name: weighting.checked(value, self._layers.components)
                for name, value in weights.items()
            }
            self._weights = {**self._weights, **checked}
            self._activate()

    def _look_again(self) -> None:
        """Puts the adapters beside what has taken another layer's or component's place since."""
        before, components = self._layers, _components(self._target)
        if before.are_of(components):
            return
        self._layers = layers = Layers(components, before)
        same = before.components == layers.components
        if same and all(layers.has(held.targets) for held in self._adapters.values()):
            return
        self._rebuild(layers)

    def _rebuild(self, layers: Layers) -> None:
        again = {
            name: adapters.make(held.file, layers, force=True)
            for name, held in self._adapters.items()
        }
        for key, side in list(self._sides.items()):
            if layers.components.get(key) is not side.component:
                side.end()
                del self._sides[key]
        for key, component in layers.components.items():
            if key not in self._sides:
                _taken_over(component)
                self._sides[key] = Side(component)
        self._change(again, self._weights)

    def _change(self, adapters: dict[str, Adapter], weights: dict[str, Weight]) -> None:
        """Other adapters; all sides or none."""
        before = self._needed(self._adapters.values())
        after = self._needed(adapters.values())
        both = {key: {**before[key], **after[key]} for key in self._sides}
        try:
            for key, layers in both.items():
                self._sides[key].need(layers)
        except BaseException:
            for key, side in self._sides.items():
                side.need(before[key])
            raise
        self._adapters, self._weights = adapters, weights
        self._activate()
        for key, layers in after.items():
            if len(layers) < len(both[key]):
                self._sides[key].need(layers)

    def _needed(self, adapters: Iterable[Adapter]) -> dict[str, dict[str, Layer]]:
        needed: dict[str, dict[str, Layer]] = {key: {} for key in self._sides}
        for held in adapters:
            for key, bound in held.bound.items():
                needed.get(key, {}).update(bound.layers)
        return needed

    def _activate(self) -> None:
        named = tuple((name, held, self._weights[name]) for name, held in self._adapters.items())
        for key, side in self._sides.items():
            side.named = named
            side.active = tuple(
                active
                for name, held in self._adapters.items()
                if (active := _active(held, self._weights[name], key)) is not None
            )


def _active(held: Adapter, weight: Weight, component: str) -> Active | None:
    bound = held.bound.get(component)
    if bound is None:
        return None
    number, by_path = weighting.in_component(weight, component)
    if by_path is not None:
        return Active(bound.parts, number, {path: by_path(path) for path in bound.parts})
    return Active(bound.parts, number, None) if number != 0.0 else None


def _taken_over(component: torch.nn.Module) -> tuple[tuple[str, Adapter, Weight], ...]:
    """What the copy of a component brought along, which ends here: its new owner applies it."""
    orphan = orphan_of(component)
    if orphan is None:
        return ()
    orphan.end()
    return orphan.named


def _unwrapped(target: Any) -> Any:
    """What torch.compile wraps."""
    return getattr(target, "_orig_mod", target)


def _dictionary(target: Any) -> dict[str, Any]:
    try:
        held: dict[str, Any] = vars(target)
    except TypeError:
        raise InvalidArgumentError(
            f"{type(target).__name__} is not a torch module or a pipeline with components"
        ) from None
    return held


def _components(target: Any) -> dict[str, torch.nn.Module]:
    if isinstance(target, torch.nn.Module):
        return {"": target}
    components = getattr(target, "components", None)
    found = {
        key: _unwrapped(module)
        for key, module in (components.items() if isinstance(components, Mapping) else ())
        if isinstance(module, torch.nn.Module) and key.startswith(_COMPONENTS)
    }
    if not found:
        raise InvalidArgumentError(
            f"{type(target).__name__} has no unet, transformer or text encoder: give a pipeline "
            "of diffusers, or a torch module"
        )
    return found
