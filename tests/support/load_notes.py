"""The notes in `<run>/loads` by which a broker tells the next one what it was loading."""

from __future__ import annotations

import os
from pathlib import Path

from support.broker import BrokerProcess


def names(broker: BrokerProcess) -> list[str]:
    folder = broker.run / "loads"
    return sorted(os.listdir(folder)) if folder.exists() else []


def note_deaths(broker: BrokerProcess, source: Path, deaths: int) -> None:
    """As if that many brokers in a row had died while they loaded it: for the next start."""
    found = source.stat()
    words = ("died", deaths, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, 0)
    folder = broker.run / "loads"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"{'.'.join(map(str, words))}.{source.name}").touch(0o600)
