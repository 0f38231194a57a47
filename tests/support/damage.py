"""Doing to a published block what nobody may: a bit that flips in memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_PAYLOAD_OFFSET = 24  # of the header, docs/block-format.md


def payload_offset(block: Path) -> int:
    with block.open("rb") as file:
        file.seek(_PAYLOAD_OFFSET)
        return int(struct.unpack("<Q", file.read(8))[0])


def flip(block: Path, offset: int) -> None:
    """By a description of its own, which is closed again."""
    block.chmod(0o600)
    descriptor = os.open(block, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ 1]), offset)
    finally:
        os.close(descriptor)
        block.chmod(0o400)


def flip_in_payload(block: Path, at: int = 0) -> int:
    """Returns the offset in the block's file."""
    offset = payload_offset(block) + at
    flip(block, offset)
    return offset
