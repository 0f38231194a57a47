"""Weights: one model's tensors over memory that every worker shares."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ._block import TensorEntry
from ._dtypes import numpy_dtype, torch_dtype, torch_shape
from ._errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    import torch

    from ._memory import Memory, Mode


@dataclass(frozen=True, slots=True)
class AppliedReport:
    """What `apply_to` did not do. Names of the module's, but for `unexpected`."""

    missing: list[str]  # wanted by the module, not in the weights
    unexpected: list[str]  # in the weights, not wanted by the module
    still_on_meta: list[str]  # parameters and buffers without memory: make them real before use


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor's entry and the array of bytes of the block that holds it."""

    entry: TensorEntry
    bytes: np.ndarray[Any, np.dtype[np.uint8]]


class TensorView:
    """One tensor of a model: what it is, and its memory in the form that you want."""

    __slots__ = ("_placed",)

    def __init__(self, placed: Placed) -> None:
        self._placed = placed

    @property
    def name(self) -> str:
        """As in the file."""
        return self._placed.entry.name

    @property
    def dtype(self) -> str:
        """The safetensors word, e.g. "BF16"."""
        return self._placed.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major."""
        return self._placed.entry.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self._placed.entry.nbytes

    def torch(self) -> torch.Tensor:
        """A CPU tensor with a storage of its own over the shared memory."""
        return _as_torch(self._placed)

    def numpy(self) -> np.ndarray[Any, Any]:
        """An array over the shared memory; bf16 and float8 want ml_dtypes."""
        return self.raw().view(numpy_dtype(self.dtype)).reshape(self.shape)

    def raw(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The tensor's bytes, one-dimensional."""
        return self._placed.bytes

    def __repr__(self) -> str:
        return f"<TensorView {self.name} {self.dtype} {list(self.shape)}>"


def _as_torch(placed: Placed) -> torch.Tensor:
    import torch

    entry = placed.entry
    dtype, shape = torch_dtype(entry.dtype), torch_shape(entry.dtype, entry.shape)
    if entry.nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(placed.bytes, dtype=dtype).view(shape)


class Weights(Mapping[str, TensorView]):
    """The tensors of one model. Nothing is copied: arrays and tensors lie over the broker's block.

    In mode "private" a write stays in this process and costs the pages it touches; in mode
    "readonly" numpy refuses it (torch knows no such tensors: there a write is a segmentation
    fault). The broker keeps the block until this object is released *and* the last tensor or
    array made from it is gone. What was made stays valid whatever happens to the broker.

    Threads: any may read; release() belongs to one.
    """

    def __init__(
        self,
        model: str,
        generation: int,
        mode: Mode,
        metadata: dict[str, str],
        memories: list[tuple[Memory, int, tuple[TensorEntry, ...]]],
    ) -> None:
        """For Broker.attach. `memories`: mapping, payload's offset in it, its tensors."""
        self.model = model
        self.generation = generation
        self.mode: Mode = mode
        self.metadata = metadata
        self._placed: dict[str, Placed] | None = {}
        for memory, payload, entries in memories:
            whole = np.asarray(memory)
            for entry in entries:
                start = payload + entry.offset
                self._placed[entry.name] = Placed(entry, whole[start : start + entry.nbytes])

    # ---- the mapping

    def __getitem__(self, name: str) -> TensorView:
        """KeyError for a name that the model does not have."""
        return TensorView(self._all()[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    # One attach is one thing: comparing all of its bytes is nobody's wish.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "weights are memory of this process: attach in the other one, or copy tensors"
        )

    def __repr__(self) -> str:
        state = "released" if self._placed is None else f"{len(self._placed)} tensors"
        return f"<Weights {self.model!r} generation {self.generation}, {state}, {self.mode}>"

    # ---- all at once

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """torch tensors by name; with `prefix` those below it, their names without it."""
        with warnings.catch_warnings():
            if self.mode == "readonly":
                warnings.filterwarnings("ignore", "The given buffer is not writable")
            return {
                name[len(prefix) :]: _as_torch(placed)
                for name, placed in self._all().items()
                if name.startswith(prefix)
            }

    def numpy(self, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """numpy arrays by name; `prefix` as in state_dict()."""
        return {
            name[len(prefix) :]: TensorView(placed).numpy()
            for name, placed in self._all().items()
            if name.startswith(prefix)
        }

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of one tensor, whatever its dtype."""
        placed = self._all().get(name)
        if placed is None:
            raise NotFoundError(f"model {self.model!r} has no tensor {name!r}")
        return placed.bytes

    def apply_to(
        self, module: torch.nn.Module, *, strict: bool = True, prefix: str = ""
    ) -> AppliedReport:
        """Makes the tensors the module's own parameters and buffers, without a copy.

        Build the module on the meta device first. dtypes become those of the file. With `strict`
        a missing, unexpected or misshapen tensor is an error, and the module stays as it was.
        """
        tensors = self.state_dict(prefix)
        wanted = module.state_dict()
        missing = [name for name in wanted if name not in tensors]
        unexpected = [name for name in tensors if name not in wanted]
        misshapen = [
            f"{name}: {list(tensors[name].shape)} in the weights, {list(value.shape)} wanted"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ]
        if misshapen or (strict and (missing or unexpected)):
            raise InvalidArgumentError(
                f"model {self.model!r} does not fit {type(module).__name__}: "
                f"missing {_some(missing)}, unexpected {_some(unexpected)}, "
                f"of another shape {_some(misshapen)}"
            )
        module.load_state_dict(tensors, strict=False, assign=True)
        named = [
            *module.named_parameters(remove_duplicate=False),  # tied ones under each name
            *module.named_buffers(remove_duplicate=False),
        ]
        return AppliedReport(missing, unexpected, [name for name, t in named if t.is_meta])

    # ---- the end

    def release(self) -> None:
        """No more tensors from here; the lease ends when those made are gone. Idempotent."""
        self._placed = None

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _all(self) -> dict[str, Placed]:
        if self._placed is None:
            raise FailedPreconditionError(
                f"the weights of {self.model!r} were released: attach again"
            )
        return self._placed


def _some(names: list[str]) -> str:
    return f"{names[:5]} and {len(names) - 5} more" if len(names) > 5 else str(names)
