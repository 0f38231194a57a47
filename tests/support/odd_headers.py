"""Files with odd headers, good and bad, to put beside the reference library: name -> bytes."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

from support.files import encode, entry

EIGHT = struct.pack("<ff", 1.5, -2)
ONE = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
_F32 = entry("F32", [2], 0, 8)
_MORE = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'


def _one(dtype: str, shape: list[int], data: bytes) -> bytes:
    return encode({"t": entry(dtype, shape, 0, len(data))}, data)


def _beside(metadata: Any) -> bytes:
    return encode({"__metadata__": metadata, "t": _F32}, EIGHT)


def _raw(template: str, data: bytes = EIGHT) -> bytes:
    """`@`: the fields of a tensor of two F32."""
    return encode(template.replace("@", ONE), data)


def _fields(**own: Any) -> bytes:
    return encode({"t": {**_F32, **own}}, EIGHT)


def _nested(depth: int) -> bytes:
    return _raw('{"t":{"own":' + "[" * depth + "]" * depth + f",{_MORE}}}}}")


METADATA = {
    "metadata only": encode({"__metadata__": {"k": "v"}}),
    "metadata only, two objects": encode(b'{},"__metadata__":{"key":"value"}}  '),
    "empty object": encode("{}"),
    "empty object padded": encode("{}      "),
    "metadata {}": _beside({}),
    "metadata null": _raw('{"__metadata__":null,"t":@}'),
    "metadata null twice": _raw('{"__metadata__":null,"__metadata__":null,"t":@}'),
    "metadata null and map": _raw('{"__metadata__":null,"__metadata__":{},"t":@}'),
    "metadata number": _beside({"a": 0}),
    "metadata nested": _beside({"a": {"b": "c"}}),
    "metadata null value": _beside({"a": None}),
    "metadata bool": _beside({"a": True}),
    "metadata last": encode({"t": _F32, "__metadata__": {"a": "b"}}, EIGHT),
    "metadata key twice": _raw('{"__metadata__":{"a":"1","a":"2"},"t":@}'),
    "metadata twice": _raw('{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"},"t":@}'),
    "metadata is an array": _raw('{"__metadata__":["a"],"t":@}'),
    "metadata 2 MB value": _beside({"thumb": "x" * 2_000_000}),
    "metadata 70,000 keys": _beside({f"k{i}": str(i) for i in range(70_000)}),
    "metadata control characters": _beside({"a\n\x1b[31m": "b\r\t\0"}),
    "metadata empty key": _beside({"": ""}),
}
SPACE = {
    **{f"trailing spaces {n}": _raw('{"t":@}' + " " * n) for n in (1, 7, 8, 4096)},
    "trailing newline": _raw('{"t":@}\n'),
    "trailing tabs and CRLF": _raw('{"t":@}\t\r\n'),
    "trailing zero bytes": _raw('{"t":@}\0\0'),
    "pretty printed": encode(json.dumps({"t": _F32}, indent=2), EIGHT),
    "leading space": _raw(' {"t":@}'),
    "leading newlines": _raw('\r\n\t{"t":@}'),
    "leading vertical tab": _raw('\v{"t":@}'),
    "BOM": _raw('\ufeff{"t":@}'),
}
FIELDS = {
    "own field: string": _fields(extra="x"),
    "own field: number": _fields(crc32=17),
    "own field: object": _fields(q={"a": [1, 2.5, None]}),
    "own field: null": _fields(scale=None),
    "own field: names of the format's": _fields(q={"dtype": "U8", "shape": [], "data_offsets": 1}),
    "own field twice": _raw(f'{{"t":{{"own":1,"own":2,{_MORE}}}}}'),
    "own field: key twice": _raw(f'{{"t":{{"own":{{"a":1,"a":2}},{_MORE}}}}}'),
    "own field: large number": _raw(f'{{"t":{{"own":1{"0" * 30},{_MORE}}}}}'),
    "own field: number without end": _raw(f'{{"t":{{"own":1e999,{_MORE}}}}}'),
    "own field: half a pair": _raw(f'{{"t":{{"own":"\\ud800",{_MORE}}}}}'),
    "own field: 125 deep": _nested(125),
    "own field: 126 deep": _nested(126),
    "own field: 2 MB": _fields(own="x" * 2_000_000),
    "own field in metadata's place": _raw('{"own":1,"t":@}'),
    "field twice": _raw(f'{{"t":{{"dtype":"F32",{_MORE}}}}}'),
    "field order reversed": _raw('{"t":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}'),
    "tensor as array": _raw('{"t":["F32",[2],[0,8]]}'),
    "offsets three": _raw('{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}'),
    "offsets floats": _raw('{"t":{"dtype":"F32","shape":[2],"data_offsets":[0.0,8.0]}}'),
    "shape float": _raw('{"t":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}'),
    "shape 2e0": _raw('{"t":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}'),
    "shape -0": _raw('{"t":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b""),
    "shape negative": _raw('{"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'),
    "dtype lower case": _one("f32", [2], EIGHT),
    "dtype escaped": _raw('{"t":{"dtype":"\\u00463\\u0032","shape":[2],"data_offsets":[0,8]}}'),
    "key escaped": _raw('{"\\u0074":{"dty\\u0070e":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "escaped slash": _raw('{"a\\/b":@}'),
}
PLACES = {
    "offsets not in header order": encode(
        {"b": entry("F32", [2], 8, 16), "a": _F32}, EIGHT + EIGHT[::-1]
    ),
    "two tensors on one range": encode({"a": _F32, "b": _F32}, EIGHT),
    "overlap": encode({"a": _F32, "b": entry("F32", [2], 4, 12)}, EIGHT + EIGHT[:4]),
    "hole": encode({"a": _F32, "b": entry("F32", [2], 16, 24)}, EIGHT * 3),
    "first not at 0": encode({"a": entry("F32", [2], 8, 16)}, EIGHT * 2),
    "bytes after": encode({"a": _F32}, EIGHT + b"x"),
    "name twice": _raw('{"t":@,"t":@}'),
    "name twice, two ranges": _raw(
        '{"t":@,"t":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', EIGHT * 2
    ),
    "empty between": encode(
        {"a": _F32, "e": entry("F32", [0], 8, 8), "b": entry("F32", [2], 8, 16)}, EIGHT * 2
    ),
    "many empties at one offset": encode(
        {**{f"e{i}": entry("U8", [0, i], 0, 0) for i in range(5)}, "a": _F32}, EIGHT
    ),
    "U8[3] then others": encode(
        {
            "a": entry("U8", [3], 0, 3),
            "b": entry("F32", [2], 3, 11),
            "c": entry("BF16", [2], 11, 15),
            "d": entry("I64", [1], 15, 23),
        },
        b"abc" + EIGHT + b"abcd" + EIGHT,
    ),
    **{
        f"data at {n} mod 8": _raw('{"t":@}' + " " * ((n - len(_raw('{"t":@}', b""))) % 8))
        for n in range(1, 8)
    },
}
_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "F8_E8M0": 1}
_OF_8 = "F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0 F8_E5M2 F8_E4M3 U8 I8 BOOL"
SHAPES = {
    **{f"scalar {w}": _one(w, [], bytes([1]) + bytes(n - 1)) for w, n in _SIZES.items()},
    **{
        f"empty {dtype} {shape}": _one(dtype, shape, b"")
        for dtype in ("F32", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "C64")
        for shape in ([0], [3, 0, 2])
    },
    "empty with a huge dimension": _one("F32", [0, 2**63 - 1], b""),
    "empty with a huge dimension first": _one("F32", [2**60, 0], b""),
    "empty with 2^63": _one("F32", [0, 2**63], b""),
    "empty after overflow": _one("F32", [2**32, 2**32, 0], b""),
    **{f"{n} dimensions": _one("F32", [1] * n, EIGHT[:4]) for n in (33, 64, 65)},
}
DTYPES = {
    **{word: _one(word, [4], b"\1\0\1\0") for word in _OF_8.split()},
    **{word: _one(word, [4], EIGHT) for word in ("U16", "I16", "F16", "BF16")},
    **{word: _one(word, [2], EIGHT) for word in ("U32", "I32", "F32")},
    **{word: _one(word, [1], EIGHT) for word in ("U64", "I64", "F64", "C64")},
    "C128": _one("C128", [1], EIGHT * 2),
    "F6_E2M3": _one("F6_E2M3", [4], b"abc"),
    "F6_E3M2": _one("F6_E3M2", [4], b"abc"),
    "F4 [2,4]": _one("F4", [2, 4], b"abcd"),
    "F4 [2,3] odd last dimension": _one("F4", [2, 3], b"abc"),
    "F4 [4,1] odd last dimension": _one("F4", [4, 1], b"ab"),
    "F4 [2,0]": _one("F4", [2, 0], b""),
    "F4 [3] half a byte": _one("F4", [3], b"ab"),
    "F4 scalar": _one("F4", [], b"a"),
    "BOOL other than 0 and 1": _one("BOOL", [4], b"\x02\xff\x00\x01"),
    "a marker of scaled float8": encode(
        {"scaled_fp8": entry("F8_E4M3", [2], 0, 2), "w": entry("F8_E4M3", [2], 2, 4)}, b"\1\2\3\4"
    ),
}
_NAMES = ["", " ", "a/b", "../../etc", "a.b", "模型.权重", "n\nl", "tab\t", "\x1b[31mred", "\0"]
_NAMES += ["🤗", "e\u0301", "a" * 5000, "__metadata", "__proto__", "'\"\\"]
NAMES = {
    **{f"name {name[:12]!a}": encode({name: _F32}, EIGHT) for name in _NAMES},
    "two forms of one letter": encode(
        {"\u00e9": _F32, "e\u0301": entry("F32", [2], 8, 16)}, EIGHT * 2
    ),
    "20,000 tensors": encode(
        {f"model.layers.{i}.weight": entry("F32", [1], 4 * i, 4 * i + 4) for i in range(20_000)},
        bytes(80_000),
    ),
}
_ALL = (METADATA, SPACE, FIELDS, PLACES, SHAPES, DTYPES, NAMES)
FILES: dict[str, bytes] = dict(itertools.chain.from_iterable(table.items() for table in _ALL))
assert len(FILES) == sum(len(table) for table in _ALL)
