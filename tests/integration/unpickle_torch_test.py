"""PyTorch files as torch writes them: `modelbroker-unpickle` says what `torch.load` reads."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy
import pytest
import torch
from torch.utils.serialization import config

PROGRAM = Path(os.environ["MODELBROKER_TEST_BROKER"]).with_name("modelbroker-unpickle")
WORDS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.complex128: "C128",
    torch.complex32: "C32",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}
pytestmark = pytest.mark.usefixtures("one_thread")


class Canary:
    """Its pickle makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._path), "w"))


class OfATrainer:
    """A class that the program cannot know."""

    def __init__(self) -> None:
        self.mean = torch.ones(2)


def ask(path: Path) -> dict[str, Any]:
    done = subprocess.run([PROGRAM, path], capture_output=True, check=False, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if "error" in answer else 0)
    return answer


def refusal(path: Path) -> tuple[str, str]:
    error = ask(path)["error"]
    return error["code"], error["message"]


def saved(path: Path, value: Any, **how: Any) -> dict[str, Any]:
    torch.save(value, path, **how)
    return ask(path)


def tensors_of(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """What torch read, by the names that nested values get."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    found: dict[str, torch.Tensor] = {}
    for key, child in items:
        found |= tensors_of(child, f"{name}.{key}" if name else str(key))
    return found


def as_read(path: Path, tensor: dict[str, Any], like: torch.Tensor) -> torch.Tensor:
    """A tensor from the bytes of the file that the answer names."""
    with path.open("rb") as file:
        file.seek(tensor["offset"])
        span = file.read(tensor["size"])
    assert len(span) == tensor["size"]
    if not span:
        return torch.empty(tensor["shape"], dtype=like.dtype)
    flat = torch.frombuffer(bytearray(span), dtype=torch.uint8).view(like.dtype)
    row_major = [math.prod(tensor["shape"][i + 1 :]) for i in range(len(tensor["shape"]))]
    return flat.as_strided(tensor["shape"], tensor.get("strides", row_major))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def same_as_torch(path: Path, answer: dict[str, Any]) -> None:
    reference = tensors_of(torch.load(path, weights_only=False))
    told = {tensor["name"]: tensor for tensor in answer["tensors"]}
    assert told.keys() == reference.keys()
    for name, tensor in told.items():
        like = reference[name].detach()
        assert tensor["dtype"] == WORDS[like.dtype]
        read = as_read(path, tensor, like)
        assert read.shape == like.shape
        assert bits(read) == bits(like), name


def random_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    if dtype == torch.bool:
        return torch.arange(math.prod(shape)).reshape(shape) % 3 == 0
    return torch.randint(0, 255, (size,), dtype=torch.uint8).view(dtype).reshape(shape)


def views() -> dict[str, Any]:
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "row": base[1],
        "column": base[:, 2, 1],
        "step": base[:, ::2],
        "expanded": torch.arange(4.0).expand(6, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7.5),
        "of_one": torch.ones(1, 1, 1),
        "empty": torch.empty(0, 3),
        "end": base[3:],
        "parameter": torch.nn.Parameter(base[2]),
    }


@pytest.mark.filterwarnings("ignore:ComplexHalf support")  # torch says so of each such tensor
def test_every_dtype(tmp_path: Path) -> None:
    weights = {str(dtype): random_of(dtype, 3, 5) for dtype in WORDS}
    path = tmp_path / "dtypes.pt"
    same_as_torch(path, saved(path, weights))


def test_float4_counts_numbers_and_not_bytes(tmp_path: Path) -> None:
    pairs = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    answer = saved(tmp_path / "f4.pt", {"w": pairs})
    (tensor,) = answer["tensors"]
    assert (tensor["dtype"], tensor["shape"], tensor["size"]) == ("F4", [2, 6], 6)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_views_and_tied_tensors_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "views.pt"
    answer = saved(path, views(), pickle_protocol=protocol)
    same_as_torch(path, answer)
    told = {tensor["name"]: tensor for tensor in answer["tensors"]}
    assert told["transposed"]["offset"] == told["base"]["offset"]
    assert told["row"]["offset"] == told["base"]["offset"] + 20 * 4


@pytest.mark.parametrize("alignment", [64, 4096])
def test_storage_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "aligned.pt"
    patch: Any = config  # its methods are added while it is imported
    with patch.patch("save.storage_alignment", alignment):
        answer = saved(path, views())
    same_as_torch(path, answer)
    assert answer["tensors"][0]["offset"] % alignment == 0


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = tmp_path / "plain.pt"
        same_as_torch(path, saved(path, views()))
    finally:
        torch.serialization.set_crc32_options(True)


def test_written_by_another_program(tmp_path: Path) -> None:
    first, path = tmp_path / "first.pt", tmp_path / "second.pt"
    torch.save(views(), first)
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    same_as_torch(path, ask(path))


def test_a_trainers_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    path = tmp_path / "last.ckpt"
    answer = saved(
        path,
        {
            "epoch": 3,
            "state_dict": module.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"last": torch.ones(1)}],
            "hyper_parameters": Namespace(lr=1e-3, folder=PurePosixPath("/data")),
            "counts": Counter("aab"),
            "sizes": defaultdict(list, {"a": [1, 2]}),
            "best": numpy.float64(0.25),
            "array": numpy.arange(3),
            "size": torch.Size([2, 3]),
            "dtype": torch.bfloat16,
            "device": torch.device("cpu"),
            "trainer": OfATrainer(),
        },
    )
    assert answer["wrapper"] == "state_dict"
    assert {tensor["name"] for tensor in answer["tensors"]} == set(module.state_dict())
    assert answer["left_out"] == 4 * 3 + 1 + 1
    assert answer["placeholders"] == [f"{__name__}.OfATrainer"]
    assert answer["values"] == {
        "epoch": 3,
        "hyper_parameters": {"lr": 1e-3, "folder": "/data"},
        "counts": {"a": 2, "b": 1},
        "sizes": {"a": [1, 2]},
        "best": 0.25,
        "size": [2, 3],
        "device": "cpu",
    }


def test_nested_sequences(tmp_path: Path) -> None:
    path = tmp_path / "nested.pt"
    value = OrderedDict(
        a=[torch.ones(2), (torch.zeros(1), {"x": torch.ones(3)})], b={1: torch.ones(4)}
    )
    same_as_torch(path, saved(path, value))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, canary = tmp_path / "hostile.pt", tmp_path / "canary"
    torch.save({"w": torch.ones(2), "x": Canary(canary)}, path, pickle_protocol=protocol)
    code, message = refusal(path)
    assert code == "invalid_argument"
    assert "open'" in message
    assert not canary.exists()
    torch.load(path, weights_only=False)["x"].close()
    assert canary.exists()  # the pickle does what it says to those who run it


def test_every_module_of_this_python_is_refused() -> None:
    table = (Path(__file__).parents[2] / "unpickle" / "names.cc").read_text()
    assert [name for name in sys.stdlib_module_names if f'"{name}"' not in table] == []


def legacy(path: Path, value: Any, **how: Any) -> dict[str, Any]:
    return saved(path, value, _use_new_zipfile_serialization=False, **how)


def test_every_dtype_of_the_legacy_form(tmp_path: Path) -> None:
    path = tmp_path / "dtypes.pt"
    # Torch reads no other: these have storage classes of their own.
    dtypes = list(WORDS)[:12]
    same_as_torch(path, legacy(path, {str(dtype): random_of(dtype, 3, 5) for dtype in dtypes}))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_views_of_the_legacy_form(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "views.pt"
    answer = legacy(path, views(), pickle_protocol=protocol)
    assert answer["format"] == "torch_legacy"
    same_as_torch(path, answer)


def pieces_of_legacy(path: Path) -> list[bytes]:
    """The five pickles of a legacy file of one tensor, and what is behind them."""
    legacy(path, {"w": torch.arange(4.0)})
    rest = io.BytesIO(path.read_bytes())
    pieces = []
    for _ in range(5):
        begin = rest.tell()
        for opcode, _argument, _position in pickletools.genops(rest):
            assert opcode is not None
        pieces.append(rest.getvalue()[begin : rest.tell()])
    return [*pieces, rest.read()]


def test_code_in_each_pickle_of_the_legacy_form(tmp_path: Path) -> None:
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    pieces = pieces_of_legacy(path)
    hostile = pickle.dumps(Canary(canary), protocol=2)
    for i in range(5):
        path.write_bytes(b"".join([*pieces[:i], hostile, *pieces[i + 1 :]]))
        code, message = refusal(path)
        assert (code, "open'" in message) == ("invalid_argument", True)
    assert not canary.exists()


def test_damaged_legacy_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    pieces = pieces_of_legacy(path)
    whole = b"".join(pieces)
    for size in range(20, len(whole)):
        path.write_bytes(whole[:size])
        if size % 7 == 0 or size > len(whole) - 30:  # each process takes a while
            assert refusal(path)[0] == "data_loss"
    for at, content, reason in [
        (1, b"\x80\x02K\x01.", "its protocol is not 1001"),
        (2, pieces[2].replace(b"\x88", b"\x89"), "its byte order is 'big'"),
        (2, b"}.", "does not say its byte order"),
        (4, b"].", "more behind its last storage"),
        (4, b"](X\1\0\0\0aK\1e.", "storage 'a' belongs to no tensor"),
        (5, bytes(8) + pieces[5][8:], "has two counts"),
        (5, b"\xff" * 8 + pieces[5][8:], "has two counts"),
        (5, pieces[5] + b"x", "more behind its last storage"),
    ]:
        path.write_bytes(b"".join([*pieces[:at], content, *pieces[at + 1 :]]))
        assert reason in refusal(path)[1]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "tensor 'w': it is sparse"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), "tensor 'w': it is sparse"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "tensor 'w': it is quantised",
    ),
    "meta": (lambda: torch.empty(2, device="meta"), "tensor 'w': it is on the meta device"),
    "conj": (
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        "tensor 'w': it was saved with the conj bit",
    ),
    "neg": (
        lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
        "tensor 'w': it was saved with the neg bit",
    ),
    "module": (lambda: torch.nn.Linear(2, 2), "torch.save(model.state_dict(), ...)"),
}


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support", "ignore:.*quantize"
)  # torch says so
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_held_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    make, reason = REFUSED[kind]
    torch.save({"w": make()}, tmp_path / "x.pt")
    code, message = refusal(tmp_path / "x.pt")
    assert code in ("unimplemented", "invalid_argument")
    assert reason in message


def rewritten(
    path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A saved file with other records: None leaves one out."""
    torch.save({"w": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as source:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (records | change).items():
            if content is not None:
                archive.writestr(name if name.startswith("other/") else f"x/{name}", content)
    return path


FILES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "big": ({"byteorder": b"big"}, "its byte order is 'big'"),
    "no pickle": ({"data.pkl": None}, "it has no data.pkl"),
    "no storage": ({"data/0": None}, "tensor 'w': its storage '0' is not in the file"),
    "short storage": ({"data/0": b"123"}, "tensor 'w': its storage '0' is longer than its record"),
    "second root": ({"other/data.pkl": b"N."}, "two roots"),
    "script": ({"constants.pkl": b"N."}, "TorchScript"),
    "two pickles": ({"data.pkl": b"N.N."}, "more behind its end"),
}


@pytest.mark.parametrize("fault", FILES)
def test_damaged_archives(tmp_path: Path, fault: str) -> None:
    change, reason = FILES[fault]
    assert reason in refusal(rewritten(tmp_path / "x.pt", change))[1]


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated, and there
def test_other_files(tmp_path: Path) -> None:
    compressed = rewritten(tmp_path / "x.pt", {"data/0": bytes(1000)}, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(compressed)[1]
    script: Any = torch.jit.script(torch.nn.ReLU())
    script.save(str(tmp_path / "x.pt"))
    assert refusal(tmp_path / "x.pt")[0] == "unimplemented"
    for content, reason in [
        (b"\x1f\x8b" + bytes(100), "compressed by gzip"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (b"", "last opcode"),
        (b"cos\nsystem\n(S'true'\ntR.", "'os.system'"),
        (b"N.", "not a file of torch.save"),
        (b"PK", "too short"),
    ]:
        (tmp_path / "x.pt").write_bytes(content)
        assert reason in refusal(tmp_path / "x.pt")[1]
    assert refusal(tmp_path / "nothing.pt")[0] == "not_found"
    assert refusal(tmp_path)[0] == "invalid_argument"
