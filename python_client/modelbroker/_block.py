"""Blocks as docs/block-format.md describes them: header and manifest, read from a descriptor.

The broker has checked every hash when it made or adopted the block; here the header must be one,
must be of a version that we read, and everything that it names must lie inside the file. The
manifest, whose decoding grows with the number of tensors, is read when it is first asked for.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from typing import Any, NamedTuple, TypeAlias

import msgpack

from ._dtypes import DTYPES, valid_dtype
from ._errors import DataLossError, UnimplementedError

_MAGIC = b"MBROKER1"
_READER_VERSION = 1
_MANIFEST_VERSION = 1
_TENSOR_FIELDS = 5
_PAGE = 4096
_HEADER = struct.Struct("<8sHHIQQQQQQ")
_LARGEST_MANIFEST = 128 << 20


# Name, dtype, shape, offset from the payload's start, bytes: of one tensor, as msgpack has it.
Entry: TypeAlias = "tuple[str, str, tuple[int, ...], int, int]"


class Header(NamedTuple):
    """Where everything stands in a block."""

    block: str
    size: int
    payload: int
    payload_size: int
    manifest: int
    manifest_size: int


def read_header(descriptor: int, name: str) -> Header:
    """Reads and checks the header; nothing else of the block is touched."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size < _PAGE:
        raise DataLossError(f"block {name} is not a block")
    raw = os.pread(descriptor, _HEADER.size, 0)
    if len(raw) < _HEADER.size:
        raise DataLossError(f"block {name} is shorter than its header says")
    magic, _, min_reader, _, size, payload, payload_size, manifest, manifest_size, _ = (
        _HEADER.unpack(raw)
    )
    if magic != _MAGIC:
        raise DataLossError(f"block {name} does not begin as a block does")
    if min_reader > _READER_VERSION:
        raise _newer(f"block {name} has format {min_reader}", _READER_VERSION)
    inside = payload + payload_size <= size and manifest + manifest_size <= size
    if size != found.st_size or not inside or manifest_size > _LARGEST_MANIFEST:
        raise DataLossError(f"block {name}: its header does not fit its size")
    return Header(name, size, payload, payload_size, manifest, manifest_size)


def _newer(what: str, read: int) -> UnimplementedError:
    return UnimplementedError(
        f"{what}; this package reads {read}: "
        "install the modelbroker package of the broker's version"
    )


def decode_manifest(raw: Any, header: Header) -> tuple[dict[str, str], dict[str, Entry]]:
    """The file's metadata and its tensors by name, of a manifest's bytes.

    DataLossError for what contradicts itself, UnimplementedError for what a later version wrote.
    """
    try:
        manifest = _fields(raw)
        version = manifest["version"]
        is_newer = version > _MANIFEST_VERSION
    except Exception as error:
        raise DataLossError(f"block {header.block}: its manifest is damaged ({error!r})") from None
    if is_newer:
        raise _newer(
            f"the manifest of block {header.block} has version {version}", _MANIFEST_VERSION
        )
    try:
        return dict(manifest["metadata"]), _entries(manifest["tensors"], header.payload_size)
    except (KeyError, TypeError, ValueError) as error:
        raise UnimplementedError(
            f"the manifest of block {header.block} has another form ({error!r}): "
            "install the modelbroker package of the broker's version"
        ) from None


def _fields(raw: Any) -> dict[str, Any]:
    """All but `set`: each block of a model in many files has the list of all of them."""
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=len(raw))
    unpacker.feed(raw)
    fields: dict[str, Any] = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        if key == "set":
            unpacker.skip()
        else:
            fields[key] = unpacker.unpack()
    if unpacker.tell() != len(raw):
        raise ValueError("more bytes follow")
    return fields


def _entries(tensors: Any, room: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for entry in tensors:
        if len(entry) > _TENSOR_FIELDS:
            entry = entry[:_TENSOR_FIELDS]
        name, dtype, shape, offset, nbytes = entry
        known = DTYPES.get(dtype)
        if offset < 0 or nbytes < 0 or (known is None and not valid_dtype(dtype)):
            raise ValueError(f"tensor {name!r}")
        # The size of a dtype that is not known is believed.
        sound = known is None or math.prod(shape) * known.bits == nbytes * 8
        if not (sound and offset <= room - nbytes):
            raise DataLossError(f"tensor {name!r} does not fit its dtype, shape or block")
        entries[name] = entry
    return entries
