"""Adapters beside a component's layers: the forward of instances, never a weight or the tree.

An override of `forward` is seen by programs that torch.compile has compiled already; a hook is not.
A call of a component takes what is active once, at its top, and all of its layers go by that, also
while another thread adds, weights or removes.

Threads: any. Imports torch.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from .beside import Beside
from .layers import Layer

_HOOKED = "_old_forward"  # where accelerate's hooks keep the forward that they call


class Active(NamedTuple):
    """An adapter that has a weight here. It never changes, whoever still computes with it."""

    parts: dict[str, Beside]  # by the layer's path; what another device has is replaced
    weight: float
    weights: Mapping[str, float] | None  # by the layer's path, where they differ

    def weight_of(self, path: str) -> float:
        """0 where the layer is to be left alone."""
        return self.weight if self.weights is None else self.weights.get(path, self.weight)

    def __deepcopy__(self, _: object) -> Active:
        return self


class _Taken(threading.local):
    """What the call of the component in this thread took; None outside of one."""

    active: tuple[Active, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # deepcopy and pickle: a call is not copied
        return _Taken, ()


class Side:
    """One component: what is active, and which layers have our forward.

    A deep copy of the component has a deep copy of this, over the same adapters.
    """

    def __init__(self, component: torch.nn.Module) -> None:
        self.component = component
        self.active: tuple[Active, ...] = ()
        self.taken = _Taken()
        self._layers: dict[str, _LayerForward] = {}
        self._needed: frozenset[str] = frozenset()
        self._running = 0
        self._lock = threading.Lock()
        self._top = _ComponentForward(component, self)
        self._top.put()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_running": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def need(self, layers: Mapping[str, Layer]) -> None:
        """Gives these layers our forward, which does nothing until what is active has them.

        The others lose it: now, or when no call of the component runs any more. An exception
        leaves those as they are; call it again with what was needed before.
        """
        with self._lock:
            self._top.put()
            for path, layer in layers.items():
                self._put(path, layer)
            self._needed = frozenset(layers)
            self._tidy()

    def end(self) -> None:
        """Of a component that is not the target's any more."""
        self.active = ()
        self.need({})
        self._top.take_away()

    def enter(self) -> None:
        """A call begins in this thread."""
        with self._lock:
            self._running += 1

    def leave(self) -> None:
        """And ends. The last one takes away what only it still needed."""
        with self._lock:
            self._running -= 1
            self._tidy()

    def _put(self, path: str, layer: Layer) -> None:
        held = self._layers.get(path)
        if held is None or held.module is not layer.module:  # one that was replaced in the tree
            if held is not None:
                held.take_away()
            held = self._layers[path] = _LayerForward(layer, self, path)
        held.put()

    def _tidy(self) -> None:
        if self._running == 0 and len(self._layers) > len(self._needed):
            for path in self._layers.keys() - self._needed:
                self._layers.pop(path).take_away()


class _Forward:
    """In a module's place for `forward`; beneath accelerate's hooks, if it has any."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.base: Callable[..., Any] = module.forward

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.base)

    def put(self) -> None:
        """Idempotent."""
        held = self.module.__dict__
        if held.get("forward") is self or held.get(_HOOKED) is self:
            return
        place = _HOOKED if _HOOKED in held and "_hf_hook" in held else "forward"
        self.base = held.get(place) or self.module.forward
        held[place] = self

    def take_away(self) -> None:
        """Where somebody has wrapped this meanwhile, it stays beneath, and does nothing."""
        held = self.module.__dict__
        if held.get(_HOOKED) is self:
            held[_HOOKED] = self.base
        elif held.get("forward") is not self:
            pass
        elif self._is_the_class_s(self.base):
            del held["forward"]
        else:
            held["forward"] = self.base

    def _is_the_class_s(self, forward: Any) -> bool:
        of_class = getattr(forward, "__func__", None) is type(self.module).forward
        return of_class and forward.__self__ is self.module


class _ComponentForward(_Forward):
    """Takes the state for a call of the whole component."""

    def __init__(self, module: torch.nn.Module, side: Side) -> None:
        super().__init__(module)
        self._side = side

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        side = self._side
        if torch.compiler.is_compiling():
            return self.base(
                *args, **kwargs
            )  # one graph: its guards are looked at once, at its top
        taken = side.taken
        before = taken.active
        side.enter()
        taken.active = side.active
        try:
            return self.base(*args, **kwargs)
        finally:
            taken.active = before
            side.leave()


class _LayerForward(_Forward):
    """The layer's own output, and what the adapters that are active add to it."""

    def __init__(self, layer: Layer, side: Side, path: str) -> None:
        super().__init__(layer.module)
        self._layer = layer
        self._side = side
        self._path = path

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        active = self._side.taken.active
        if active is None:
            active = self._side.active
        parts: list[tuple[Beside, float]] = []
        path = self._path
        for adapter in active:
            part = adapter.parts.get(path)
            if part is not None:
                weight = adapter.weight_of(path)
                if weight != 0.0:
                    if part.device != x.device:  # the layer was moved
                        part = adapter.parts[path] = part.to(x.device, part.dtype)
                    parts.append((part, weight))
        if not parts:
            return self.base(x, *args, **kwargs)
        y, plain = self._own(parts, x, args, kwargs)
        for part, weight in parts:
            y = part.add(y, x, plain, weight)
        return y

    def _own(
        self, parts: Iterable[tuple[Beside, float]], x: Any, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Its output, and without its bias where DoRA by rows asks for that."""
        factor: Any = None
        wants_plain = False
        for part, weight in parts:
            gain = part.gain(weight)
            if gain is not None:
                factor = gain if factor is None else factor + gain
            wants_plain = wants_plain or part.needs_plain
        if factor is None:
            y = self.base(x, *args, **kwargs)
            return y, self._layer.without_bias(y) if wants_plain else None
        y = self.base((x * (1 + factor)).to(x.dtype), *args, **kwargs)
        plain = self.base(x, *args, **kwargs) if wants_plain else None
        return y, None if plain is None else self._layer.without_bias(plain)
