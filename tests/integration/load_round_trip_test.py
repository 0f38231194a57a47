"""What comes out is what went in, bit by bit; and which file means which block."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until

WORDS = {
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "C64 F64 I64 U64",
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
}
BITS = {word: bits for bits, words in WORDS.items() for word in words.split()}
PACKED = ("F4", "F6_E2M3", "F6_E3M2")
# Those that the reference library hands to numpy, and to torch.
STOCK_NUMPY = ["BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "F64", "I64", "U64"]
STOCK_TORCH = [word for word in BITS if not word.startswith("F6_")]


def random_bytes(source: random.Random, dtype: str, size: int) -> bytes:
    raw = source.randbytes(size)
    return bytes(byte & 1 for byte in raw) if dtype == "BOOL" else raw


def random_shape(source: random.Random, dtype: str) -> list[int]:
    kind = source.randrange(8)
    if kind == 0 and dtype not in PACKED:
        return []
    if kind == 1:
        return [source.randrange(4) for _ in range(source.randrange(3))] + [0]
    shape = [source.choice([1, 1, 2, 3, 5, 16, 33]) for _ in range(source.randrange(1, 5))]
    if dtype in PACKED:
        shape[-1] *= 4  # whole bytes
    return shape


def random_tensors(
    seed: int, dtypes: list[str], count: int = 40
) -> dict[str, tuple[str, list[int], bytes]]:
    source = random.Random(seed)
    tensors = {}
    for index in range(count):
        dtype = source.choice(dtypes) if index >= len(dtypes) else dtypes[index]
        shape = random_shape(source, dtype)
        size = math.prod(shape) * BITS[dtype] // 8
        tensors[f"layer.{index}.{dtype}"] = (dtype, shape, random_bytes(source, dtype, size))
    return tensors


def write_with_padding(path: Path, tensors: files.Tensors, padding: int) -> None:
    """Spaces behind the header's JSON: the data begins anywhere, aligned or not."""
    header = {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = files.entry(dtype, shape, offset, offset + len(data))
        offset += len(data)
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(files.encode(text, b"".join(data for _, _, data in tensors.values())))


@pytest.mark.parametrize("seed", range(30))
def test_every_dtype_and_shape_comes_back_bit_by_bit(
    broker: BrokerProcess, tmp_path: Path, seed: int
) -> None:
    """The seed is the test's parameter."""
    tensors = random_tensors(seed, list(BITS))
    path = tmp_path / "all.safetensors"
    write_with_padding(path, tensors, padding=seed)
    with broker.connect() as client:
        client.load(path)
        with client.attach("all") as weights:
            assert set(weights) == set(tensors)
            for name, (dtype, shape, data) in tensors.items():
                view = weights[name]
                assert (view.dtype, view.shape, view.nbytes) == (dtype, tuple(shape), len(data))
                assert weights.raw(name).tobytes() == data, (seed, name)
                assert view.raw().tobytes() == data, (seed, name)
                if dtype in PACKED:
                    with pytest.raises(TypeError):
                        view.numpy()
                else:
                    array = view.numpy()
                    assert (array.shape, array.tobytes()) == (tuple(shape), data), (seed, name)
                if dtype.startswith("F6_"):
                    with pytest.raises(modelbroker.UnimplementedError, match=dtype):
                        view.torch()


@pytest.mark.parametrize("seed", range(15))
def test_state_dict_is_that_of_the_reference_library(
    broker: BrokerProcess, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "stock.safetensors"
    write_with_padding(path, random_tensors(100 + seed, STOCK_TORCH), padding=seed)
    stock = safetensors.torch.load_file(path)
    with broker.connect() as client, client.attach(path) as weights:
        ours = weights.state_dict()
        assert ours.keys() == stock.keys()
        for name, tensor in stock.items():
            assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
            assert ours[name].stride() == tensor.stride(), (seed, name)
            assert bits_of(ours[name]) == bits_of(tensor), (seed, name)


def bits_of(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("seed", range(15))
def test_numpy_is_that_of_the_reference_library(
    broker: BrokerProcess, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "stock.safetensors"
    write_with_padding(path, random_tensors(200 + seed, STOCK_NUMPY), padding=seed)
    stock = safetensors.numpy.load_file(path)
    with broker.connect() as client, client.attach(path) as weights:
        ours = weights.numpy()
        assert ours.keys() == stock.keys()
        for name, array in stock.items():
            assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
            assert ours[name].tobytes() == array.tobytes(), (seed, name)


def test_files_written_by_the_reference_library_come_back_equal(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    made = {
        "w": torch.randn(33, 17, dtype=torch.bfloat16),
        "f8": torch.randn(7, 5).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "mask": torch.rand(9) > 0.5,
    }
    metadata = {"format": "pt", "κλειδί": "τιμή 😀", "empty": "", "long": "x" * 100_000}
    path = tmp_path / "made.safetensors"
    safetensors.torch.save_file(made, path, metadata)
    with broker.connect() as client, client.attach(path) as weights:
        assert weights.metadata == metadata
        ours = weights.state_dict()
        assert ours.keys() == made.keys()
        assert all(bits_of(ours[name]) == bits_of(made[name]) for name in made)
        assert all(ours[name].shape == made[name].shape for name in made)


def test_a_file_without_tensors_loads(broker: BrokerProcess, tmp_path: Path) -> None:
    for name, header in (("none", {}), ("notes", {"__metadata__": {"a": "b"}})):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(files.encode(header))
        with broker.connect() as client, client.attach(path) as weights:
            assert weights.state_dict() == {}
            assert weights.metadata == header.get("__metadata__", {})


@pytest.mark.parametrize("megabytes", [3.9, 4.1, 16, 33.3])
@pytest.mark.parametrize("padding", [0, 1, 4093])
def test_sizes_around_pages_and_chunks_come_back(
    broker: BrokerProcess, tmp_path: Path, megabytes: float, padding: int
) -> None:
    size = int(megabytes * (1 << 20)) + padding
    data = np.random.default_rng(padding).bytes(size)
    half = size // 3
    tensors = {"a": ("U8", [half], data[:half]), "b": ("U8", [size - half], data[half:])}
    path = tmp_path / "large.safetensors"
    write_with_padding(path, tensors, padding)
    with broker.connect() as client, client.attach(path) as weights:
        assert weights.raw("a").tobytes() == data[:half]
        assert weights.raw("b").tobytes() == data[half:]


# ---- which file means which block


def fine_tune(path: Path, seed: int) -> bytes:
    """Same names, shapes, header and size for every seed; other data."""
    data = np.random.default_rng(seed).bytes(1 << 20)
    files.write(path, {"w": ("F16", [1 << 19], data)}, {"made": "by the same script"})
    os.utime(path, ns=(10**18, 10**18))
    return data


def test_two_fine_tunes_of_the_same_shape_size_and_mtime_never_alias(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    first = fine_tune(tmp_path / "a.safetensors", 1)
    second = fine_tune(tmp_path / "b.safetensors", 2)
    with broker.connect() as client:
        loaded = [client.load(tmp_path / f"{name}.safetensors") for name in "ab"]
        assert [one.outcome for one in loaded] == ["loaded", "loaded"]
        assert loaded[0].block != loaded[1].block
        with client.attach("a") as a, client.attach("b") as b:
            assert a.raw("w").tobytes() == first
            assert b.raw("w").tobytes() == second
    assert broker.books()["models"] == 2


def replaced_in_place(path: Path) -> bytes:
    """Written over the old bytes: same inode, size and mtime."""
    other = path.with_suffix(".other")
    data = fine_tune(other, 2)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(10**18, 10**18))
    other.unlink()
    return data


def replaced_by_rename(path: Path) -> bytes:
    other = path.with_suffix(".other")
    data = fine_tune(other, 2)
    other.replace(path)
    return data


@pytest.mark.parametrize("change", [replaced_in_place, replaced_by_rename])
@pytest.mark.parametrize("held", [True, False], ids=["held", "not held"])
def test_a_changed_file_is_a_new_generation_and_holders_keep_the_old_one(
    broker: BrokerProcess, tmp_path: Path, change: Callable[[Path], bytes], held: bool
) -> None:
    path = tmp_path / "tune.safetensors"
    old = fine_tune(path, 1)
    with broker.connect() as client:
        before = client.load(path)
        holder = client.attach("tune")
        assert holder.raw("w").tobytes() == old
        if not held:
            holder.release()
        new = change(path)
        after = client.load(path)
        assert after.outcome == "loaded"
        assert after.model == before.model == "tune"
        assert after.generation > before.generation
        for model in ("tune", path):
            with client.attach(model) as weights:
                assert weights.raw("w").tobytes() == new
                assert weights.generation == after.generation
        del weights
        if held:
            assert holder.raw("w").tobytes() == old
            assert broker.books()["draining"] == before.bytes
            holder.release()
        del holder
        wait_until(lambda: broker.books()["draining"] == 0)
        assert [model.generation for model in client.list()] == [after.generation]
        client.unload("tune", wait=True)
    assert broker.is_empty()


def test_attaching_a_path_looks_at_the_file_again(broker: BrokerProcess, tmp_path: Path) -> None:
    path = tmp_path / "tune.safetensors"
    with broker.connect() as client:
        generations = []
        for seed in range(5):
            data = fine_tune(path, seed)
            with client.attach(path) as weights:
                assert weights.raw("w").tobytes() == data
                generations.append(weights.generation)
            with client.attach(path) as again:
                assert again.generation == generations[-1]
        assert generations == sorted(set(generations))
        path.unlink()
        with client.attach(path) as weights:
            assert weights.raw("w").tobytes() == data


@pytest.mark.parametrize("touch", ["chmod", "mtime back and forth", "hard link"])
def test_a_change_of_ctime_alone_loads_nothing(
    broker: BrokerProcess, tmp_path: Path, touch: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    before = path.stat()
    with broker.connect() as client:
        first = client.load(path)
        if touch == "chmod":
            path.chmod(0o600)
        elif touch == "hard link":
            (tmp_path / "other").hardlink_to(path)
        else:
            path.touch()
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_ctime_ns != before.st_ctime_ns
        for _ in range(2):
            again = client.load(path)
            assert again.outcome == "resident"
            assert (again.block, again.generation) == (first.block, first.generation)
        assert client.status().tiers["ram"].loads == 1
    assert len(broker.blocks()) == 1


def test_ctime_alone_does_not_prove_that_bytes_are_the_same(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """One byte in the middle changed, everything but ctime as before."""
    path = tmp_path / "m.safetensors"
    data = fine_tune(path, 1)
    with broker.connect() as client:
        first = client.load(path)
        for at in (len(data) // 2, len(data) - 1, 0):
            with path.open("r+b") as file:
                file.seek(at - len(data), os.SEEK_END)
                file.write(bytes([data[at] ^ 1]))
            os.utime(path, ns=(10**18, 10**18))
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            after = client.load(path)
            assert (after.outcome, after.generation > first.generation) == ("loaded", True)
            with client.attach("m") as weights:
                assert weights.raw("w").tobytes() == data


def test_a_second_name_is_an_alias_and_a_taken_name_is_refused(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    other = files.write_random(tmp_path / "n.safetensors", 5, seed=9)
    with broker.connect() as client:
        first = client.load(path, "one")
        assert client.load(path, "two").outcome == "alias"
        assert client.load(path, "two").outcome == "resident"
        assert client.load(path, "one").block == first.block
        assert [(m.name, m.aliases) for m in client.list()] == [("one", ["two"])]
        for taken in ("one", "two"):
            with pytest.raises(modelbroker.AlreadyExistsError):
                client.load(other, taken)
        assert len(broker.blocks()) == 1
        with client.attach("two") as weights:
            assert weights.generation == first.generation
        del weights
        gone = client.unload("one")
        assert (gone.freed, gone.draining, gone.remaining_names) == (0, 0, ["two"])
        assert client.load(other, "one").outcome == "loaded"
        gone = client.unload("two", wait=True)
        assert (gone.freed, gone.remaining_names) == (first.bytes, [])
        client.unload("one", wait=True)
    assert broker.is_empty()


def test_an_unloaded_model_that_is_held_drains_and_a_load_revives_it(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with broker.connect() as client:
        first = client.load(path)
        weights = client.attach("m")
        expected = weights.raw("t0").tobytes()
        for _ in range(3):
            gone = client.unload("m")
            assert (gone.freed, gone.draining) == (0, first.bytes)
            assert (client.list(), broker.books()["draining"]) == ([], first.bytes)
            with pytest.raises(modelbroker.NotFoundError):
                client.attach("m")
            revived = client.load(path)
            assert revived.outcome == "revived"
            assert (revived.block, revived.generation) == (first.block, first.generation)
            assert weights.raw("t0").tobytes() == expected
        assert client.status().tiers["ram"].loads == 1
        with pytest.raises(modelbroker.DeadlineExceededError):
            client.unload("m", wait=True, timeout=0.2)
        weights.release()
        del weights
        wait_until(broker.is_empty)
        assert client.load(path).generation > first.generation


def test_the_block_is_what_the_format_says(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    broker.cli("load", path)
    (block,) = broker.blocks()
    raw = block.read_bytes()
    magic, version, min_reader, size = struct.unpack_from("<8sHHI", raw)
    block_size, payload, payload_size = struct.unpack_from("<QQQ", raw, 16)
    assert (magic, version, min_reader, size) == (b"MBROKER1", 1, 1, 4096)
    assert block_size == len(raw) == block.stat().st_size
    assert path.read_bytes().endswith(raw[payload : payload + payload_size])
    assert payload % 4096 == (path.stat().st_size - payload_size) % 4096
    assert block.stat().st_mode & 0o777 == 0o400
    assert block.stat().st_blocks * 512 == block_size
