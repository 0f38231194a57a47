"""A broker with room for one of two files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import files
from .broker import BrokerProcess


@dataclass(frozen=True)
class Tight:
    broker: BrokerProcess
    first: Path
    second: Path


def make_tight(make_broker: Callable[..., BrokerProcess], folder: Path) -> Tight:
    return Tight(
        make_broker("--ram-budget", "40MiB").start(),
        files.write_random(folder / "first.safetensors", 25, seed=1),
        files.write_random(folder / "second.safetensors", 25, seed=2),
    )


def loading(broker: BrokerProcess) -> list[str]:
    """What is being loaded, or waits for room."""
    return [m["name"] for m in broker.cli_json("ps") if m["state"] == "loading"]
