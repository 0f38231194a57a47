"""What the safetensors library reads we read, with the same bytes, or a table says why not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import modelbroker
from modelbroker._dtypes import DTYPES, torch_dtype
from support import files, odd_headers
from support.broker import BrokerProcess

# What the reference reads and we refuse. docs/python.md tells users the same reasons.
_LAST_WINS = "the reference keeps the last of two and drops the others without a word"
ONLY_THE_REFERENCE = {
    "metadata key twice": _LAST_WINS,
    "name twice": _LAST_WINS,
    "tensor as array": "an accident of its parser: the format has an object there",
    "65 dimensions": "numpy has at most 64",
}

# Bytes that no torch tensor can be made of: neither gives a state dict, and raw() gives the bytes.
RAW_ONLY = {
    "F6_E2M3": b"abc",
    "F6_E3M2": b"abc",
    "F4 [2,3] odd last dimension": b"abc",
    "F4 [4,1] odd last dimension": b"ab",
    "C128": odd_headers.EIGHT * 2,
    "dtype lower case": odd_headers.EIGHT,
    "empty with 2^63": b"",
}


def tried(
    call: Callable[[], dict[str, torch.Tensor]], *refusals: type[Exception]
) -> dict[str, torch.Tensor] | str:
    """The tensors, or the refusal."""
    try:
        return call()
    except refusals as error:
        return f"{type(error).__name__}: {error}"


def bytes_of(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def described(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.stride(), tensor.device, bytes_of(tensor))
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with shared.connect() as client:
        yield client


@pytest.mark.parametrize("case", odd_headers.FILES)
def test_what_the_reference_reads_we_read(
    client: modelbroker.Broker, tmp_path: Path, case: str
) -> None:
    path = tmp_path / f"odd{list(odd_headers.FILES).index(case)}.safetensors"
    path.write_bytes(odd_headers.FILES[case])
    theirs = tried(
        functools.partial(load_file, path), SafetensorError, RuntimeError, TypeError, ValueError
    )
    ours = tried(lambda: client.attach(path, timeout=60).state_dict(), modelbroker.ModelBrokerError)
    if case in ONLY_THE_REFERENCE:
        assert not isinstance(theirs, str), theirs
        assert isinstance(ours, str), f"we read it too: {ONLY_THE_REFERENCE[case]}"
        assert ours.startswith("DataLossError: "), ours
    elif isinstance(theirs, str) or isinstance(ours, str):
        assert isinstance(theirs, str), f"only the reference reads it; we: {ours}"
        assert isinstance(ours, str), f"only we read it; the reference: {theirs}"
    else:
        assert described(ours) == described(theirs)
    if case in RAW_ONLY:
        assert isinstance(ours, str)
        with client.attach(path) as weights:
            assert weights.raw("t").tobytes() == RAW_ONLY[case]
            del weights


def test_the_tables_name_cases_that_there_are() -> None:
    named = [*ONLY_THE_REFERENCE, *RAW_ONLY]
    assert [case for case in named if case not in odd_headers.FILES] == []


@pytest.mark.parametrize("dtype", ["Q4_0", "F128", "f32", "~" * 32])
def test_an_unknown_dtype_is_bytes_and_outlives_the_broker(
    broker: BrokerProcess, tmp_path: Path, dtype: str
) -> None:
    """Its size is what the file says; the next broker and the CLI read it from the block too."""
    path = files.write(
        tmp_path / "m.safetensors",
        {"known": ("U8", [2], b"\1\2"), "t": (dtype, [3, 7], b"12345")},
    )
    broker.cli("load", path, "--name", "m")
    with broker.connect() as client, client.attach("m") as weights:
        assert (weights["t"].dtype, weights["t"].shape) == (dtype, (3, 7))
        assert weights.raw("t").tobytes() == b"12345"
        assert weights["known"].torch().tolist() == [1, 2]
        with pytest.raises(modelbroker.UnimplementedError, match=r"raw\(name\)"):
            weights["t"].torch()
        with pytest.raises(TypeError, match=r"raw\(name\)"):
            weights["t"].numpy()
        blocks = broker.blocks()
        broker.kill()
        broker.start()
        assert broker.blocks() == blocks
        assert weights.raw("t").tobytes() == b"12345"
        del weights
    with broker.connect() as client, client.attach("m") as weights:
        assert weights.raw("t").tobytes() == b"12345"
        del weights
    assert dtype in broker.cli("show", "m", "--tensors").stdout
    assert broker.books()["loads"] == 0


def test_torch_and_the_table_agree_on_the_size_of_an_element() -> None:
    for word, known in DTYPES.items():
        if known.torch:
            whole = 2 if word == "F4" else 1  # torch packs two
            assert torch_dtype(word).itemsize * 8 == known.bits * whole, word
