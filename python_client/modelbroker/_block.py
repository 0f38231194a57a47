"""Blocks as docs/block-format.md describes them: header and manifest, read from a descriptor.

The broker has checked every hash when it made or adopted the block; here the header must be one,
must be of a version that we read, and everything that it names must lie inside the file.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from ._dtypes import bytes_of
from ._errors import DataLossError, UnimplementedError

_MAGIC = b"MBROKER1"
_READER_VERSION = 1
_PAGE = 4096
_HEADER = struct.Struct("<8sHHIQQQQQQ")
_LARGEST_MANIFEST = 128 << 20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `offset` counts bytes from the payload's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a block holds."""

    size: int
    payload_offset: int
    payload_size: int
    metadata: dict[str, str]
    tensors: tuple[TensorEntry, ...]


def read_contents(descriptor: int, name: str) -> Contents:
    """Reads and checks header and manifest; the payload is not touched."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size < _PAGE:
        raise DataLossError(f"block {name} is not a block")
    header = _HEADER.unpack(_read(descriptor, _HEADER.size, 0, name))
    magic, _, min_reader, _, size, payload, payload_size, manifest, manifest_size, _ = header
    if magic != _MAGIC:
        raise DataLossError(f"block {name} does not begin as a block does")
    if min_reader > _READER_VERSION:
        raise UnimplementedError(
            f"block {name} has format {min_reader}; this package reads {_READER_VERSION}: "
            "install the modelbroker package of the broker's version"
        )
    inside = payload + payload_size <= size and manifest + manifest_size <= size
    if size != found.st_size or not inside or manifest_size > _LARGEST_MANIFEST:
        raise DataLossError(f"block {name}: its header does not fit its size")
    raw = _read(descriptor, manifest_size, manifest, name)
    try:
        metadata, tensors = _manifest_of(msgpack.unpackb(raw), payload_size)
    except DataLossError:
        raise
    except Exception as error:
        raise DataLossError(f"block {name}: its manifest is damaged ({error!r})") from None
    return Contents(size, payload, payload_size, metadata, tensors)


def _read(descriptor: int, size: int, offset: int, name: str) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise DataLossError(f"block {name} is shorter than its header says")
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _manifest_of(
    manifest: dict[str, Any], payload_size: int
) -> tuple[dict[str, str], tuple[TensorEntry, ...]]:
    tensors = []
    for name, dtype, shape, offset, nbytes in manifest["tensors"]:
        expected = bytes_of(dtype, shape)
        if offset + nbytes > payload_size or expected not in (nbytes, None):
            raise DataLossError(f"tensor {name!r} does not fit its dtype, shape or block")
        tensors.append(TensorEntry(name, dtype, tuple(shape), offset, nbytes))
    return dict(manifest["metadata"]), tuple(tensors)
