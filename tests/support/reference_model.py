"""The books of the RAM tier as they should be: small, slow and plainly right.

Knows files, each one block while it is in memory, and models of one file or several; no bytes, and
no time but what it is told. Prices are all alike, so the oldest goes first: broker/tier/eviction.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FOR_EVER = -1.0
Lease = tuple[int, int]  # worker, number


@dataclass
class Block:
    """A file that is in memory."""

    size: int
    name: str = ""  # told by the broker
    draining: bool = False
    leases: set[Lease] = field(default_factory=set)


@dataclass
class Entry:
    """A model that is in memory."""

    id: str = ""  # orders models that were used at the same time
    last_used: float = 0
    value: float = 0
    keep_alive: float = FOR_EVER
    pinned: bool = False


@dataclass
class Remembered:
    """How an evicted model is kept when it is loaded again."""

    keep_alive: float
    pinned: bool = False


class Books:
    """`parts`: the files of each model, by their numbers; `sizes`: of each file's block."""

    def __init__(self, limit: int, parts: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
        self.limit, self.parts, self.sizes = limit, parts, sizes
        self.blocks: dict[int, Block] = {}
        self.entries: dict[int, Entry] = {}
        self.evicted: dict[int, Remembered] = {}
        self.age = 0.0
        self.loads = self.evictions = 0

    # ---- what follows from what is there

    def blocks_of(self, model: int) -> list[Block]:
        return [self.blocks[part] for part in self.parts[model]]

    def leases_on(self, model: int) -> set[Lease]:
        return set().union(*(block.leases for block in self.blocks_of(model)))

    def owners(self, part: int) -> list[int]:
        return [model for model in self.entries if part in self.parts[model]]

    def evictable(self, model: int, promised: Sequence[int] = ()) -> bool:
        entry = self.entries[model]
        is_promised = not set(promised).isdisjoint(self.parts[model])
        return not entry.pinned and not is_promised and not self.leases_on(model)

    # ---- what happens

    def used(self, model: int, now: float) -> None:
        entry = self.entries[model]
        entry.last_used, entry.value = now, self.age + 1

    def expire(self, now: float) -> None:
        for model, entry in list(self.entries.items()):
            kept = entry.keep_alive
            if self.evictable(model) and kept >= 0 and entry.last_used + kept <= now:
                self._evict(model)

    def _evict(self, model: int) -> None:
        entry = self.entries[model]
        self.age = max(self.age, entry.value)
        self.evictions += 1
        self.evicted[model] = Remembered(entry.keep_alive)
        self._withdraw(model)

    def _withdraw(self, model: int) -> None:
        """Blocks that no other model has drain, until nobody has them."""
        del self.entries[model]
        for part in self.parts[model]:
            if not self.owners(part):
                self.blocks[part].draining = True
        self.free_what_nobody_has()

    def _freed_by(self, models: Sequence[int]) -> int:
        parts = {part for model in models for part in self.parts[model]}
        return sum(
            self.blocks[part].size for part in parts if set(self.owners(part)) <= set(models)
        )

    def make_room(self, size: int, promised: Sequence[int]) -> bool:
        """Evicts what has to go; False and nothing changed if that is not enough."""
        free = self.limit - sum(block.size for block in self.blocks.values())
        if size > self.limit:
            return False
        needed, chosen = size - free, list[int]()
        for model, _ in sorted(
            self.entries.items(), key=lambda it: (it[1].value, it[1].last_used, it[1].id)
        ):
            if self._freed_by(chosen) >= needed:
                break
            if self.evictable(model, promised):
                chosen.append(model)
        if self._freed_by(chosen) < needed:
            return False
        for model in reversed(list(chosen)):
            others = [other for other in chosen if other != model]
            if self._freed_by(others) >= needed:
                chosen = others
        for model in chosen:
            self._evict(model)
        return True

    def load(self, model: int, now: float) -> str | None:
        """The outcome of a load; None: refused. Names of blocks and the id are told afterwards."""
        missing = [part for part in self.parts[model] if part not in self.blocks]
        there = [part for part in self.parts[model] if part in self.blocks]
        revived = [part for part in there if self.blocks[part].draining]
        if missing and not self.make_room(sum(self.sizes[part] for part in missing), there):
            return None
        for part in missing:
            self.loads += 1
            self.blocks[part] = Block(self.sizes[part])
        for part in revived:
            self.blocks[part].draining = False
        outcome = "loaded" if missing else "revived" if revived else "resident"
        if model not in self.entries:
            self.entries[model] = Entry()
            kept = self.evicted.pop(model, None)
            if kept is not None:
                self.entries[model].keep_alive = kept.keep_alive
                self.entries[model].pinned = kept.pinned
        self.used(model, now)
        return outcome

    def lease(self, model: int, lease: Lease) -> None:
        for block in self.blocks_of(model):
            block.leases.add(lease)

    def release(self, lease: Lease, now: float) -> None:
        for part, block in self.blocks.items():
            if lease in block.leases:
                block.leases.discard(lease)
                for model in self.owners(part):
                    self.used(model, now)
        self.free_what_nobody_has()

    def unload(self, model: int) -> bool:
        """False: there is no such model."""
        if self.evicted.pop(model, None) is not None:
            return True
        if model not in self.entries:
            return False
        self._withdraw(model)
        return True

    def restart(self, now: float) -> None:
        """SIGKILL, and the next broker: leases end, counts begin again."""
        self.age, self.loads, self.evictions = 0.0, 0, 0
        for block in self.blocks.values():
            block.leases.clear()
        for model in self.entries:
            self.used(model, now)

    def free_what_nobody_has(self) -> None:
        """Of what drains."""
        for part, block in list(self.blocks.items()):
            if block.draining and not block.leases:
                del self.blocks[part]

    def totals(self) -> dict[str, int]:
        """As `cache.status` tells them."""
        blocks = self.blocks.values()
        pinned = {
            part
            for model, entry in self.entries.items()
            if entry.pinned
            for part in self.parts[model]
        }
        return {
            "reserved": 0,
            "made": sum(b.size for b in blocks if not b.draining),
            "draining": sum(b.size for b in blocks if b.draining),
            "pinned": sum(self.blocks[part].size for part in pinned),
            "leased": sum(b.size for b in blocks if b.leases),
            "models": len(self.entries),
            "leases": len(set().union(*(b.leases for b in blocks))),
            "loads": self.loads,
            "evictions": self.evictions,
        }
