"""shared(x): how much of a module, pipeline or dict lies in the broker's memory, and what not."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .. import _memory
from .. import _writes as writes
from .._errors import ModelBrokerError, NotFoundError
from .._intervals import Covered, Range
from .._memory import Memory
from .placed import Located, located, nominal_bytes
from .reasons import Reasons
from .walk import tensors_of

_LISTED = 10


class Copied(NamedTuple):
    """A tensor in memory of this process's own."""

    name: str
    bytes: int
    reason: str


class _Over(NamedTuple):
    """The tensors over one mapping. It is not kept alive by who looks at it."""

    memory: weakref.ref[Memory]
    ranges: dict[str, Range]


class Shared:
    """What modelbroker.shared() found; print it.

    The sizes are those of the moment of that call; what was written is looked up whenever it is
    asked for. Memory that several tensors use counts once, under the first one's name.
    """

    def __init__(self, tensors: int, copied: list[Copied], shared: int, over: list[_Over]) -> None:
        """For shared()."""
        self.tensors = tensors
        self.copied = sorted(copied, key=lambda one: -one.bytes)
        self.copied_bytes = sum(one.bytes for one in copied)
        self.shared_bytes = shared
        self._over = over

    @property
    def bytes(self) -> int:
        """Shared and copied ones."""
        return self.shared_bytes + self.copied_bytes

    @property
    def written_bytes(self) -> int:
        """What writes cost now: this process's own pages, whole, under the shared tensors."""
        return sum(
            writes.written_bytes_under(memory, ranges.values()) for memory, ranges in self._alive()
        )

    def written(self) -> list[str]:
        """Names of the shared tensors that this process has written to; see Weights.written()."""
        return [
            name
            for memory, ranges in self._alive()
            for name in writes.written_names(memory, ranges)
        ]

    def restore(self, names: Iterable[str] | None = None) -> int:
        """Gives the shared tensors, or those named, the broker's bytes again.

        They stay where they are. Returns how many bytes of memory it gave back. NotFoundError for
        a name that it did not see; nothing is done for tensors that were copied. Nothing else may
        write to the tensors meanwhile.
        """
        wanted = None if names is None else {names} if isinstance(names, str) else set(names)
        if wanted is not None:
            self._check(wanted)
        given = 0
        for memory, ranges in self._alive():
            chosen = [found for name, found in ranges.items() if wanted is None or name in wanted]
            others = writes.tensor_ranges(memory, memory.entries()).values()
            given += writes.restore(memory, chosen, others)
        return given

    def _check(self, names: set[str]) -> None:
        known = {name for over in self._over for name in over.ranges}
        unknown = names - known - {one.name for one in self.copied}
        if unknown:
            raise NotFoundError(f"there was no tensor {min(unknown)!r}")

    def _alive(self) -> Iterator[tuple[Memory, dict[str, Range]]]:
        for over in self._over:
            memory = over.memory()
            if memory is not None:
                yield memory, over.ranges

    def __str__(self) -> str:
        total = self.bytes
        sharing = f"{_size(self.shared_bytes)} ({_percent(self.shared_bytes, total)})"
        lines = [
            f"{_size(total)} in {self.tensors} tensors",
            f"  shared {sharing}, of which {self._written_in_words()} written",
            f"  copied {_size(self.copied_bytes)} ({_percent(self.copied_bytes, total)})",
        ]
        lines += [
            f"    {_size(one.bytes):>8}  {one.name or 'the tensor'}: {one.reason}"
            for one in self.copied[:_LISTED]
        ]
        rest = self.copied[_LISTED:]
        if rest:
            lines.append(f"    {_size(sum(one.bytes for one in rest)):>8}  in {len(rest)} others")
        return "\n".join(lines)

    def _written_in_words(self) -> str:
        try:
            return _size(self.written_bytes)
        except ModelBrokerError:  # no pagemap, and no block to compare with
            return "an unknown part"

    def __repr__(self) -> str:
        return f"<Shared {self.shared_bytes} of {self.bytes} bytes>"


def shared(x: Any) -> Shared:
    """Looks at each tensor of `x`: is its memory the broker's, or a copy?

    `x`: a torch module, a pipeline (an object with `components`), a tensor, or a dict, list or
    other iterable of these, nested; InvalidArgumentError for others. Nothing is kept alive.
    """
    tensors = tensors_of(x)
    memories = _memory.live()
    looking = _Looking(memories)
    for name, tensor in tensors:
        looking.at(name, tensor)
    return Shared(len(tensors), looking.copied, looking.shared_bytes, looking.over())


class _Looking:
    """The counts, as they grow."""

    def __init__(self, memories: list[Memory]) -> None:
        self.copied: list[Copied] = []
        self.shared_bytes = 0
        self._memories = memories
        self._torch = sys.modules["torch"]
        self._covered: dict[str, Covered] = {}  # by device
        self._unlocated: set[int] = set()  # ids of tensors, all of which live
        self._ranges: dict[int, tuple[Memory, dict[str, Range]]] = {}
        self._reasons: Reasons | None = None

    def at(self, name: str, tensor: Any) -> None:
        where = located(self._torch, tensor)
        if isinstance(where, str):
            new = 0 if id(tensor) in self._unlocated else nominal_bytes(self._torch, tensor)
            self._unlocated.add(id(tensor))
            self._copied(name, new, where)
            return
        end = where.address + where.nbytes
        new = self._covered.setdefault(where.device, Covered()).add(where.address, end)
        memory = _memory.find(where.address) if where.device == "cpu" else None
        if memory is not None and end <= memory.address + memory.size:
            self.shared_bytes += new
            ranges = self._ranges.setdefault(id(memory), (memory, {}))[1]
            ranges[name] = where.address, end
        elif new:
            self._copied(name, new, self._reason(name, tensor, where))

    def _copied(self, name: str, new: int, reason: str) -> None:
        if new:
            self.copied.append(Copied(name, new, reason))

    def _reason(self, name: str, tensor: Any, where: Located) -> str:
        if where.device != "cpu":
            return f"on {where.device}"
        if self._reasons is None:
            self._reasons = Reasons(self._memories)
        return self._reasons.of(name, tensor)

    def over(self) -> list[_Over]:
        return [_Over(weakref.ref(memory), ranges) for memory, ranges in self._ranges.values()]


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total if total else 0:.1f} %"


def _size(nbytes: int) -> str:
    """Three digits, in the units of disks: "2.71 GB"."""
    number, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{nbytes} B" if unit == "B" else f"{number:.3g} {unit}"
