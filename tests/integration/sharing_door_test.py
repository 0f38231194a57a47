"""What is read inside `with sharing():` is as without it, and lies in the broker's memory.

Every case runs stock and shared, one after the other, and compares.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelbroker
from modelbroker._dtypes import DTYPES as FORMAT_WORDS
from support import files
from support.broker import BrokerProcess
from support.sharing import bits, is_shared, outcome_of, record_of, safe_open

Sharing: TypeAlias = Callable[..., AbstractContextManager[None]]

# Every dtype that torch and the oldest safetensors of ours both have.
DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64"]
DTYPES += ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn"]


@pytest.fixture
def sharing(shared: BrokerProcess) -> Sharing:
    def inside(**options: Any) -> AbstractContextManager[None]:
        given = {"endpoint": shared.endpoint, "min_size": 0, **options}
        return modelbroker.sharing(**given)

    return inside


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every dtype, a scalar, an empty tensor, odd sizes."""
    path = tmp_path_factory.mktemp("door") / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        word: torch.randint(0, 2, (5, 3, 4), generator=generator).to(getattr(torch, word))
        for word in DTYPES
    }
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 7)
    tensors["bytes"] = torch.arange(13, dtype=torch.uint8)
    tensors["matrix"] = torch.randn(64, 96, generator=generator)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def _paths(path: Path) -> Iterator[Any]:
    yield path
    yield str(path)
    yield os.path.relpath(path)
    yield f"{path.parent}/../{path.parent.name}/{path.name}"


def test_all_of_a_file_is_the_brokers(model: Path, sharing: Sharing) -> None:
    stock = load_file(model)
    with sharing():
        shared = load_file(model)
    assert list(stock) == list(shared)
    for name, tensor in stock.items():
        assert bits(tensor) == bits(shared[name]), name
        assert is_shared(shared[name]) or tensor.numel() == 0, name
        assert not is_shared(tensor), name
    assert record_of(model).shared


@pytest.mark.parametrize("word", [*FORMAT_WORDS, "F12"])
def test_every_dtype_of_the_format_is_as_stock(sharing: Sharing, tmp_path: Path, word: str) -> None:
    """Also where this safetensors, or torch, has no such type."""
    bits_of_one = FORMAT_WORDS[word].bits if word in FORMAT_WORDS else 8
    data = bytes(i % 2 for i in range(8 * 24 * bits_of_one // 8))
    path = files.write(tmp_path / "m.safetensors", {"a": (word, [8, 24], data)})

    def read() -> Any:
        return bits(load_file(path)["a"])

    stock = outcome_of(read)
    with sharing():
        assert outcome_of(read) == stock


SLICES: dict[str, Any] = {
    "all": slice(None),
    "ellipsis": ...,
    "rows": slice(3, 17),
    "step": slice(1, 60, 7),
    "negative": slice(-9, -2),
    "empty": slice(5, 5),
    "backwards": slice(9, 2),
    "beyond": slice(60, 1000),
    "negative step": slice(9, 2, -1),
    "one": 5,
    "last": -1,
    "out of range": 64,
    "column": (slice(None), 3),
    "both": (slice(2, 9), slice(-5, None)),
    "ellipsis and one": (..., 2),
    "too many": (1, 2, 3),
    "list": [1, 5, 3],
    "lists": ([1, 2], [3, 4]),
    "tensor": torch.tensor([1, 2]),
    "mask": torch.zeros(64, dtype=torch.bool),
    "none": None,
    "text": "x",
    "float": 1.5,
}


def test_slices_of_every_form_are_as_stock(model: Path, sharing: Sharing) -> None:
    def slices() -> dict[str, Any]:
        with safe_open(model, framework="pt") as opened:
            matrix = opened.get_slice("matrix")
            assert matrix.get_shape() == [64, 96]
            return {
                name: outcome_of(lambda: bits(matrix[SLICES[name]]))  # noqa: B023  called at once
                for name in SLICES
            }

    stock = slices()
    with sharing():
        shared = slices()
    for name in SLICES:
        assert stock[name] == shared[name], name


@pytest.mark.parametrize("framework", ["np", "numpy", "pt", "torch", "pytorch", "tf", "nonsense"])
@pytest.mark.parametrize("device", ["cpu", "cuda:99", "nonsense", -1])
def test_words_that_say_how_are_as_stock(
    model: Path, sharing: Sharing, framework: str, device: Any
) -> None:
    def read() -> Any:
        with safe_open(model, framework=framework, device=device) as opened:
            tensor = opened.get_tensor("matrix")
            return bits(tensor) if isinstance(tensor, torch.Tensor) else tensor.tobytes()

    stock = outcome_of(read)
    with sharing():
        assert outcome_of(read) == stock


BROKEN = {
    "no bytes": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "cut header": files.encode('{"a":', length=1000),
    "no JSON": files.encode("{]"),
    "a header of 2^40": files.encode("{}", length=1 << 40),
    "cut data": files.encode({"a": files.entry("F32", [64], 0, 256)}, b"x" * 100),
    "more data": files.encode({"a": files.entry("U8", [4], 0, 4)}, b"x" * 100),
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_as_stock(sharing: Sharing, tmp_path: Path, name: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BROKEN[name])
    stock = outcome_of(lambda: load_file(path))
    assert isinstance(stock[0], type)
    with sharing():
        assert outcome_of(lambda: load_file(path)) == stock


@pytest.mark.parametrize("path", ["/nonexistent/model.safetensors", "/", "", "\0", 5, None])
def test_a_path_that_leads_nowhere_is_refused_as_stock(sharing: Sharing, path: Any) -> None:
    def read() -> Any:
        return safe_open(path, framework="pt")

    stock = outcome_of(read)
    with sharing():
        assert outcome_of(read) == stock


def test_paths_in_every_form(model: Path, sharing: Sharing) -> None:
    stock = bits(load_file(model)["matrix"])
    for path in _paths(model):
        with sharing():
            shared = load_file(path)["matrix"]
        assert is_shared(shared), path
        assert bits(shared) == stock


def test_a_relative_path_is_that_of_the_opening(
    model: Path, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with sharing():
        opened = safe_open(model.name, framework="pt")
    monkeypatch.chdir("/")
    assert is_shared(opened.get_tensor("matrix"))


def test_to_look_at_a_file_loads_nothing(
    sharing: Sharing, shared: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "looked-at.safetensors", 1)
    before = shared.books()["models"]
    with sharing(), safe_open(path, framework="pt") as opened:
        assert sorted(opened.keys()) == ["t0", "t1", "t2", "t3"]
        assert opened.metadata() == {"seed": "0"}
        assert opened.get_slice("t0").get_shape() == [125000]
        assert opened.get_slice("t0").get_dtype() == "F16"
    assert shared.books()["models"] == before
    assert record_of(path).why == "opened, never read"


def test_two_openings_do_not_see_each_others_writes(model: Path, sharing: Sharing) -> None:
    stock = bits(load_file(model)["matrix"])
    with sharing():
        one, other = load_file(model)["matrix"], load_file(model)["matrix"]
    one.zero_()
    assert bits(other) == stock
    with sharing():
        assert bits(load_file(model)["matrix"]) == stock


def test_two_readings_of_one_opening_see_each_others_writes(model: Path, sharing: Sharing) -> None:
    """As with stock's mapping."""

    def read() -> bool:
        with safe_open(model, framework="pt") as opened:
            one, other = opened.get_tensor("matrix"), opened.get_tensor("matrix")
            one.zero_()
            return bool(torch.equal(one, other))

    stock = read()
    with sharing():
        assert read() == stock


def test_a_tensor_is_saved_and_copied_alone(model: Path, sharing: Sharing) -> None:
    """Not with the whole block that it lies in."""
    stock = load_file(model)["matrix"]
    with sharing():
        shared = load_file(model)["matrix"]
    assert len(pickle.dumps(shared)) == len(pickle.dumps(stock))
    sizes = []
    for tensor in (stock, shared):
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        sizes.append(len(buffer.getvalue()))
    assert sizes[0] == sizes[1]
    copied = copy.deepcopy(shared)
    assert bits(copied) == bits(stock)
    assert not is_shared(copied)
    assert shared.untyped_storage().nbytes() == stock.untyped_storage().nbytes()


def test_an_address_and_an_offset_lead_to_the_block(model: Path, sharing: Sharing) -> None:
    """CUDA uploads go this way."""
    with sharing():
        size = model.stat().st_size
        storage = torch.UntypedStorage.from_file(str(model), shared=False, nbytes=size)
        with safe_open(model, framework="pt") as opened:
            opened.get_tensor("matrix")
        address = storage.untyped().data_ptr()  # type: ignore[no-untyped-call]  # torch's
        data = model.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        piece = storage[start:size]
    assert piece.data_ptr() == address + start
    assert bytes(piece.tolist()) == data[start:]
    assert bytes(storage[0:start].tolist()) == data[:start]  # the header is the file's


@pytest.mark.parametrize("nbytes", [100, 0])
def test_a_part_of_a_file_and_a_shared_mapping_are_torchs(
    model: Path, sharing: Sharing, nbytes: int
) -> None:
    with sharing():
        part = torch.UntypedStorage.from_file(str(model), shared=False, nbytes=nbytes)
        whole = torch.UntypedStorage.from_file(str(model), shared=True, nbytes=nbytes)
    assert type(part) is type(whole) is torch.UntypedStorage


def test_several_threads_read_one_opening(model: Path, sharing: Sharing) -> None:
    stock = load_file(model)
    with sharing():
        opened = safe_open(model, framework="pt")
    with ThreadPoolExecutor(4) as pool:
        shared = dict(zip(stock, pool.map(opened.get_tensor, stock), strict=True))
    for name, tensor in stock.items():
        assert bits(shared[name]) == bits(tensor)
        assert is_shared(shared[name]) or tensor.numel() == 0


def test_a_block_is_its_own_threads(model: Path, sharing: Sharing) -> None:
    """Those that it starts count as inside; one beside it does not."""
    entered, leave = threading.Event(), threading.Event()
    seen: dict[str, bool] = {}

    def read(who: str) -> None:
        seen[who] = is_shared(load_file(model)["matrix"])

    def inside() -> None:
        with sharing():
            entered.set()
            leave.wait(60)
            read("inside")
            started = threading.Thread(target=read, args=("started inside",))
            started.start()
            started.join()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(read, "in a pool").result()
        read("after it")

    thread = threading.Thread(target=inside)
    thread.start()
    entered.wait(60)
    read("beside it")
    leave.set()
    thread.join()
    assert seen == {
        "inside": True,
        "started inside": True,
        "in a pool": True,
        "after it": False,
        "beside it": False,
    }


def test_a_task_shares_and_the_one_beside_it_does_not(model: Path, sharing: Sharing) -> None:
    async def read(inside: bool) -> bool:
        if not inside:
            await asyncio.sleep(0)
            return is_shared(load_file(model)["matrix"])
        with sharing():
            await asyncio.sleep(0)
            return is_shared((await asyncio.to_thread(load_file, model))["matrix"])

    async def both() -> list[bool]:
        return list(await asyncio.gather(read(True), read(False)))

    assert asyncio.run(both()) == [True, False]


def test_what_is_left_out(sharing: Sharing, tmp_path: Path) -> None:
    rows: dict[str, tuple[dict[str, Any], str]] = {
        "only": ({"only": ["*/unet/*"]}, "not in --only"),
        "skip": ({"skip": ["*.safetensors"]}, "in --skip"),
        "small": ({"min_size": "1GB"}, "smaller than --min-size"),
        "resident": ({"resident_only": True}, "not in the broker's memory"),
        "taken": ({"only": ["*/what*"], "skip": ["*/unet/*"]}, ""),
    }
    for name, (options, why) in rows.items():
        path = files.write_random(tmp_path / f"what-{name}.safetensors", 0.1)
        with sharing(**options):
            assert is_shared(load_file(path)["t0"]) == (not why), name
        assert why in record_of(path).why or not why, record_of(path).why


def test_patterns_are_of_the_path_however_it_is_written(
    sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is a text, several are a list."""
    (tmp_path / "real").mkdir()
    files.write_random(tmp_path / "real/m.safetensors", 0.1)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    for path in ("./link/m.safetensors", "link/../link/m.safetensors"):
        for pattern in (f"{tmp_path}/link/*", f"{tmp_path}/real/*", "*.safetensors"):
            with sharing(skip=pattern):
                assert not is_shared(load_file(path)["t0"]), (path, pattern)
            with sharing(only=[pattern, "*/nothing"]):
                assert is_shared(load_file(path)["t0"]), (path, pattern)
    with sharing(skip="*nothing*"):
        assert is_shared(load_file("link/m.safetensors")["t0"])
    assert record_of(tmp_path / "link/m.safetensors").shared


def test_a_block_may_be_entered_again(model: Path, sharing: Sharing) -> None:
    block = sharing()
    for _ in range(2):
        with block, block:
            assert is_shared(load_file(model)["matrix"])
        assert not is_shared(load_file(model)["matrix"])


def test_wrong_arguments_are_refused() -> None:
    wrong: tuple[dict[str, Any], ...] = ({"endpoint": "tcp://x"}, {"min_size": "many"})
    for arguments in wrong:
        with pytest.raises(modelbroker.InvalidArgumentError):
            modelbroker.sharing(**arguments)


def test_all_of_it_is_switched_off(
    model: Path, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELBROKER_AUTO", "0")
    with sharing():
        assert not is_shared(load_file(model)["matrix"])


def test_torch_load_is_stock_and_the_report_says_so(sharing: Sharing, tmp_path: Path) -> None:
    for mapped in (True, False):
        path = tmp_path / f"{mapped}.pt"
        torch.save({"a": torch.arange(1000.0)}, path)
        with sharing():
            loaded = torch.load(path, mmap=mapped)["a"]
        assert torch.equal(loaded, torch.arange(1000.0))
        assert not is_shared(loaded)
        assert "PyTorch file" in record_of(path).why


def test_a_closed_file_is_closed_as_stock(model: Path, sharing: Sharing) -> None:
    def read() -> Any:
        with safe_open(model, framework="pt") as opened:
            matrix = opened.get_slice("matrix")
        return bits(matrix[:2]), outcome_of(lambda: opened.get_tensor("matrix"))

    stock = read()
    with sharing():
        assert read() == stock
