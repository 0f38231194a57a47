"""The books of the RAM tier as they should be: small, slow and plainly right.

Knows blocks of one source each, no bytes, and no time but what it is told. Prices are all alike, so
the oldest goes first: broker/tier/eviction.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FOR_EVER = -1.0
Lease = tuple[int, int]  # worker, number


@dataclass
class Entry:
    """A block that is in memory."""

    block: str
    size: int
    last_used: float
    value: float
    keep_alive: float = FOR_EVER
    pinned: bool = False
    draining: bool = False
    leases: set[Lease] = field(default_factory=set)

    def evictable(self) -> bool:
        return not self.draining and not self.pinned and not self.leases


@dataclass
class Remembered:
    """How an evicted model is kept when it is loaded again."""

    keep_alive: float
    pinned: bool = False


class Books:
    """`entries` by model: the index of its source."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: dict[int, Entry] = {}
        self.evicted: dict[int, Remembered] = {}
        self.age = 0.0
        self.loads = self.evictions = 0

    def used(self, model: int, now: float) -> None:
        entry = self.entries[model]
        entry.last_used, entry.value = now, self.age + 1

    def expire(self, now: float) -> None:
        for model, entry in list(self.entries.items()):
            kept = entry.keep_alive
            if entry.evictable() and kept >= 0 and entry.last_used + kept <= now:
                self._evict(model)

    def _evict(self, model: int) -> None:
        gone = self.entries.pop(model)
        self.age = max(self.age, gone.value)
        self.evictions += 1
        self.evicted[model] = Remembered(gone.keep_alive)

    def make_room(self, size: int) -> bool:
        """Evicts what has to go; False and nothing changed if that is not enough."""
        free = self.limit - sum(entry.size for entry in self.entries.values())
        if size > self.limit:
            return False
        needed, chosen, got = size - free, list[int](), 0
        for model, entry in sorted(
            self.entries.items(), key=lambda it: (it[1].value, it[1].last_used, it[1].block)
        ):
            if got >= needed:
                break
            if entry.evictable():
                got += entry.size
                chosen.append(model)
        if got < needed:
            return False
        for model in reversed(chosen):
            if got - self.entries[model].size >= needed:
                got -= self.entries[model].size
            else:
                self._evict(model)
        return True

    def load(self, model: int, size: int, now: float) -> str | None:
        """The outcome of a load; None: refused. `block` is told afterwards."""
        entry = self.entries.get(model)
        outcome = "resident"
        if entry is None:
            if not self.make_room(size):
                return None
            self.loads += 1
            self.entries[model] = Entry("", size, now, 0)
            outcome = "loaded"
        elif entry.draining:
            entry.draining, entry.keep_alive, outcome = False, FOR_EVER, "revived"
        kept = self.evicted.pop(model, None)
        if kept is not None and outcome != "resident":
            self.entries[model].keep_alive = kept.keep_alive
            self.entries[model].pinned = kept.pinned
        self.used(model, now)
        return outcome

    def release(self, model: int, lease: Lease, now: float) -> None:
        entry = self.entries[model]
        entry.leases.discard(lease)
        self.used(model, now)
        if entry.draining and not entry.leases:
            del self.entries[model]

    def unload(self, model: int) -> bool:
        """False: there is no such model."""
        if self.evicted.pop(model, None) is not None:
            return True
        entry = self.entries.get(model)
        if entry is None or entry.draining:
            return False
        entry.draining, entry.pinned = True, False
        if not entry.leases:
            del self.entries[model]
        return True

    def restart(self, now: float) -> None:
        """SIGKILL, and the next broker: leases end, counts begin anew."""
        self.age, self.loads, self.evictions = 0.0, 0, 0
        for model, entry in self.entries.items():
            entry.leases.clear()
            self.used(model, now)

    def free_what_nobody_has(self) -> None:
        """Of what drains."""
        for model, entry in list(self.entries.items()):
            if entry.draining and not entry.leases:
                del self.entries[model]

    def totals(self) -> dict[str, int]:
        """As `cache.status` tells them."""
        entries = self.entries.values()
        return {
            "reserved": 0,
            "made": sum(e.size for e in entries if not e.draining),
            "draining": sum(e.size for e in entries if e.draining),
            "pinned": sum(e.size for e in entries if e.pinned),
            "leased": sum(e.size for e in entries if e.leases),
            "models": sum(not e.draining for e in entries),
            "leases": sum(len(e.leases) for e in entries),
            "loads": self.loads,
            "evictions": self.evictions,
        }
