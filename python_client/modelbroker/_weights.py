"""Weights: one model's tensors over memory that every worker shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from ._apply import AppliedReport, apply
from ._block import Entry, Header, decode_manifest
from ._dtypes import DTYPES, Bytes, for_torch, imported_torch, numpy_dtype, torch_maker
from ._errors import FailedPreconditionError, NotFoundError
from ._writes import restore, restore_all, tensor_ranges, written_names

if TYPE_CHECKING:
    import torch

    from ._memory import Memory, Mode


class Placed(NamedTuple):
    """Where a tensor is: `start` counts bytes in the array of its block."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    block: Bytes

    def bytes(self) -> Bytes:
        """The tensor's, one-dimensional."""
        return self.block[self.start : self.start + self.nbytes]


class Part(NamedTuple):
    """The tensors of one block. They stay as msgpack gave them: many are never asked for."""

    block: Bytes
    payload: int  # where it begins
    entries: dict[str, Entry]

    def placed(self, name: str) -> Placed:
        """KeyError where it has no such tensor."""
        _, dtype, shape, offset, nbytes = self.entries[name]
        return Placed(dtype, shape, self.payload + offset, nbytes, self.block)

    def torch(self, prefix: str) -> dict[str, torch.Tensor]:
        """All below a prefix, named without it."""
        block, payload, entries = for_torch(self.block), self.payload, self.entries
        cut = len(prefix)
        return {
            name[cut:]: torch_maker(dtype)(shape, payload + offset, block)
            for name, dtype, shape, offset, _ in entries.values()
            if name.startswith(prefix)
        }


class TensorView:
    """One tensor of a model: what it is, and its memory in the form that you want.

    A pickled or deep-copied one is a copy of this tensor's bytes: it holds no block and no lease.
    """

    __slots__ = ("_placed", "name")

    def __init__(self, name: str, placed: Placed) -> None:
        self.name = name  # as in the file
        self._placed = placed

    @property
    def dtype(self) -> str:
        """The safetensors word, e.g. "BF16"."""
        return self._placed.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major."""
        return self._placed.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self._placed.nbytes

    def torch(self) -> torch.Tensor:
        """A CPU tensor with a storage of its own over the shared memory."""
        placed = self._placed
        return torch_maker(placed.dtype)(placed.shape, placed.start, for_torch(placed.block))

    def numpy(self) -> np.ndarray[Any, Any]:
        """An array over the shared memory; bf16 and float8 want ml_dtypes."""
        return self.raw().view(numpy_dtype(self.dtype)).reshape(self.shape)

    def raw(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The tensor's bytes, one-dimensional."""
        return self._placed.bytes()

    def __copy__(self) -> TensorView:
        return TensorView(self.name, self._placed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (self.name, self.dtype, self.shape, self.raw())

    def __repr__(self) -> str:
        return f"<TensorView {self.name} {self.dtype} {list(self.shape)}>"


def _copied(
    name: str, dtype: str, shape: tuple[int, ...], raw: np.ndarray[Any, np.dtype[np.uint8]]
) -> TensorView:
    """A view over memory of its own, which is writable whatever the mode of the weights was."""
    own = raw if raw.flags.writeable else raw.copy()
    return TensorView(name, Placed(dtype, shape, 0, own.nbytes, own))


class Weights(Mapping[str, TensorView]):
    """The tensors of one model. Nothing is copied: arrays and tensors lie over the broker's block.

    In mode "private" a write stays in this process and costs the pages it touches, until
    restore() undoes it; in mode "readonly" numpy refuses it (torch knows no such tensors: there a
    write is a segmentation fault). The broker keeps the block until this object is released *and*
    the last tensor or array made from it is gone. What was made stays valid whatever happens to
    the broker.

    Threads: any may read; release() belongs to one.
    """

    def __init__(
        self,
        model: str,
        generation: int,
        mode: Mode,
        blocks: list[tuple[Memory, Header]],
        outcome: str,
    ) -> None:
        """For Broker.attach. `blocks`: one a source file, mapped; later names win.

        `outcome` says how they came to be in memory: "loaded" now, "resident", "revived".
        """
        self.model = model
        self.generation = generation
        self.mode: Mode = mode
        self.outcome = outcome
        self._blocks: list[tuple[Memory, Header]] | None = blocks
        self._decoded: tuple[dict[str, str], list[Part]] | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return self._contents()[0]

    # ---- the mapping

    def __getitem__(self, name: str) -> TensorView:
        """KeyError for a name that the model does not have."""
        return TensorView(name, self._placed(name))

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(part.entries for part in self._parts())

    def __len__(self) -> int:
        return sum(len(part.entries) for part in self._parts())

    # One attach is one thing: comparing all of its bytes is nobody's wish.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "weights are memory of this process: attach in the other one, or copy tensors"
        )

    def __repr__(self) -> str:
        state = "released" if self._blocks is None else f"{len(self)} tensors"
        return f"<Weights {self.model!r} generation {self.generation}, {state}, {self.mode}>"

    def blocks(self) -> list[tuple[Memory, Header]]:
        """The mappings, one a source file, and what their headers say of them."""
        if self._blocks is None:
            raise FailedPreconditionError(
                f"the weights of {self.model!r} were released: attach again"
            )
        return self._blocks

    # ---- all at once

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """torch tensors by name; with `prefix` those below it, their names without it."""
        imported_torch()  # or its error, also where nothing is below the prefix
        tensors: dict[str, torch.Tensor] = {}
        for part in self._parts():
            tensors |= part.torch(prefix)
        return tensors

    def numpy(self, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """numpy arrays by name; `prefix` as in state_dict()."""
        return {name[len(prefix) :]: self[name].numpy() for name in self if name.startswith(prefix)}

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of one tensor, whatever its dtype."""
        try:
            return self._placed(name).bytes()
        except KeyError:
            raise NotFoundError(f"model {self.model!r} has no tensor {name!r}") from None

    def apply_to(
        self, module: torch.nn.Module, *, strict: bool = True, prefix: str = ""
    ) -> AppliedReport:
        """Makes the tensors the module's own parameters and buffers, without a copy.

        Build the module on the meta device, its buffers that no file has on the CPU. What fits is
        what torch's load_state_dict(assign=True) takes; dtypes become those of the file, and what
        was one tensor under several names is one again. A tensor of another shape is an error;
        with `strict` so is what the weights or the module do not have, and what would stay on the
        meta device. After an error the module is as it was, its lists and dicts of tensors too;
        only what its own hooks changed inside other objects, or wrote into tensors, stays changed.
        """
        return apply(self.state_dict(prefix), module, self.model, strict)

    # ---- writes

    def written(self) -> list[str]:
        """Names of the tensors that this process has written to since the attach, or restore().

        A tensor is written when one of its 4 KiB pages is a copy of this process's own. On a page
        that it shares with another tensor its bytes must differ from the broker's.
        """
        return [
            name
            for memory, entries in self._mappings()
            for name in written_names(memory, tensor_ranges(memory, entries))
        ]

    def restore(self, names: Iterable[str] | None = None) -> int:
        """Undoes this process's writes; returns how many bytes of memory it gave back.

        Every tensor, view and parameter over these weights has the broker's bytes again, at the
        same address. With `names`, only these tensors do. NotFoundError for a name that the model
        does not have. Nothing else may write to the tensors meanwhile.
        """
        if names is None:
            return sum(restore_all(memory) for memory, _ in self._mappings())
        wanted = {names} if isinstance(names, str) else set(names)
        unknown = wanted.difference(self)
        if unknown:
            raise NotFoundError(f"model {self.model!r} has no tensor {min(unknown)!r}")
        given = 0
        for memory, entries in self._mappings():
            ranges = tensor_ranges(memory, entries)
            chosen = [ranges[name] for name in wanted & ranges.keys()]
            given += restore(memory, chosen, ranges.values())
        return given

    # ---- the end

    def release(self) -> None:
        """No more tensors from here; the lease ends when those made are gone. Idempotent."""
        self._blocks = self._decoded = None

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _parts(self) -> list[Part]:
        return self._contents()[1]

    def _mappings(self) -> list[tuple[Memory, dict[str, Entry]]]:
        """Each with the tensors that are read from it."""
        parts = self._parts()
        blocks = self._blocks or []
        return [(memory, part.entries) for (memory, _), part in zip(blocks, parts, strict=False)]

    def _placed(self, name: str) -> Placed:
        for part in self._parts():
            if name in part.entries:
                return part.placed(name)
        raise KeyError(name)

    def _contents(self) -> tuple[dict[str, str], list[Part]]:
        """Decoded when it is first wanted. Two threads may do it both: the same comes out."""
        decoded, blocks = self._decoded, self.blocks()
        if decoded is None:
            decoded = self._decoded = _decode(blocks)
        return decoded


def flat_runs(weights: Weights) -> list[torch.Tensor]:
    """All numbers as few flat tensors over the same memory, for code that reads every one.

    UnimplementedError as in state_dict().
    """
    return [run for part in weights._parts() for run in _runs(part)]


def _runs(part: Part) -> list[torch.Tensor]:
    """Its numbers as few flat tensors: one for those of a dtype that follow each other."""
    pieces: list[tuple[str, int, int]] = []  # dtype, first and end offset
    for _, dtype, _, offset, nbytes in sorted(part.entries.values(), key=itemgetter(3)):
        if pieces and pieces[-1][0] == dtype and pieces[-1][2] == offset:
            pieces[-1] = (dtype, pieces[-1][1], offset + nbytes)
        else:
            pieces.append((dtype, offset, offset + nbytes))
    block, payload = for_torch(part.block), part.payload
    return [
        torch_maker(dtype)(((end - first) * 8 // DTYPES[dtype].bits,), payload + first, block)
        for dtype, first, end in pieces
    ]


def _decode(blocks: list[tuple[Memory, Header]]) -> tuple[dict[str, str], list[Part]]:
    metadata: dict[str, str] = {}
    parts: list[Part] = []
    known: set[str] = set()
    for memory, header in blocks:
        whole = np.asarray(memory)
        manifest = whole[header.manifest : header.manifest + header.manifest_size]
        about, entries = decode_manifest(manifest.data, header)
        metadata |= about
        if not known.isdisjoint(entries):  # later names win
            for earlier in parts:
                for name in earlier.entries.keys() & entries.keys():
                    del earlier.entries[name]
        known.update(entries)
        parts.append(Part(whole, header.payload, entries))
    return metadata, parts
