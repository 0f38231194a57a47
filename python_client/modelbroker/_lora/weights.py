"""The weights of adapters: a number, or diffusers' dictionary of components and blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from .._errors import InvalidArgumentError
from .words import shown

Weight: TypeAlias = "float | Mapping[str, Any]"

_SIDES = ("down", "mid", "up")
_BLOCK = "block_"


def checked(value: Any, components: Iterable[str]) -> Weight:
    """What was given, copied; InvalidArgumentError for what is no weight, naming the part."""
    if not isinstance(value, Mapping):
        return _number(value, "the weight")
    components = set(components)
    return {key: _of_component(key, inner, components) for key, inner in value.items()}


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{what} must be a number, not {value!r:.80}") from None
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{what} is {number}: only finite numbers are weights")
    return number


def _of_component(key: Any, value: Any, components: set[str]) -> Any:
    if key in _SIDES:
        return _of_side(key, value)
    if key not in components:
        known = ", ".join(sorted({*components, *_SIDES} - {""}))
        raise InvalidArgumentError(f"there is no {key!r:.80} to weight: it may be {known}")
    if not isinstance(value, Mapping):
        return _number(value, f"the weight of {key!r}")
    for side in value:
        if side not in _SIDES:
            raise InvalidArgumentError(f"{side!r:.80} of {key!r} must be down, mid or up")
    return {side: _of_side(side, inner) for side, inner in value.items()}


def _of_side(side: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _of_block(side, value)
    for block in value:
        number = str(block).removeprefix(_BLOCK)
        if not (str(block).startswith(_BLOCK) and number.isdecimal()):
            raise InvalidArgumentError(f"{block!r:.80} of {side!r} must be block_0, block_1, …")
    return {block: _of_block(f"{side}.{block}", inner) for block, inner in value.items()}


def _of_block(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_number(one, f"a weight of {shown(name)}") for one in value]
    return _number(value, f"the weight of {shown(name)}")


def in_component(weight: Weight, component: str) -> tuple[float, Callable[[str], float] | None]:
    """The weight of the component's layers; and by the layer's path where they differ.

    What a dictionary does not name has the weight 1, as with diffusers.
    """
    if not isinstance(weight, Mapping):
        return weight, None
    blocks = weight if any(side in weight for side in _SIDES) else weight.get(component, 1.0)
    if component.startswith("text_encoder"):
        blocks = weight.get(component, 1.0)
    if not isinstance(blocks, Mapping):
        return float(blocks), None
    return 1.0, lambda path: _in_blocks(blocks, path)


def _in_blocks(blocks: Mapping[str, Any], path: str) -> float:
    """Of a UNet: down_blocks.1.attentions.0.… is attention 0 in block_1 of down."""
    words = path.split(".")
    side = words[0].removesuffix("_blocks").removesuffix("_block")
    value = blocks.get(side, 1.0)
    rest = words[1:]
    if isinstance(value, Mapping):
        value = value.get(f"{_BLOCK}{rest[0]}", 1.0) if rest else 1.0
    if side != "mid":
        rest = rest[1:]
    if isinstance(value, list):
        at = rest[1] if len(rest) > 1 else ""
        value = value[int(at)] if at.isdecimal() and int(at) < len(value) else 1.0
    return float(value)


class Weights(MutableMapping[str, Any]):
    """By the adapter's name. Setting one changes only that; see Loras.weights."""

    def __init__(
        self, read: Callable[[], Mapping[str, Weight]], set_one: Callable[[str, Any], None]
    ) -> None:
        self._read, self._set_one = read, set_one

    def __getitem__(self, name: str) -> Weight:
        return self._read()[name]

    def __setitem__(self, name: str, value: Weight) -> None:
        self._set_one(name, value)

    def __delitem__(self, name: str) -> None:
        raise InvalidArgumentError(f"an adapter is taken away by remove({name!r}), not by del")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self._read()))
