"""`load_state_dict` of values that are shared memory: parameters are put over it, not copied to.

torch copies each value by `parameter.copy_(value)`. Within the call that is answered by giving the
parameter the same bytes over another private mapping of the block: where dtype, shape, strides and
device agree, and where nobody can tell the difference, because nothing else looks at the
parameter's memory. All else is copied as ever, and all that torch does around it (hooks, overrides,
errors) is torch's. The parameter stays the same object; its version counter grows as by a copy.

As in torch, nothing may compute with a module while it is loaded. A value begins where it does in
the file, not at a multiple of 64 bytes, so the last bit of a product may be another one than with a
copy, as it may with a mapping of the file that is assigned. Imports torch.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .._errors import ModelBrokerError
from .._writes import restore
from . import context
from .twins import PLAIN, Twins, is_dense, is_watched, is_watched_below, over

_COPY = torch.Tensor.copy_
# Functions that still have all of a module's parameters in a variable when they call
# module.load_state_dict: (module, function) -> variable.
_HOLDERS = {
    ("safetensors.torch", "load_model"): "model_state_dict",
    ("diffusers.loaders.single_file_model", "from_single_file"): "model_state_dict",
}
_thread = threading.local()
_installing = threading.Lock()


def install() -> None:
    """Replaces torch.nn.Module.load_state_dict, for those who share; idempotent."""
    with _installing:
        original = torch.nn.Module.load_state_dict
        if getattr(original, "of_modelbroker", False):
            return

        @functools.wraps(original)
        def load_state_dict(
            self: torch.nn.Module,
            state_dict: Mapping[str, Any],
            strict: bool = True,
            assign: bool = False,
        ) -> Any:
            if assign or not _may_share():
                return original(self, state_dict, strict, assign)
            with _let_go(self, sys._getframe(1)), _putting_over():
                return original(self, state_dict, strict, assign)

        load_state_dict.of_modelbroker = True  # type: ignore[attr-defined]  # found by getattr
        torch.nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]  # the door


def _may_share() -> bool:
    return (
        context.is_inside()
        and not getattr(_thread, "is_loading", False)  # otherwise the outer call's mode serves
        and not is_watched()
    )


@contextmanager
def _putting_over() -> Iterator[None]:
    _thread.is_loading = True
    try:
        with Twins() as twins, _Copies(twins):
            yield
    finally:
        _thread.is_loading = False


@contextmanager
def _let_go(module: torch.nn.Module, caller: FrameType | None) -> Iterator[None]:
    """What a caller still has in a variable it does not have meanwhile, and again afterwards."""
    while caller is not None and caller.f_code.co_name == "load_state_dict":  # an override
        caller = caller.f_back
    held = None
    if caller is not None:
        place = caller.f_globals.get("__name__", ""), caller.f_code.co_name
        variables = caller.f_locals if place in _HOLDERS else {}
        if variables.get("model") is module:
            held = variables.get(_HOLDERS[place])
    if not isinstance(held, dict):
        yield
        return
    held.clear()
    try:
        yield
    finally:
        held.update(module.state_dict())


class _Copies(TorchFunctionMode):
    """Answers `parameter.copy_(value)`."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self._twins = twins

    def __torch_function__(
        self, function: Any, _types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        # Every look at a shape comes here too: first what is most frequent.
        if function is not _COPY or len(arguments) != 2 or not self._put(*arguments):
            return function(*arguments, **named) if named else function(*arguments)
        return arguments[0]

    def _put(self, parameter: torch.Tensor, value: Any) -> bool:
        """False: it has to be copied."""
        if not (
            type(value) in PLAIN
            and is_dense(parameter)
            and parameter.dtype is value.dtype
            and parameter.shape == value.shape
            and parameter.stride() == value.stride()
            and value.is_cpu
            and _is_written_plainly(parameter)
        ):
            return False
        if over(parameter.data_ptr(), parameter.nbytes) is None:
            found = _is_seen_by_none(parameter) and self._give_twin(parameter, value)
        else:
            found = self._restore(parameter, value)
        if found:
            torch.autograd.graph.increment_version(parameter)
        return found

    def _give_twin(self, parameter: torch.Tensor, value: torch.Tensor) -> bool:
        twin = self._twins.of(value)
        if twin is None or twin.stride() != parameter.stride():
            return False
        parameter.data = twin
        return True

    def _restore(self, parameter: torch.Tensor, value: torch.Tensor) -> bool:
        """A parameter over a block has the value already, but for what was written since.

        Others may look at its memory (numpy arrays cannot be counted here): it stays where it is.
        """
        mine, theirs, nbytes = parameter.data_ptr(), value.data_ptr(), parameter.nbytes
        if mine == theirs:
            return True
        memory, source = over(mine, nbytes), over(theirs, nbytes)
        if memory is None or source is None or memory._inode != source._inode:
            return False
        if mine - memory.address != theirs - source.address or not memory.writable:
            return False
        if self._twins.is_written(theirs, nbytes):
            return False
        if self._twins.is_written(mine, nbytes):
            try:
                everything = memory.address, memory.address + memory.size
                restore(memory, [(mine, mine + nbytes)], [everything])
            except ModelBrokerError:
                return False
        return True


def _is_written_plainly(parameter: torch.Tensor) -> bool:
    """Whether a copy into it would do no more than to change its bytes."""
    return (
        not torch.is_grad_enabled()  # otherwise it is a step of a graph, or an error
        and not torch.is_inference_mode_enabled()
        and not parameter.is_inference()
        and parameter.is_leaf
        and not is_watched_below()
    )


def _is_seen_by_none(parameter: torch.Tensor) -> bool:
    """Whether all of its memory is its own, and nothing else looks at that."""
    storage = parameter.untyped_storage()
    if storage.nbytes() != parameter.nbytes or parameter.is_pinned():
        return False
    del storage
    return _sight(parameter) == _UNSEEN


def _sight(tensor: torch.Tensor) -> tuple[int | bool, ...]:
    """By what others would look at a tensor's memory; compared to that of one seen by nobody."""
    storage = tensor.untyped_storage()
    return (
        torch._C._storage_Use_Count(storage._cdata),  # other tensors: views, detached ones
        sys.getrefcount(storage),  # the storage itself, in somebody's variable
        tensor._use_count(),  # type: ignore[attr-defined]  # private: DLPack, graphs
        storage.resizable(),  # not where numpy, or a file, has the memory
        storage.is_shared(),  # with other processes
    )


_UNSEEN = _sight(torch.empty(1, device="cpu"))
