"""The weights of adapters: a number, or diffusers' dictionary of components and blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .._errors import InvalidArgumentError
from .words import shown

if TYPE_CHECKING:
    import torch

Weight: TypeAlias = "float | Mapping[str, Any]"

_SIDES = ("down", "mid", "up")
_BLOCK = "block_"


def checked(value: Any, components: Mapping[str, torch.nn.Module]) -> Weight:
    """What was given, copied; InvalidArgumentError names the part that is not a weight."""
    if not isinstance(value, Mapping):
        return _number(value, "the weight")
    alone = components.get("")
    if alone is not None:
        blocks: Weight = _of_component("the module", value, alone)
        return blocks
    unknown = [key for key in value if key not in components]
    if unknown:
        known = ", ".join(sorted(components))
        raise InvalidArgumentError(f"there is no {unknown[0]!r:.80} to weight: it may be {known}")
    return {
        key: _of_component(repr(key), inner, components[key])
        if isinstance(inner, Mapping)
        else _number(inner, f"the weight of {key!r}")
        for key, inner in value.items()
    }


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{what} must be a finite number, not {value!r:.80}")
    return number


def _of_component(what: str, value: Mapping[Any, Any], component: torch.nn.Module) -> Any:
    """By sides, which are diffusers' blocks of a UNet."""
    blocks = _blocks_of(component)
    for side in value:
        if side not in blocks:
            has = f"it may be {', '.join(blocks)}" if blocks else "it has no blocks: give a number"
            raise InvalidArgumentError(f"there is no {side!r:.80} in {what}: {has}")
    return {side: _of_side(side, inner, blocks[side]) for side, inner in value.items()}


def _blocks_of(component: torch.nn.Module) -> dict[str, dict[str, int]]:
    """How many attentions each block has, by its side and name; the middle is one block."""
    found: dict[str, dict[str, int]] = {}
    for side in _SIDES:
        held = getattr(component, f"{side}_block" if side == "mid" else f"{side}_blocks", None)
        if held is not None:
            blocks = [held] if side == "mid" else held
            found[side] = {
                f"{_BLOCK}{number}": len(getattr(block, "attentions", None) or ())
                for number, block in enumerate(blocks)
            }
    return found


def _of_side(side: str, value: Any, blocks: Mapping[str, int]) -> Any:
    if side == "mid" or not isinstance(value, Mapping):
        for block, attentions in blocks.items():
            if attentions or side == "mid":
                _of_block(side if side == "mid" else f"{side}.{block}", value, attentions)
        return _of_block(side, value, None)
    for block in value:
        if block not in blocks:
            raise InvalidArgumentError(
                f"there is no {block!r:.80} in {side!r}: it may be {', '.join(blocks)}"
            )
    return {
        block: _of_block(f"{side}.{block}", inner, blocks[block]) for block, inner in value.items()
    }


def _of_block(name: str, value: Any, attentions: int | None) -> Any:
    """`attentions`: how many a list may name; None where that was looked at before."""
    if not isinstance(value, (list, tuple)):
        return _number(value, f"the weight of {shown(name)}")
    if attentions is not None and len(value) not in (1, attentions):
        raise InvalidArgumentError(
            f"{shown(name)} has {attentions} attentions, and {len(value)} weights were given: give "
            "one, or one for each"
        )
    return [_number(one, f"a weight of {shown(name)}") for one in value]


def in_component(weight: Weight, component: str) -> tuple[float, Callable[[str], float] | None]:
    """The weight of the component's layers; and by the layer's path where they differ.

    What a dictionary does not name has the weight 1, as with diffusers.
    """
    if not isinstance(weight, Mapping):
        return weight, None
    blocks = weight.get(component, 1.0) if component else weight
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
        at = rest[1] if len(rest) > 1 and len(value) > 1 else "0"
        value = value[int(at)] if at.isdecimal() and int(at) < len(value) else 1.0
    return float(value)


class Weights(MutableMapping[str, Any]):
    """By the adapter's name. Setting one changes only that; see Loras.weights."""

    def __init__(
        self, read: Callable[[], Mapping[str, Weight]], write: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._read, self._write = read, write

    def __getitem__(self, name: str) -> Weight:
        """A copy: a dictionary inside of it changes nothing."""
        return copy.deepcopy(self._read()[name])

    def __setitem__(self, name: str, value: Weight) -> None:
        self._write({name: value})

    def update(self, *others: Any, **more: Any) -> None:
        """All in one step, or none."""
        self._write(dict(*others, **more))

    def __delitem__(self, name: str) -> None:
        raise InvalidArgumentError(f"an adapter is taken away by remove({name!r}), not by del")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self._read()))
