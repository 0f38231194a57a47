"""What the broker answers, as plain values; docs/protocol.md has the meaning of each field."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

_T = TypeVar("_T")


def take(kind: type[_T], data: dict[str, Any]) -> _T:
    """A reply as a value. Known fields only: a newer broker may say more."""
    known = fields(kind)  # type: ignore[arg-type]  # every kind is a dataclass
    return kind(**{each.name: data[each.name] for each in known if each.name in data})


@dataclass(frozen=True, slots=True)
class ModelBlock:
    """A block of a model: one for each of its files."""

    block: str
    path: str  # where it can be mapped
    source: str  # the file that was read
    generation: int
    bytes: int
    payload_bytes: int
    page_kind: str


def _blocks(data: dict[str, Any]) -> list[ModelBlock]:
    """From a reply or model map; an older broker tells none."""
    return [take(ModelBlock, block) for block in data.get("blocks", ())]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load's outcome: "loaded", "resident", "revived" or "alias".

    `block` and `page_kind` are empty where the model has several blocks; `generation` is that of
    the newest.
    """

    model: str
    block: str
    generation: int
    bytes: int
    payload_bytes: int
    page_kind: str
    outcome: str
    seconds: float
    blocks: list[ModelBlock] = field(default_factory=list)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Loaded:
        """From a reply."""
        return take(cls, {**data, "blocks": _blocks(data)})


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Bytes that are free by now, and those that wait for their holders."""

    model: str
    freed: int
    draining: int
    remaining_names: list[str]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease."""

    pid: int
    uid: int
    lease: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is loaded or being loaded."""

    name: str
    aliases: list[str]
    type: str
    format: str
    path: str
    state: str
    block: str
    block_path: str
    generation: int
    bytes: int
    payload_bytes: int
    loaded_bytes: int
    tensors: int
    page_kind: str
    pinned: bool
    keep_alive: float  # seconds after the last use; below zero: for ever
    expires_at: float | None  # Unix seconds; None while it is used, pinned or kept for ever
    leases: list[Holder]
    blocks: list[ModelBlock] = field(default_factory=list)  # one for each of its files

    @classmethod
    def of(cls, data: dict[str, Any]) -> Model:
        """From a model map."""
        holders = [take(Holder, holder) for holder in data["leases"]]
        return take(cls, {**data, "leases": holders, "blocks": _blocks(data)})


@dataclass(frozen=True, slots=True)
class ScrubbedModel:
    """What a check of one block found; `outcome`: "good", "damaged", "gone" or "failed"."""

    model: str
    block: str
    generation: int
    bytes: int
    outcome: str
    chunk: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """The outcome of Broker.scrub(): bytes that were read, blocks that were damaged."""

    bytes: int
    damaged: int
    models: list[ScrubbedModel]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Scrubbed:
        """From a reply."""
        models = [take(ScrubbedModel, model) for model in data["models"]]
        return take(cls, {**data, "models": models})


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier's books: bytes, then counts."""

    limit: int
    reserved: int
    made: int
    draining: int
    pinned: int
    leased: int
    models: int
    leases: int
    hits: int
    misses: int
    loads: int
    evictions: int
    scrubbed_bytes: int = 0
    scrub_errors: int = 0
    foreign: int = 0  # bytes in blocks of another version, which this broker cannot read
    foreign_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The broker, and its tiers by name ("ram")."""

    boot_id: str
    version: str
    instance: str
    pid: int
    uptime_ms: int
    ram_directory: str
    page_kind: str
    sessions: int
    features: dict[str, bool]
    tiers: dict[str, Tier]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Status:
        """From a reply."""
        tiers = {name: take(Tier, tier) for name, tier in data["tiers"].items()}
        return take(cls, {**data, "tiers": tiers})
