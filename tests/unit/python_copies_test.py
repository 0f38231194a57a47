"""What pickle, copy and repr make of views, arrays, tensors and weights: what they are."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until

BIG = 16 << 20
SMALL = bytes(range(1, 9))


@pytest.fixture(params=["private", "readonly"])
def weights(
    shared: BrokerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[modelbroker.Weights]:
    """A small tensor beside a big one."""
    path = files.write(
        tmp_path / f"{uuid.uuid4().hex}.safetensors",
        {"big": ("U8", [BIG], bytes(BIG)), "small": ("BF16", [2, 2], SMALL)},
    )
    with shared.connect() as client, client.attach(path, mode=request.param) as weights:
        yield weights
        client.unload(path)


def pickled(protocol: int) -> Callable[[Any], Any]:
    def through(thing: Any) -> Any:
        raw = pickle.dumps(thing, protocol)
        assert len(raw) < 4096
        return pickle.loads(raw)

    return through


def bytes_behind(array: Any) -> int:
    """Of what an array is a part of."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return len(memoryview(array).cast("B"))


def copied_in_another_process(thing: Any) -> Any:
    """As multiprocessing would send it there and back."""
    echo = "import pickle, sys; pickle.dump(pickle.load(sys.stdin.buffer), sys.stdout.buffer)"
    raw = pickle.dumps(thing)
    assert len(raw) < 4096
    done = subprocess.run([sys.executable, "-c", echo], input=raw, capture_output=True, check=True)
    return pickle.loads(done.stdout)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "another process": copied_in_another_process,
    **{f"pickle {protocol}": pickled(protocol) for protocol in range(2, 6)},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_view_is_its_own_bytes(
    shared: BrokerProcess, weights: modelbroker.Weights, way: str
) -> None:
    view = weights["small"]
    copied: modelbroker.TensorView = WAYS[way](view)
    weights.release()
    del view
    with shared.connect() as client:
        # The copy does not keep the block. The keeper's thread tells of the end.
        wait_until(lambda: client.status().tiers["ram"].leases == 0)
    assert (copied.name, copied.dtype, copied.shape, copied.nbytes) == ("small", "BF16", (2, 2), 8)
    assert copied.raw().tobytes() == SMALL
    assert bytes_behind(copied.raw()) == 8
    tensor = copied.torch()
    assert (tensor.dtype, tensor.shape) == (torch.bfloat16, (2, 2))
    tensor.zero_()  # its own, so it may be written, whatever the mode was
    assert not copied.raw().any()
    assert repr(copied) == "<TensorView small BF16 [2, 2]>"


@pytest.mark.parametrize("way", WAYS)
def test_copied_arrays_and_tensors_are_their_own_bytes(
    weights: modelbroker.Weights, way: str
) -> None:
    if way == "another process":
        array = copied_in_another_process(weights.raw("small"))
    else:
        array = WAYS[way](weights.raw("small"))
        tensor = copy.deepcopy(weights["small"].torch())
        assert tensor.untyped_storage().nbytes() == 8
    assert isinstance(array, np.ndarray)
    assert array.tobytes() == SMALL


def test_a_shallow_copy_is_another_name_for_the_same_memory(weights: modelbroker.Weights) -> None:
    view = copy.copy(weights["small"])
    assert view.raw().ctypes.data == weights.raw("small").ctypes.data
    assert copy.copy(list(weights.values()))[1].name == "small"


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, pickle.dumps])
def test_weights_and_brokers_say_why_they_cannot_be_copied(
    shared: BrokerProcess, weights: modelbroker.Weights, way: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match="attach in the other"):
        way(weights)
    with shared.connect() as client, pytest.raises(TypeError, match=r"connect\(\) in the other"):
        way(client)


def test_they_print_as_what_they_are(weights: modelbroker.Weights) -> None:
    for thing in (weights, dict(weights), list(weights.values()), weights["big"], weights.items()):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert len(text) < 300, text
    assert repr(weights["big"]) == f"<TensorView big U8 [{BIG}]>"
