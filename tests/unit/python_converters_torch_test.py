"""Copies that a converter of diffusers makes, with a module in the place of diffusers' own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from modelbroker._sharing import context, converters
from support.blocks import is_over_block, mapped

UTILS = "diffusers.loaders.single_file_utils"
MODEL = "diffusers.loaders.single_file_model"
SOURCE = """
def convert_one(checkpoint, config=None, **kwargs):
    return {name: how(tensor) for name, (how, tensor) in checkpoint.items()}

def convert_outer(checkpoint):
    return convert_one(checkpoint)

def helper(checkpoint):
    return convert_one(checkpoint)
"""
USER = f"from {UTILS} import *\nSINGLE_FILE_LOADABLE_CLASSES = {{'One': {{'fn': convert_one}}}}"


def module_of(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> Any:
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(source, vars(made))  # as an import does
    return made


@pytest.fixture(params=["before", "after"])
def diffusers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The module of converters and one that imported them by name, `before` us or `after`."""
    monkeypatch.setattr(context, "is_inside", lambda: True)
    utils = module_of(monkeypatch, UTILS, SOURCE)
    if request.param == "before":
        model = module_of(monkeypatch, MODEL, USER)
        converters.install()
    else:
        monkeypatch.delitem(sys.modules, MODEL, raising=False)
        converters.install()
        model = module_of(monkeypatch, MODEL, USER)
    converters.install()
    return utils, model


@pytest.fixture
def fused(tmp_path: Path) -> torch.Tensor:
    return mapped(tmp_path / "block", {"fused": torch.randn(12, 5)})["fused"]


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "the module": lambda utils, _: utils.convert_one,
    "a name elsewhere": lambda _, model: model.convert_one,
    "the table": lambda _, model: model.SINGLE_FILE_LOADABLE_CLASSES["One"]["fn"],
    "a converter that calls it": lambda utils, _: utils.convert_outer,
    "a helper that calls it": lambda utils, _: utils.helper,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_converter_is_wrapped_wherever_it_is_found(
    diffusers: tuple[Any, Any], fused: torch.Tensor, way: str
) -> None:
    convert = WAYS[way](*diffusers)
    found = convert({"query": (torch.clone, fused[:4])})["query"]
    assert is_over_block(found)
    assert torch.equal(found, fused[:4])
    before = fused[:4].clone()
    found.zero_()
    assert torch.equal(fused[:4], before)
    assert not is_over_block(torch.clone(fused[:4])), "outside of a converter"


def test_a_converter_looks_as_before(diffusers: tuple[Any, Any]) -> None:
    convert = diffusers[0].convert_one
    assert list(inspect.signature(convert).parameters) == ["checkpoint", "config", "kwargs"]
    assert convert.__name__ == "convert_one"
    assert convert.__wrapped__.__name__ == "convert_one"
    assert not hasattr(convert.__wrapped__, "__wrapped__"), "wrapped once"


HOW: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "clone": (lambda it: it.clone(), True),
    "clone().detach()": (lambda it: it[:4].clone().detach(), True),
    "torch.clone": (torch.clone, True),
    "cat of one": (lambda it: torch.cat([it]), True),
    "cat of a tuple, with dim": (lambda it: torch.cat((it.chunk(3)[1],), dim=0), True),
    "concat of one": (lambda it: torch.concat([it[1:]]), True),
    "cat of two": (lambda it: torch.cat([it[:2], it[2:]]), False),
    "cat with out": (lambda it: torch.cat([it], out=torch.empty(12, 5)), False),
    "clone of columns": (lambda it: it[:, :2].clone(), False),
    "clone of the transposed": (lambda it: it.T.clone(), False),
    "contiguous of the transposed": (lambda it: it.T.contiguous(), False),
    "clone with a format": (lambda it: it.clone(memory_format=torch.contiguous_format), False),
    "another dtype": (lambda it: it.to(torch.float64), False),
    "clone of what learns": (lambda it: it.requires_grad_().clone(), False),
    "clone of the program's own": (lambda it: it.add(1).clone(), False),
}


@pytest.mark.parametrize("how", HOW)
def test_what_is_only_a_copy_is_shared(
    diffusers: tuple[Any, Any], fused: torch.Tensor, how: str
) -> None:
    function, shared = HOW[how]
    wanted = function(fused)
    found = diffusers[0].convert_one({"it": (function, fused)})["it"]
    assert torch.equal(found, wanted)
    assert (found.stride(), found.dtype, found.requires_grad) == (
        wanted.stride(), wanted.dtype, wanted.requires_grad,
    )  # fmt: skip
    assert is_over_block(found) == shared
    assert found.data_ptr() != fused.data_ptr()


def test_what_was_written_before_is_copied(diffusers: tuple[Any, Any], fused: torch.Tensor) -> None:
    fused[0, 0] = 3
    found = diffusers[0].convert_one({"it": (torch.clone, fused)})["it"]
    assert torch.equal(found, fused)
    assert not is_over_block(found)


def test_a_converter_outside_copies(
    diffusers: tuple[Any, Any], fused: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "is_inside", lambda: False)
    found = diffusers[0].convert_one({"it": (torch.clone, fused)})["it"]
    assert not is_over_block(found)


def test_an_error_of_a_converter_is_its_own(diffusers: tuple[Any, Any]) -> None:
    def fail(_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        diffusers[0].convert_one({"it": (fail, None)})
