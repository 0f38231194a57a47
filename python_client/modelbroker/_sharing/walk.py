"""The tensors of what users hold: a module, a pipeline, a state dict, nested lists, one tensor."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from .._errors import InvalidArgumentError

Named: TypeAlias = "tuple[str, Any]"

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def tensors_of(x: Any) -> list[Named]:
    """With their names, tied ones under each. InvalidArgumentError for what holds no tensors."""
    from .._weights import Weights  # which uses this package

    if isinstance(x, Weights):
        x = x.state_dict()
    torch = sys.modules.get("torch")
    if torch is None or isinstance(x, (*_PLAIN, bytearray)):
        raise _not_tensors(x, "")
    return list(_walk(torch, x, "", ()))


def _not_tensors(x: Any, where: str) -> InvalidArgumentError:
    place = f" at {where!r}" if where else ""
    return InvalidArgumentError(
        f"{type(x).__name__}{place} is not a torch module, a pipeline with components, a tensor, "
        "or a dict, list or other iterable of these"
    )


def _walk(torch: Any, x: Any, name: str, above: tuple[int, ...]) -> Iterator[Named]:
    """`above`: the ids of what x lies in."""
    if isinstance(x, torch.Tensor):
        yield name, x
        return
    if isinstance(x, torch.nn.Module):
        yield from _of_module(torch.nn.Module, x, name)
        return
    if id(x) in above:
        return  # a container in itself: its tensors are listed already
    above = (*above, id(x))
    components = getattr(x, "components", None)
    if isinstance(components, Mapping):
        for key, component in components.items():
            if isinstance(component, (torch.Tensor, torch.nn.Module)):  # not tokenizers and such
                yield from _walk(torch, component, _joined(name, key), above)
    elif isinstance(x, Mapping):
        for key, value in x.items():
            if not isinstance(value, _PLAIN):  # a checkpoint has its step, too
                yield from _walk(torch, value, _joined(name, key), above)
    elif isinstance(x, Iterable) and not isinstance(x, (*_PLAIN, bytearray)):
        for index, value in enumerate(x):
            key, held = _pair(value) or (index, value)
            if isinstance(held, _PLAIN):
                raise _not_tensors(held, _joined(name, key))
            yield from _walk(torch, held, _joined(name, key), above)
    else:
        raise _not_tensors(x, name)


def _of_module(base: Any, module: Any, name: str) -> Iterator[Named]:
    for members in (base.named_parameters, base.named_buffers):  # a subclass's may take less
        for key, tensor in members(module, remove_duplicate=False):
            yield _joined(name, key), tensor


def _pair(value: Any) -> tuple[str, Any] | None:
    """A name and what it names, as `named_parameters()` gives them."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[0], value[1]
    return None


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
