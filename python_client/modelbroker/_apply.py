"""apply_to: weights become a module's own parameters and buffers, by torch's load_state_dict.

What fits is torch's to say: its hooks know old names, scalars, lazy and tied modules. What torch
does not do by itself is added: tensors that were one stay one, nothing stays on the meta device
unsaid, and an error leaves the module as it was.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ._dtypes import imported_torch
from ._errors import InvalidArgumentError, ModelBrokerError

if TYPE_CHECKING:
    import torch

_KINDS = ("_parameters", "_buffers")
_CONTAINERS = (dict, collections.OrderedDict, list, set)  # their content is kept; no subclasses
_REAL = (
    "build the module with these on the CPU (a transformers model: Class.from_pretrained(None, "
    "config=config, state_dict=weights.state_dict())), or use strict=False and make them yourself"
)
_PART = "choose the part of the file by prefix=, or use strict=False to apply what fits"
_APART = "untie them first, or use strict=False: each gets what the file has under its name"


@dataclass(frozen=True, slots=True)
class AppliedReport:
    """What `apply_to` did not do. Names of the module's, but for `unexpected`."""

    missing: list[str]  # wanted by the module, not in the weights
    unexpected: list[str]  # in the weights, not wanted by the module
    still_on_meta: list[str]  # parameters and buffers without memory: make them real before use


class _Slot(NamedTuple):
    """A place of a parameter or a buffer: one, however many names lead to it."""

    name: str
    owner: torch.nn.Module
    kind: str
    key: str

    def tensor(self) -> torch.Tensor | None:
        found: torch.Tensor | None = getattr(self.owner, self.kind).get(self.key)
        return found

    def put(self, tensor: torch.Tensor) -> None:
        if self.kind == "_parameters":
            setattr(self.owner, self.key, tensor)  # recurrent modules keep a list of their own
        else:
            self.owner._buffers[self.key] = tensor


def apply(
    tensors: dict[str, torch.Tensor], module: torch.nn.Module, model: str, strict: bool
) -> AppliedReport:
    """See Weights.apply_to."""
    torch = imported_torch()
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgumentError(f"apply_to wants a torch.nn.Module, not {module!r}")
    before = _Before(module)
    try:
        try:
            with torch.device("cpu"):  # what hooks make beside the weights lies beside them
                result = module.load_state_dict(tensors, strict=False, assign=True)
        except ModelBrokerError:
            raise
        except Exception as error:
            raise InvalidArgumentError(
                f"{_what(model, module)}, and is left as it was: {type(error).__name__}: {error}"
            ) from error
        missing, unexpected = result or ([], [])
        tied, apart = before.tie_again(tensors.keys() - set(unexpected))
        report = AppliedReport(
            [name for name in missing if name not in tied], list(unexpected), _on_meta(module)
        )
        if strict:
            _refuse_what_is_left(report, apart, _what(model, module))
    except BaseException:
        before.restore()
        raise
    return report


def _what(model: str, module: torch.nn.Module) -> str:
    return f"model {model!r} does not fit {type(module).__name__}"


def _refuse_what_is_left(report: AppliedReport, apart: list[list[str]], what: str) -> None:
    reasons = []
    if report.missing or report.unexpected:
        reasons.append(
            f"missing {_some(report.missing)}, unexpected {_some(report.unexpected)}: {_PART}"
        )
    if apart:
        reasons.append(
            f"{_some(['/'.join(names) for names in apart])} are one in the module, and the file "
            f"has different values for them: {_APART}"
        )
    unfilled = [name for name in report.still_on_meta if name not in report.missing]
    if unfilled:
        reasons.append(f"{_some(unfilled)} would stay on the meta device, without values: {_REAL}")
    if reasons:
        raise InvalidArgumentError(f"{what}, and is left as it was: {'; '.join(reasons)}")


def _slots(module: torch.nn.Module) -> Iterator[tuple[_Slot, torch.Tensor]]:
    """Under every name: tied ones and shared modules have several."""
    for kind in _KINDS:
        for path, owner in module.named_modules(remove_duplicate=False):
            for key, tensor in getattr(owner, kind).items():
                if tensor is not None:
                    yield _Slot(f"{path}.{key}" if path else key, owner, kind, key), tensor


def _on_meta(module: torch.nn.Module) -> list[str]:
    return [slot.name for slot, tensor in _slots(module) if tensor.is_meta]


class _Before:
    """A module before it is changed: which of its tensors are one, and how to get it back."""

    def __init__(self, module: torch.nn.Module) -> None:
        from torch.nn.parameter import is_lazy

        groups: dict[int, tuple[torch.Tensor, list[_Slot]]] = {}
        for slot, tensor in _slots(module):
            groups.setdefault(id(tensor), (tensor, []))[1].append(slot)
        self._tied = [group for group in groups.values() if len(group[1]) > 1]
        # A lazy one gets its shape in place.
        self._lazy = [(t, type(t), t.data) for t, _ in groups.values() if is_lazy(t)]
        self._modules = [(part, _attributes(part)) for part in module.modules()]

    def tie_again(self, taken: Set[str]) -> tuple[set[str], list[list[str]]]:
        """The names of tied tensors that have been loaded, and what the file holds apart."""
        loaded: set[str] = set()
        apart: list[list[str]] = []
        for old, slots in self._tied:
            new = [(slot, now) for slot in slots if (now := slot.tensor()) is not None]
            changed = [(slot, now) for slot, now in new if now is not old]
            if changed or any(slot.name in taken for slot in slots):
                loaded.update(slot.name for slot in slots)
            if not changed:  # not in the weights; or torch is told to change tensors in place
                continue
            first = changed[0][1]
            different = [slot.name for slot, now in changed if not _same(first, now)]
            if different:
                apart.append([changed[0][0].name, *different])
            for slot, now in new:
                if now is not first and slot.name not in different:
                    slot.put(first)
        return loaded, apart

    def restore(self) -> None:
        for tensor, kind, data in self._lazy:
            if type(tensor) is not kind:
                tensor.data = data
                tensor.__class__ = kind  # torch changed it
        for part, attributes in self._modules:
            now = vars(part)
            now.clear()
            for key, (value, content) in attributes.items():
                now[key] = value
                if content is not None:
                    _refill(value, content)


def _attributes(part: torch.nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each with its content where it is a plain container: those that hold tensors are."""
    return {
        key: (value, copy.copy(value) if type(value) in _CONTAINERS else None)
        for key, value in vars(part).items()
    }


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit: a NaN is as good as another value."""
    import torch

    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    with torch.no_grad():
        raw = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other)]
        return bool(torch.equal(*raw))


def _some(names: list[str]) -> str:
    return f"{names[:5]} and {len(names) - 5} more" if len(names) > 5 else str(names)
