"""Headers and manifests of blocks as the Python package reads them, without a broker."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

import modelbroker
from modelbroker._block import Header, decode_manifest

HEADER = Header("the-block", 8192, 4096, 100, 160, 500)


def manifest(*tensors: Any, **more: Any) -> bytes:
    whole = {"version": 1, "metadata": {"k": "v"}, "tensors": tensors, **more}
    return bytes(msgpack.packb(whole))


@pytest.mark.parametrize(
    "tensor",
    [
        ["t", "U8", [100], 0, 100],
        ["t", "F4", [3, 2], 97, 3],
        ["t", "F8_E5M2FNUZ", [], 99, 1],
        ["t", "Q4_0", [32, 9], 0, 18],
        ["t", "~" * 32, [], 100, 0],
        ["t", "U8", [4], 0, 4, "a later field", None],
    ],
)
def test_tensors_of_any_dtype_are_read(tensor: list[Any]) -> None:
    metadata, entries = decode_manifest(manifest(tensor), HEADER)
    assert metadata == {"k": "v"}
    name, dtype, shape, offset, nbytes = tensor[:5]
    assert entries == {name: (name, dtype, tuple(shape), offset, nbytes)}


@pytest.mark.parametrize(
    "tensor",
    [
        ["t", "U8", [101], 0, 101],
        ["t", "U8", [4], 97, 4],
        ["t", "U8", [4], 0, 3],
        ["t", "F4", [3], 0, 1],  # one and a half
        ["t", "Q4_0", [4], 0, 101],
    ],
)
def test_tensors_outside_the_rules_are_damage(tensor: list[Any]) -> None:
    with pytest.raises(modelbroker.DataLossError):
        decode_manifest(manifest(tensor), HEADER)


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x80", manifest(version="1")])
def test_garbage_is_damage(raw: bytes) -> None:
    with pytest.raises(modelbroker.DataLossError, match="the-block"):
        decode_manifest(raw, HEADER)


@pytest.mark.parametrize(
    "raw",
    [
        manifest(["t", "Q4_0", [4], 0, -1]),
        manifest(["t", "", [4], 0, 4]),
        manifest(["t", "a b", [4], 0, 4]),
        manifest(["t", "ü", [4], 0, 4]),
        manifest(["t", "\x1b[2J", [4], 0, 4]),
        manifest(["t", "x" * 33, [4], 0, 4]),
        manifest(["t", 8, [4], 0, 4]),
        manifest(["t", "U8", [4], 0]),
        manifest(7),
        manifest(tensors=7),
        manifest(metadata=7),
    ],
)
def test_another_form_is_a_later_versions(raw: bytes) -> None:
    with pytest.raises(modelbroker.UnimplementedError, match="the-block"):
        decode_manifest(raw, HEADER)


def test_a_later_version_is_not_damage() -> None:
    for raw in (manifest(version=2), manifest(version=3, tensors="in another form")):
        with pytest.raises(
            modelbroker.UnimplementedError, match=r"the-block.*this package reads 1"
        ):
            decode_manifest(raw, HEADER)
