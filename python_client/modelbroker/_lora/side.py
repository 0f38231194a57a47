"""Adapters beside a component's layers: the forward of instances, never a weight or the tree.

An override of `forward` is seen by programs that torch.compile has compiled already; a hook is not.
A call of a component takes what is active once, at its top, and all of its layers go by that, also
while another thread adds, weights or removes.

Threads: any. Imports torch.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from .beside import Beside
from .layers import Layer

_HOOKED = "_old_forward"  # where accelerate's hooks keep the forward that they call


def orphan_of(component: torch.nn.Module) -> Side | None:
    """The state of a component that was copied without its Loras."""
    for place in ("forward", _HOOKED):
        held = component.__dict__.get(place)
        if isinstance(held, _ComponentForward) and not held.side.is_owned:
            return held.side
    return None


class Active(NamedTuple):
    """An adapter that has a weight here. It never changes while a call still computes with it."""

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
        self.is_owned = True  # by a Loras; the deep copy of a component alone has none
        self.named: tuple[tuple[str, Any, Any], ...] = ()  # adapters and weights, for an owner
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
        self.__dict__.update(state, _lock=threading.Lock(), is_owned=False)

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
                if self._layers[path].take_away():
                    del self._layers[path]


class _Forward:
    """In a module's place for `forward`; beneath accelerate's hooks, if it has any."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        # None for the class's own: a bound method would be pickled as "the module's forward",
        # which is this.
        self._base: Callable[..., Any] | None = None
        self._is_put = False

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._base or type(self.module).forward.__get__(self.module))

    def base(self, *args: Any, **kwargs: Any) -> Any:
        """What was there before this."""
        if self._base is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return self._base(*args, **kwargs)

    def put(self) -> None:
        """Idempotent. Where another program has wrapped this, it is beneath, and stays there."""
        held = self.module.__dict__
        if self._is_put and not self._was_removed():
            return
        place = _HOOKED if _HOOKED in held and "_hf_hook" in held else "forward"
        found = held.get(place)
        self._base = None if self._is_the_class_s(found) else found
        held[place] = self
        self._is_put = True

    def take_away(self) -> bool:
        """False where another program has wrapped it: then it stays, and does nothing."""
        held = self.module.__dict__
        if held.get(_HOOKED) is self:
            held[_HOOKED] = self._base or type(self.module).forward.__get__(self.module)
        elif held.get("forward") is self:
            if self._base is None:
                del held["forward"]
            else:
                held["forward"] = self._base
        elif not self._was_removed():
            return False
        self._is_put = False
        return True

    def _was_removed(self) -> bool:
        """By a program that gave the module its class's forward again."""
        held = self.module.__dict__
        return _HOOKED not in held and self._is_the_class_s(held.get("forward"))

    def _is_the_class_s(self, forward: Any) -> bool:
        if forward is None:
            return True
        of_class = getattr(forward, "__func__", None) is type(self.module).forward
        return of_class and forward.__self__ is self.module


class _ComponentForward(_Forward):
    """Takes the state for a call of the whole component."""

    def __init__(self, module: torch.nn.Module, side: Side) -> None:
        super().__init__(module)
        self.side = side

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        side = self.side
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            args, kwargs = _positional(type(self.module), kwargs)
            if not args:
                return self.base(**kwargs)
        x, *others = args
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
            return self.base(*args, **kwargs)
        y, plain = self._own(parts, x, others, kwargs)
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


def _positional(kind: type, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the first parameter's, the layer's input, before the others."""
    name = _first_parameter(kind)
    if name not in kwargs:
        return (), kwargs  # the layer's own forward says what is missing
    return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}


@functools.cache
def _first_parameter(kind: type) -> str:
    names = list(inspect.signature(kind.forward).parameters)  # type: ignore[attr-defined]  # a module's
    return names[1] if len(names) > 1 else ""
