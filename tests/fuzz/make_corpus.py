"""Writes the hand-made part of tests/fuzz/corpus: a small file for each thing a target can meet.

Files named `found-*` are inputs that broke something once, `grown-*` what a long run found to reach
code that the others do not; both are kept and not made here.
Run: make corpus.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

from support.files import encode, entry

CORPUS = Path(__file__).parent / "corpus"
GOLDEN = Path(__file__).parent.parent / "golden"
MIB = 1 << 20
Files = dict[str, bytes]


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


# ---- block header: u64 file size, then the page


def header(size: int, **fields: int) -> bytes:
    """An ordinary block of 2 MiB + 4 MiB, but for `fields`; the target puts the checksum right."""
    values = {
        "format": 1,
        "reader": 1,
        "header_size": 4096,
        "block_size": size,
        "payload_offset": 2 * MIB,
        "payload_size": 4 * MIB,
        "manifest_offset": 4096,
        "manifest_size": 1000,
        "table_offset": 4096 + 1000,
        "chunks": 1,
        "chunk_size": 16 * MIB,
        "generation": 42,
        **fields,
    }
    page = struct.pack("<8sHHI6QIIQ", b"MBROKER1", *values.values())
    return struct.pack("<Q", size) + page + bytes(range(72))


def block_headers() -> Files:
    golden = (GOLDEN / "block-v1.header").read_bytes()
    size = struct.unpack_from("<Q", golden, 16)[0]
    largest = (1 << 64) - 1
    return {
        "golden": struct.pack("<Q", size) + golden[:160],
        "wrong-size": struct.pack("<Q", size + 1) + golden[:160],
        "ordinary": header(6 * MIB),
        "empty-payload": header(6 * MIB, payload_size=0, chunks=0),
        "no-manifest": header(6 * MIB, manifest_size=0),
        "newer": header(6 * MIB, format=9, reader=2),
        "overlap": header(6 * MIB, payload_offset=4096),
        "wraps": header(6 * MIB, payload_offset=largest - 10, payload_size=100),
        "unaligned": header(6 * MIB, table_offset=5097),
        "many-chunks": header(6 * MIB, chunks=1 << 31),
        "compact": header(16384, payload_offset=8192, payload_size=8000),
        "huge": header(1 << 60, payload_size=(1 << 60) - 2 * MIB, chunks=2),
        "short": struct.pack("<Q", 100) + b"MBROKER1",
        "nothing": b"",
    }


# ---- manifest: u64 payload size, then msgpack


def manifest(tensors: Any, **more: Any) -> bytes:
    source = {
        "path": "/models/m.safetensors",
        "device": 1,
        "inode": 2,
        "size": 100,
        "mtime_ns": -3,
        "ctime_ns": 4,
    }
    whole = {
        "version": 1,
        "name": "m",
        "type": "unet",
        "format": "safetensors",
        "source": source,
        "metadata": {"format": "pt"},
        "tensors": tensors,
        **more,
    }
    return struct.pack("<Q", 100) + pack(whole)


def manifests() -> Files:
    return {
        "two": manifest([["a", "F16", [2, 3], 0, 12], ["b", "U8", [], 12, 1]]),
        "none": manifest([]),
        "empty-tensor": manifest([["a", "F32", [0, 5], 100, 0]]),
        "twice": manifest([["a", "U8", [1], 0, 1], ["a", "U8", [1], 1, 1]]),
        "outside": manifest([["a", "U8", [200], 0, 200]]),
        "packed": manifest([["a", "F4", [2, 2], 0, 2], ["b", "F6_E2M3", [4], 2, 3]]),
        "overflow": manifest([["a", "F64", [1 << 62, 16], 0, 8]]),
        "deep": struct.pack("<Q", 100) + b"\x91" * 600,
        "many": struct.pack("<Q", 100) + b"\xdd\xff\xff\xff\xff",
        "unknown-key": manifest([], future={"a": [1, 2, None, 1.5, b"x"]}),
        "no-tensors": struct.pack("<Q", 100) + pack({"version": 1}),
        "newer": manifest([], version=2),
        "newer-form": manifest({"a": {7: [[[[[[[[1]]]]]]]]}}, version=3),
        "opaque-dtype": manifest([["a", "Q4_0", [32, 9], 0, 18], ["b", "F8_E4M3FNUZ", [3], 18, 3]]),
        "dtype-no-word": manifest([["a", "Q 4", [32], 0, 18]]),
        "not-utf8": struct.pack("<Q", 9) + b"\x81\xa4name\xa2\xff\xfe",
        "nothing": b"",
    }


# ---- label of a device block; the target puts its hashes right


def label(manifest_: bytes, **fields: Any) -> bytes:
    """An ordinary label but for `fields`."""
    values = {
        "format": 1,
        "reader": 1,
        "header_size": 256,
        "label_size": 256 + len(manifest_),
        "memory_size": 2 * MIB,
        "manifest_size": len(manifest_),
        "manifest_hash": 0,
        "generation": 42,
        "digest": bytes(range(16)),
        "backend": 1,
        "flags": 0,
        "device": b"host:0",
        "handle": b"",
        **fields,
    }
    return struct.pack("<8sHHI5Q16sII40s64s", b"MBLABEL1", *values.values()) + bytes(72) + manifest_


def labels() -> Files:
    two = manifest([["a", "F16", [2, 3], 0, 12], ["b", "U8", [], 256, 1]])[8:]
    gpu = b"GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ab"
    return {
        "golden": (GOLDEN / "label-v1").read_bytes(),
        "host": label(two),
        "vmm": label(two, backend=2, device=gpu),
        "legacy": label(two, backend=3, device=gpu, handle=bytes(range(64))),
        "upper-case": label(two, backend=2, device=gpu.upper()),
        "no-such-backend": label(two, backend=259),
        "not-its-backend": label(two, device=gpu),
        "no-device": label(two, device=b""),
        "outside": label(two, memory_size=256),
        "newer": label(two, format=2, reader=2),
        "cut-off": label(two)[:-9],
        "no-manifest": label(b""),
        "newer-manifest": label(manifest([], version=2)[8:]),
        "short": b"MBLABEL1",
        "nothing": b"",
    }


# ---- safetensors: the file


def safetensors_files() -> Files:
    one = {"a": entry("F16", [2, 2], 0, 8)}
    return {
        "one": encode(one, bytes(8)),
        "metadata": encode({"__metadata__": {"k": "v", "": ""}, **one}, bytes(8)),
        "none": encode({}),
        "empty-tensor": encode({"a": entry("F32", [0], 0, 0)}),
        "scalar": encode({"a": entry("I64", [], 0, 8)}, bytes(8)),
        "packed": encode({"a": entry("F4", [3], 0, 2)}, bytes(2)),
        "unknown-dtype": encode({"a": entry("Q7", [8], 0, 8)}, bytes(8)),
        "hole": encode({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)),
        "overlap": encode({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)),
        "left-over": encode(one, bytes(9)),
        "truncated": encode(one, bytes(7)),
        "twice": encode('{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{}}', bytes(1)),
        "overflow": encode({"a": entry("F64", [1 << 63, 4], 0, 8)}, bytes(8)),
        "negative": encode('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,-1]}}'),
        "deep": encode('{"a":' + "[" * 200 + "]" * 200 + "}"),
        "spaces": encode(json.dumps(one) + " " * 9, bytes(8)),
        "zero-byte": encode(json.dumps(one).encode() + b"\0x", bytes(8)),
        "long-header": struct.pack("<Q", 1 << 62) + b"{}",
        "escapes": encode(
            '{"\\u0000\\ud83d\\ude00":' + json.dumps(entry("U8", [1], 0, 1)) + "}", b"x"
        ),
        "bad-escape": encode('{"\\ud83d":' + json.dumps(entry("U8", [1], 0, 1)) + "}", b"x"),
        "fnuz": encode({"a": entry("F8_E5M2FNUZ", [3], 0, 3)}, bytes(3)),
        "own-fields": encode(
            {"a": {"q": {"dtype": [1, {"shape": None}]}, **entry("U8", [1], 0, 1), "z": 2.5}}, b"x"
        ),
        "own-field-deep": encode('{"a":{"own":' + "[" * 130 + "]" * 130 + "}}"),
        "no-metadata": encode({"__metadata__": None, **one}, bytes(8)),
        "dtype-no-word": encode({"a": entry("Q 4", [1], 0, 1)}, b"x"),
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17\n",
        "html": b"\n<!DOCTYPE html><html>",
        "index": b'{"metadata":{"total_size":1},"weight_map":{"a":"m-00001-of-00001.safetensors"}}',
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "tar": bytes(257) + b"ustar\0" + b"00",
        "zip": b"PK\x03\x04 and so on",
        "gguf": b"GGUF\3\0\0\0\0",
        "pickle": b"\x80\x02}q\0.",
        "nothing": b"",
    }


# ---- frames


def request(type_: str, data: Any = None, **more: Any) -> bytes:
    return pack({"v": 2, "request_id": "r", "type": type_, "data": data or {}, **more})


def requests() -> Iterable[tuple[str, bytes]]:
    yield "hello", request("session.hello", session="0" * 32, deadline_ms=5)
    yield "load", request("model.load_model", {"path": "/m", "name": "m", "pin": True, "file": "1"})
    yield "unload", request("model.unload_model", {"model": "m", "wait": True})
    yield "attach", request("model.attach", {"model": "m", "load": False, "device": "cpu"})
    yield "detach", request("model.detach", {"lease": 1})
    yield "pin", request("model.pin", {"model": "m"})
    held = [{"lease": 1, "model": "m", "blocks": ["a", "b"]}, {"lease": 2, "blocks": []}]
    yield "restate", request("lease.restate", {"leases": held})
    yield "open", request("session.open")
    yield "offer", request("file.offer")
    yield "block", request("block.open", {"block": "modelbroker.0.default.0123456789abcdef.g42"})
    yield "no-such-type", request("no.such", {"x": [None, 1.5, -1, b"raw"]})


def frames() -> Files:
    reply = {"v": 2, "request_id": "r", "success": True}
    error = {"code": "data_loss", "message": "text", "details": {"needed": 1}}
    status = {"features": {"collapse": True}, "tiers": {"ram": {"limit": 1}}, "sessions": 1}
    model = {"name": "m", "aliases": ["n"], "leases": [{"pid": 1, "lease": 2}], "expires_at": None}
    return {
        **dict(requests()),
        "v1": pack({"type": "model.load_model", "data": {"path": "/m"}, "request_id": 7}),
        "v1-no-id": pack({"type": "session.ping"}),
        "reply-list": pack({**reply, "data": {"models": [model], "draining": []}}),
        "reply-status": pack({**reply, "data": status}),
        "reply-error": pack({**reply, "success": False, "error": error}),
        "reply-v1-error": pack({"request_id": 1, "success": False, "error": "data_loss: text"}),
        "deep": b"\x81\xa4data" + b"\x91" * 100,
        "many": b"\xdf\xff\xff\xff\xff",
        "not-utf8": b"\x81\xa4type\xa2\xff\xfe",
        "twice": b"\x82\xa1v\x02\xa1v\x02",
        "trailing": request("session.ping") + b"\xc0",
        "extension": b"\x81\xa4data\xc7\x04\x01abcd",
        "nothing": b"",
    }


# ---- packets


def packet(raw: bytes, descriptors: int = 0, *, padded: bool = False, hasty: bool = False) -> bytes:
    how = descriptors | (8 if padded else 0) | (16 if hasty else 0)
    return struct.pack("<BH", how, len(raw)) + raw


def conversations() -> Files:
    known = dict(requests())
    with_session, without = b"\1", b"\0"
    return {
        "nothing": b"",
        "session": with_session,
        "session-twice": with_session + packet(known["open"]),
        "by-hand": without + packet(known["open"]) + packet(known["offer"], 1),
        "no-session": without + packet(known["offer"], 1) + packet(known["block"]),
        "offer-none": with_session + packet(known["offer"]),
        "offer-four": with_session + packet(known["offer"], 4),
        "offer-five": with_session + packet(known["offer"], 5) + packet(known["offer"], 1),
        "offers": with_session + packet(known["offer"], 1, hasty=True) * 70,
        "block": with_session + packet(known["block"], 2),
        "too-long": with_session + packet(known["block"], padded=True) + packet(known["offer"], 1),
        "too-long-with-descriptors": without + packet(b"", 7, padded=True),
        "empty": without + packet(b"") + packet(known["open"]),
        "garbage": without + packet(b"\xff\xfe garbage") + packet(b"\xc0", 3),
        "elsewhere": with_session + packet(known["attach"]) + packet(known["hello"]),
        "hasty": without + packet(known["open"], hasty=True) * 3 + packet(known["offer"], 1),
    }


# ---- PyTorch files: pickles, and archives that hold them


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(key: str, count: int) -> bytes:
    """A float32 tensor of one dimension, as protocol 2 has it."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    number = b"J" + struct.pack("<i", count)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage + number + b"tQ" + b"K\0" + number + b"\x85K\x01\x85\x89N")
        + b"tR"
    )


def pickles() -> Files:
    values: dict[str, Any] = {
        "a": [1, -2, 1 << 70, 0.5, None, True],
        "b": ("x", b"y", {3}, frozenset(), bytearray(b"z")),
    }
    state = b"}" + text("w") + tensor("0", 2) + text("v") + tensor("0", 1)
    return {
        **{f"protocol-{i}": pickle.dumps(values, protocol=i) for i in range(6)},
        "tensors": b"\x80\x02}(" + state[1:] + b"u.",
        "checkpoint": b"}("
        + text("state_dict")
        + b"}("
        + state[1:]
        + b"u"
        + text("epoch")
        + b"K\x03u.",
        "ordered": b"ccollections\nOrderedDict\n)R}b.",
        "objects": b"(cpkg\nC\n)\x81}bcargparse\nNamespace\n)\x81}b(K\x01ipkg\nD\nt.",
        "numpy": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        + text("f4")
        + b"\x85RC\x04abcd\x86R.",
        "bytes": b"c_codecs\nencode\n" + text("\u00ff") + text("latin1") + b"\x86R.",
        "code": b"cos\nsystem\n(S'true'\ntR.",
        "circle": b"}q\x01" + text("a") + b"h\x01s.",
        "cut": b"}" + text("a")[:-1],
        "nothing": b"",
    }


def archives() -> Files:
    def archive(
        members: Files, compression: int = zipfile.ZIP_STORED, behind: bytes = b""
    ) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as made:
            for name, content in members.items():
                made.writestr(zipfile.ZipInfo(name), content, compression)
        return file.getvalue() + behind

    members = {"x/data.pkl": pickles()["tensors"], "x/byteorder": b"little", "x/data/0": bytes(8)}
    return {
        "ordinary": archive(members),
        "large": _with_end64(archive(members)),
        "short-storage": archive(members | {"x/data/0": bytes(7)}),
        "no-storage": archive({"x/data.pkl": members["x/data.pkl"]}),
        "two-roots": archive(members | {"y/a": b""}),
        "compressed": archive(members, zipfile.ZIP_DEFLATED),
        "behind": archive(members, behind=b"x"),
        "empty": archive({}),
        "pickle": pickles()["tensors"],
        "nothing": b"",
    }


def _with_end64(archive: bytes) -> bytes:
    """The same with an end of 64-bit numbers before the ordinary one."""
    entries, size, offset = struct.unpack_from("<10xHII", archive, len(archive) - 22)
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(archive) - 22, 1)
    return archive[:-22] + end + locator + archive[-22:]


def main() -> None:
    targets = {
        "shm_block_header_fuzz": block_headers(),
        "shm_manifest_fuzz": manifests(),
        "unpickle_pickle_fuzz": pickles(),
        "unpickle_zip_fuzz": archives(),
        "cuda_ipc_label_fuzz": labels(),
        "broker_safetensors_fuzz": safetensors_files(),
        "wire_frame_fuzz": frames(),
        "broker_fd_socket_fuzz": conversations(),
    }
    for target, inputs in targets.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith(("found-", "grown-")):
                path.unlink()
        for name, content in inputs.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
