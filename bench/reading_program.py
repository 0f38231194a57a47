"""A program that reads safetensors files in the ways that programs do, and says how long it took.

It does not know modelbroker, but for restore(). Asked by JSON lines, ["WAY", "ARGUMENT", ...], it
answers by JSON lines:

first PATH COUNT            quantiles of: open, first tensor
tensors PATH                a get_tensor and a get_slice, on the average of a file's tensors, the
                            best of some rounds
headers FOLDER              to open every file there and ask for keys, shapes and dtypes
load_state_dict PATH ASSIGN to load a module that has the file's tensors as parameters
write PATH SIZE             writes over the first SIZE bytes of tensors (no time)
undo                        to have the file's bytes again in all that was written
touch                       to read a byte of each page of that
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bench_worker import repeat, say, touch

safe_open: Any = safetensors.safe_open  # half of it has types
_OF_A_BLOCK = 100
_ROUNDS = 5  # of a tenth of a second
_written: dict[str, torch.Tensor] = {}
_file = ""


def first(path: str, count: str) -> None:
    def once() -> object:
        opened = safe_open(path, framework="pt")
        return opened, opened.get_tensor("layer.0.weight")

    repeat(once, int(count))


def tensors(path: str) -> None:
    best = [float("inf")] * 2
    for _ in range(_ROUNDS):
        best = [*map(min, best, _once_each(path))]
    say(tensor=best[0], slice=best[1])


def _once_each(path: str) -> tuple[float, float]:
    with safe_open(path, framework="pt") as opened:
        names = list(opened.keys())
        kept: list[Any] = [opened.get_tensor(names[0])]
        began = time.perf_counter()
        kept += [opened.get_tensor(name) for name in names]
        between = time.perf_counter()
        kept += [opened.get_slice(name)[1:] for name in names]
        ended = time.perf_counter()
    return (between - began) / len(names), (ended - between) / len(names)


def headers(folder: str) -> None:
    paths = [str(path) for path in Path(folder).iterdir()]
    found = 0
    began = time.perf_counter()
    for path in paths:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is not a mapping
                piece = opened.get_slice(name)
                found += len(piece.get_shape()) + len(piece.get_dtype())
    say(seconds=time.perf_counter() - began, files=len(paths), found=found)


class _Layer(torch.nn.Module):
    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty_like(like))


class _Block(torch.nn.Module):
    def __init__(self, likes: list[torch.Tensor]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_Layer(like) for like in likes])


class _Network(torch.nn.Module):
    """In blocks, as networks are: torch takes a second for thousands of modules in one list."""

    def __init__(self, values: list[torch.Tensor]) -> None:
        super().__init__()
        parts = range(0, len(values), _OF_A_BLOCK)
        self.blocks = torch.nn.ModuleList([_Block(values[i : i + _OF_A_BLOCK]) for i in parts])


def load_state_dict(path: str, assign: str) -> None:
    values = list(safetensors.torch.load_file(path).values())
    network = _Network(values)
    named = dict(zip(network.state_dict(), values, strict=True))
    began = time.perf_counter()
    network.load_state_dict(named, assign=assign == "assign")
    say(seconds=time.perf_counter() - began)


def write(path: str, size: str) -> None:
    global _file
    _file, left = path, int(size)
    _written.clear()
    for name, tensor in safetensors.torch.load_file(path).items():
        if left <= 0:
            break
        tensor.fill_(1)
        _written[name] = tensor
        left -= tensor.nbytes
    say(written=sum(tensor.nbytes for tensor in _written.values()))


def undo() -> None:
    """By restore() where this process shares, otherwise by reading the file again."""
    ours = sys.modules.get("modelbroker")
    began = time.perf_counter()
    if ours is not None:
        ours.shared(_written).restore()
    else:
        with safe_open(_file, framework="pt") as opened:
            for name, tensor in _written.items():
                tensor.copy_(opened.get_tensor(name))
    seconds = time.perf_counter() - began
    left = sum(bool(tensor[:1].any()) for tensor in _written.values())
    say(seconds=seconds, left=left)


def touch_written() -> None:
    began = time.perf_counter()
    touch(_written)
    say(seconds=time.perf_counter() - began)


_WAYS: dict[str, Callable[..., None]] = {
    "first": first,
    "tensors": tensors,
    "headers": headers,
    "load_state_dict": load_state_dict,
    "write": write,
    "undo": undo,
    "touch": touch_written,
}


def main() -> None:
    torch.set_num_threads(1)
    say(ready=True)
    for line in sys.stdin:
        way, *arguments = json.loads(line)
        with torch.no_grad():
            _WAYS[way](*arguments)


if __name__ == "__main__":
    main()
