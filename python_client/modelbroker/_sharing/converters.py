"""diffusers' converters of single files in an original layout: their copies are twins.

They take fused weights apart: OpenCLIP's `in_proj` by slices and `.clone()`, Flux' and SD3's by
`torch.chunk` and `torch.cat([one])`. While a converter runs, and nowhere else, such a copy of a
tensor over a block is answered with the same bytes over another private mapping. So it is as
independent of the checkpoint as a copy. What is transposed or put together of several is copied.

Imports diffusers' module, when that is imported.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from . import context
from .twins import Twins, is_watched

_MODULE = "diffusers.loaders.single_file_utils"
# Those that may have imported converters by name before us, one into a table by class.
_USERS = ("diffusers.loaders.single_file", "diffusers.loaders.single_file_model")
_TABLE = "SINGLE_FILE_LOADABLE_CLASSES"
_CLONES = (torch.Tensor.clone, torch.clone)
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_installing = threading.Lock()


def install() -> None:
    """Wraps the converters wherever diffusers has them; idempotent. The module is imported."""
    with _installing:
        wrapped = {
            found: _with_twins(found)
            for name, found in vars(sys.modules[_MODULE]).items()
            if name.startswith("convert_") and type(found) is FunctionType
            if found.__module__ == _MODULE and not hasattr(found, "of_modelbroker")
        }
        for user in (_MODULE, *_USERS):
            if user in sys.modules:
                names = vars(sys.modules[user])
                for table in (names, *names.get(_TABLE, {}).values()):
                    _put(table, wrapped)


def _put(table: dict[str, Any], wrapped: dict[Any, Any]) -> None:
    for name, found in list(table.items()):
        if type(found) is FunctionType and found in wrapped:
            table[name] = wrapped[found]


def _with_twins(converter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(converter)
    def convert(*arguments: Any, **named: Any) -> Any:
        if not context.is_inside() or is_watched():
            return converter(*arguments, **named)
        with Twins() as twins, _Copies(twins):
            return converter(*arguments, **named)

    convert.of_modelbroker = True  # type: ignore[attr-defined]  # found by hasattr
    return convert


class _Copies(TorchFunctionMode):
    """Answers `tensor.clone()` and `torch.cat([tensor])`."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self._twins = twins

    def __torch_function__(
        self, function: Any, _types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        copied = _copied(function, arguments, named)
        if (
            copied is not None
            and not copied.requires_grad
            and not torch.is_inference_mode_enabled()
        ):
            twin = self._twins.of(copied)
            if twin is not None:
                return twin
        return function(*arguments, **named)


def _copied(function: Any, arguments: Any, named: Any) -> torch.Tensor | None:
    """The tensor of which this call would return a copy and nothing else."""
    found: Any = None
    if function in _CLONES and len(arguments) == 1 and not named:
        (found,) = arguments
    elif function in _CONCATENATIONS and arguments and named.keys() <= {"dim", "axis"}:
        parts = arguments[0]
        found = parts[0] if isinstance(parts, list | tuple) and len(parts) == 1 else None
    return found if isinstance(found, torch.Tensor) else None
