"""Files that are no good: each gives its typed error and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import struct
import tempfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from modelbroker import (
    DataLossError,
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnimplementedError,
)
from support import files
from support.broker import BrokerProcess, run_python

CODES = [
    "invalid_argument",
    "not_found",
    "already_exists",
    "failed_precondition",
    "stale_generation",
    "resource_exhausted",
    "permission_denied",
    "data_loss",
    "unavailable",
    "deadline_exceeded",
    "cancelled",
    "unimplemented",
]
Maker = Callable[[Path], object]
Kind = type[ModelBrokerError]


def assert_unharmed(broker: BrokerProcess, folder: Path) -> None:
    """It lives, its books are at zero, and an honest file loads with the right bytes."""
    assert broker.alive(), broker.output()
    assert broker.is_empty(), (broker.books(), broker.blocks())
    path = files.write_random(folder / "honest.safetensors", 0.1, seed=7)
    with broker.connect() as client:
        client.load(path, "honest")
        with client.attach("honest") as weights:
            assert (
                b"".join(weights.raw(f"t{i}").tobytes() for i in range(4))
                == (path.read_bytes()[-sum(weights[name].nbytes for name in weights) :])
            )
        del weights
        client.unload("honest", wait=True)
    assert broker.is_empty(), (broker.books(), broker.blocks())


def assert_refused(broker: BrokerProcess, path: Path, kind: Kind, *words: str) -> ModelBrokerError:
    """By the Python client and by the CLI, and neither leaves anything behind."""
    with broker.connect() as client:
        with pytest.raises(kind) as caught:
            client.load(path, "bad")
        with pytest.raises(ModelBrokerError) as by_path:
            client.attach(path)
        assert [model.name for model in client.list()] == []
    assert type(caught.value) is kind
    assert type(by_path.value) is kind
    for word in words:
        assert word in str(caught.value)
    done = broker.cli("load", path, "--name", "bad", check=False)
    assert done.returncode == 10 + CODES.index(kind.code), done.stderr
    assert f"modelbroker: {kind.code}: " in done.stderr
    assert path.name[:60] in done.stderr
    assert_unharmed(broker, path.parent)
    return caught.value


# ---- the header


def one(data: bytes = bytes(16), *, name: str = "t", without: str = "", **fields: Any) -> bytes:
    """A file of one F32 tensor of four numbers, with some fields changed or left out."""
    tensor = {**files.entry("F32", [4], 0, 16), **fields}
    tensor.pop(without, None)
    return files.encode({name: tensor}, data)


def ranges(*offsets: tuple[int, int], size: int) -> bytes:
    """U8 tensors over these ranges of the data."""
    header = {f"t{i}": files.entry("U8", [e - b], b, e) for i, (b, e) in enumerate(offsets)}
    return files.encode(header, bytes(size))


def pytorch_zip() -> bytes:
    raw = BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return raw.getvalue()


RAW = '{"t":{"dtype":"F32","shape":[4],"data_offsets":%s}}'
HEADERS: dict[str, tuple[bytes, Kind]] = {
    "empty": (b"", DataLossError),
    **{f"only {n} bytes": (b"\x01" * n, DataLossError) for n in range(1, 9)},
    "header length 0": (bytes(8), DataLossError),
    "header length 0 with data": (bytes(64), DataLossError),
    "header longer than the file": (files.encode("{}", length=1000), DataLossError),
    "header one longer than the file": (files.encode("{}", length=3), DataLossError),
    "header length 100,000,001": (files.encode("{}", length=100_000_001), DataLossError),
    "header length 2^63": (files.encode("{}", length=2**63), DataLossError),
    "header length 2^64-1": (files.encode("{}", length=2**64 - 1), DataLossError),
    "header length 2^64-8": (files.encode("{}", length=2**64 - 8), DataLossError),
    "does not begin with {": (files.encode("x{}"), DataLossError),
    "an array": (files.encode("[]"), DataLossError),
    "a number": (files.encode("17"), DataLossError),
    "a string": (files.encode('"x"'), DataLossError),
    "broken JSON": (files.encode('{"t":{"dtype":'), DataLossError),
    "two JSON values": (files.encode("{}{}"), DataLossError),
    "a comment": (files.encode("{/* */}"), DataLossError),
    "a trailing comma": (files.encode('{"__metadata__":{},}'), DataLossError),
    "NaN": (files.encode('{"t":NaN}'), DataLossError),
    "a zero byte after the JSON": (files.encode(b"{}\0\0"), DataLossError),
    "arrays nested 100,000 deep": (files.encode('{"t":' + "[" * 100_000), DataLossError),
    "shapes nested 100,000 deep": (
        files.encode('{"t":{"shape":' + "[" * 100_000 + "]" * 100_000 + "}}"),
        DataLossError,
    ),
    "objects nested 100,000 deep": (files.encode('{"t":' * 100_000), DataLossError),
    "nothing but 100,000 brackets": (files.encode("[" * 100_000), DataLossError),
    "invalid UTF-8 in a name": (files.encode(b'{"\xff\xfe":{}}'), DataLossError),
    "half a UTF-16 pair": (files.encode(r'{"\ud800":{}}'), DataLossError),
    "a tensor is null": (files.encode({"t": None}), DataLossError),
    "a tensor is a string": (files.encode({"t": "F32"}), DataLossError),
    "a tensor is an array": (files.encode({"t": []}), DataLossError),
    "a tensor is empty": (files.encode({"t": {}}), DataLossError),
    "a tensor name twice": (
        files.encode(RAW[:-1] % "[0,16]" + "," + RAW[1:] % "[16,32]", bytes(32)),
        DataLossError,
    ),
    "the same tensor twice": (
        files.encode(RAW[:-1] % "[0,16]" + "," + RAW[1:] % "[0,16]", bytes(16)),
        DataLossError,
    ),
    "a key twice": (files.encode(RAW % '[0,16],"dtype":"F32"', bytes(16)), DataLossError),
    "metadata twice": (
        files.encode('{"__metadata__":{},"__metadata__":{}}'),
        DataLossError,
    ),
    "no dtype": (one(without="dtype"), DataLossError),
    "no shape": (one(without="shape"), DataLossError),
    "no data_offsets": (one(without="data_offsets"), DataLossError),
    "dtype is a number": (one(dtype=32), DataLossError),
    "dtype is null": (one(dtype=None), DataLossError),
    "shape is a number": (one(shape=4), DataLossError),
    "shape of strings": (one(shape=["4"]), DataLossError),
    "shape of floats": (one(shape=[4.0]), DataLossError),
    "shape is negative": (one(shape=[-4]), DataLossError),
    "shape is negative twice": (one(shape=[-2, -2]), DataLossError),
    "shape of bools": (one(shape=[True]), DataLossError),
    "shape overflows": (one(shape=[2**33, 2**33]), DataLossError),
    "shape overflows to the right size": (one(shape=[2**62, 4, 1, 1]), DataLossError),
    "shape above 64 bits": (one(shape=[2**64]), DataLossError),
    "shape of rank 65": (one(shape=[1] * 64 + [4]), DataLossError),
    "offsets: one": (one(data_offsets=[0]), DataLossError),
    "offsets: three": (one(data_offsets=[0, 16, 16]), DataLossError),
    "offsets: none": (one(data_offsets=[]), DataLossError),
    "offsets: begin above end": (one(data_offsets=[16, 0]), DataLossError),
    "offsets: negative": (one(data_offsets=[-16, 0]), DataLossError),
    "offsets: floats": (one(data_offsets=[0.0, 16.0]), DataLossError),
    "offsets: bools": (one(data_offsets=[False, True]), DataLossError),
    "offsets: strings": (one(data_offsets=["0", "16"]), DataLossError),
    "offsets: 1e400": (files.encode(RAW % "[0,1e400]", bytes(16)), DataLossError),
    "offsets: 16e0": (files.encode(RAW % "[0,16e0]", bytes(16)), DataLossError),
    "offsets: 2^64": (one(data_offsets=[0, 2**64]), DataLossError),
    "offsets: 2^64-16 to 2^64-1": (one(data_offsets=[2**64 - 17, 2**64 - 1]), DataLossError),
    "size mismatch: more": (one(bytes(32), data_offsets=[0, 32]), DataLossError),
    "size mismatch: less": (one(bytes(8), data_offsets=[0, 8]), DataLossError),
    "size mismatch: half a byte": (one(b"\0", dtype="F4", shape=[1]), DataLossError),
    "ranges overlap": (ranges((0, 8), (4, 12), size=12), DataLossError),
    "ranges are the same": (ranges((0, 8), (0, 8), size=8), DataLossError),
    "ranges leave a gap": (ranges((0, 8), (9, 16), size=16), DataLossError),
    "ranges begin late": (ranges((1, 8), size=8), DataLossError),
    "truncated by one byte": (one(bytes(15)), DataLossError),
    "truncated after the header": (one(b""), DataLossError),
    "one byte too many": (one(bytes(17)), DataLossError),
    "data without tensors": (files.encode("{}", b"x"), DataLossError),
    "metadata with a number": (files.encode({"__metadata__": {"a": 1}}), DataLossError),
    "metadata with an object": (files.encode({"__metadata__": {"a": {}}}), DataLossError),
    "metadata is a string": (files.encode({"__metadata__": "a"}), DataLossError),
    "empty dtype": (one(dtype=""), DataLossError),
    "a dtype that is not a word": (one(dtype="F 7"), DataLossError),
    "a dtype of 33 characters": (one(dtype="F" * 33), DataLossError),
    "an unknown dtype that is too long for the file": (one(bytes(15), dtype="Q4_0"), DataLossError),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n",
        DataLossError,
    ),
    "HTML page": (b"<!DOCTYPE html><html></html>", DataLossError),
    "JSON index": (b'{"metadata": {"total_size": 1}, "weight_map": {}}', UnimplementedError),
    "JSON file": (b'{"architectures": ["BertModel"]}', InvalidArgumentError),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), UnimplementedError),
    "PyTorch zip": (pytorch_zip(), UnimplementedError),
    "pickle": (pickle.dumps({"a": list(range(100))}, protocol=2), UnimplementedError),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), UnimplementedError),
    "random bytes": (random.Random(1).randbytes(100_000), DataLossError),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_damaged_header_is_refused_and_leaves_nothing(
    shared: BrokerProcess, tmp_path: Path, case: str
) -> None:
    raw, kind = HEADERS[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    assert_refused(shared, path, kind, "bad.safetensors")


def test_out_of_order_ranges_and_strange_names_load_and_come_back_equal(
    shared: BrokerProcess, tmp_path: Path
) -> None:
    names = ["a\0b", "tab\tnewline\n\x1b[31m\x7f", "😀 ünïcode 漢字", "", "n" * 1_000_000, "'\"\\/"]
    header = {
        name: files.entry("U8", [1], len(names) - 1 - i, len(names) - i)
        for i, name in enumerate(names)
    }
    raw = files.encode(json.dumps(header, ensure_ascii=False).encode(), bytes(range(len(names))))
    path = tmp_path / "names.safetensors"
    path.write_bytes(raw)
    with shared.connect() as client:
        client.load(path, "names")
        with client.attach("names") as weights:
            assert set(weights) == set(names)
            got = {name: weights.raw(name)[0] for name in names}
        assert got == {name: len(names) - 1 - i for i, name in enumerate(names)}
        assert "names" in shared.cli("show", "names", "--tensors").stdout
        del weights
        client.unload("names", wait=True)
    assert_unharmed(shared, tmp_path)


@pytest.mark.slow
def test_a_header_of_200000_tensors_loads(shared: BrokerProcess, tmp_path: Path) -> None:
    count = 200_000
    path = tmp_path / "many.safetensors"
    path.write_bytes(ranges(*((i, i + 1) for i in range(count)), size=count))
    with shared.connect() as client:
        client.load(path, "many")
        with client.attach("many") as weights:
            assert len(weights) == count
            assert weights["t199999"].nbytes == 1
        del weights
        client.unload("many", wait=True)
    assert_unharmed(shared, tmp_path)


# ---- what is no file, or too large


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the path may be longer than a socket's may be
        listener.bind(path.name)


KINDS: dict[str, tuple[Maker, Kind]] = {
    "fifo": (os.mkfifo, InvalidArgumentError),
    "directory": (os.mkdir, InvalidArgumentError),
    "link to dev zero": (lambda path: path.symlink_to("/dev/zero"), InvalidArgumentError),
    "link to dev null": (lambda path: path.symlink_to("/dev/null"), InvalidArgumentError),
    "unix socket": (unix_socket, InvalidArgumentError),
    "missing": (lambda _path: None, NotFoundError),
    "dangling link": (lambda path: path.symlink_to("nowhere"), NotFoundError),
    "link loop": (lambda path: path.symlink_to(path.name), InvalidArgumentError),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_is_no_regular_file_is_refused(
    shared: BrokerProcess, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, kind = KINDS[case]
    path = tmp_path / "bad.safetensors"
    make(path)
    assert_refused(shared, path, kind)


def test_paths_that_no_file_can_have_are_refused(shared: BrokerProcess, tmp_path: Path) -> None:
    for name in ("n" * 300 + ".safetensors", "/".join(["d" * 200] * 30)):
        with shared.connect() as client, pytest.raises(InvalidArgumentError):
            client.load(tmp_path / name, "bad")
        done = shared.cli("load", tmp_path / name, check=False)
        assert done.returncode == 10 + CODES.index("invalid_argument"), done.stderr
    files.write_random(tmp_path / "file")
    with shared.connect() as client, pytest.raises(NotFoundError):
        client.load(tmp_path / "file" / "below")
    assert_unharmed(shared, tmp_path)


DROP_RIGHTS = """
import os, sys
import modelbroker
client = modelbroker.connect()
client.list()  # both sockets are connected
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        print(client.load(path).outcome)
    except modelbroker.ModelBrokerError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them")
def test_a_file_that_the_caller_may_not_read_is_refused_though_the_broker_may(
    shared: BrokerProcess, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        closed = files.write_random(folder / "closed.safetensors", 0.1)
        closed.chmod(0)
        opened = files.write_random(folder / "open.safetensors", 0.1)
        opened.chmod(0o644)
        done = run_python(
            DROP_RIGHTS, str(closed), str(opened), environment=shared.environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first.startswith(f"PermissionDeniedError opening '{closed}'")
        assert second == "loaded"
        shared.cli("unload", "open", "--wait")
    assert_unharmed(shared, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_refused(shared: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "closed.safetensors", 0.1)
    path.chmod(0)
    assert_refused(shared, path, PermissionDeniedError)


def sparse(path: Path, size: int) -> Path:
    header = {"t": files.entry("U8", [size], 0, size)}
    raw = files.encode(header)
    path.write_bytes(raw)
    os.truncate(path, len(raw) + size)
    return path


@pytest.mark.parametrize("size", [1 << 40, 1 << 30], ids=["a terabyte", "the whole budget"])
def test_a_file_above_the_budget_is_refused_with_the_numbers(
    shared: BrokerProcess, tmp_path: Path, size: int
) -> None:
    path = sparse(tmp_path / "large.safetensors", size)
    error = assert_refused(shared, path, ResourceExhaustedError, "--ram-budget")
    assert error.details["limit"] == 1 << 30
    assert error.details["needed"] >= size
    assert error.details["made"] == error.details["reserved"] == 0


def test_what_fits_the_budget_alone_is_refused_beside_one_that_must_stay(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--ram-budget", "32MiB").start()
    first = files.write_random(tmp_path / "first.safetensors", 18, seed=1)
    second = files.write_random(tmp_path / "second.safetensors", 18, seed=2)
    with broker.connect() as client:
        made = client.load(first, pin=True).bytes
        for _ in range(3):
            with pytest.raises(ResourceExhaustedError) as caught:
                client.load(second)
            details = caught.value.details
            assert (details["made"], details["limit"]) == (made, 32 << 20)
            assert details["available"] == (32 << 20) - made < details["needed"]
        client.unload("first", wait=True)
        assert client.load(second).outcome == "loaded"
        client.unload("second", wait=True)
    assert_unharmed(broker, tmp_path)
