"""What a safetensors file says of its tensors, read from the file itself."""

from __future__ import annotations

import json
import os
import struct

from .._block import Entry

LENGTH = struct.Struct("<Q")
LARGEST_HEADER = 100_000_000  # safetensors' own limit


def entries_of(path: str, size: int) -> list[Entry]:
    """Of a file of this size; none where it is another one by now, or cannot be read."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return []
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            tensors = json.loads(file.read(min(length, LARGEST_HEADER)))
        return [
            (name, found["dtype"], tuple(found["shape"]), 0, 0)
            for name, found in tensors.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return []
