"""`import modelbroker` imports nothing heavy; every public name is there when it is used."""

from __future__ import annotations

import importlib

import pytest

import modelbroker
from support.broker import run_python

LAZY = """
import sys
import modelbroker
dir(modelbroker)
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])))
modelbroker.connect
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""


def test_importing_it_imports_neither_numpy_nor_zmq_nor_torch() -> None:
    done = run_python(LAZY, "numpy", "zmq", "msgpack", "torch", "typing", "dataclasses")
    assert (done.returncode, done.stderr) == (0, "")
    first, then = done.stdout.splitlines()
    assert first == "[]"
    assert then == "['dataclasses', 'msgpack', 'numpy', 'typing', 'zmq']"


@pytest.mark.parametrize("name", modelbroker.__all__)
def test_each_public_name_is_the_one_of_its_module(name: str) -> None:
    home = importlib.import_module(f"modelbroker.{modelbroker._HOMES[name]}")
    assert getattr(modelbroker, name) is getattr(home, name)
    assert name in dir(modelbroker)


def test_a_star_import_has_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from modelbroker import *", names)
    assert set(names) - {"__builtins__"} == set(modelbroker.__all__) == set(modelbroker._HOMES)


def test_the_version_is_a_name_too_and_a_misspelt_one_is_not() -> None:
    assert modelbroker.__version__
    with pytest.raises(AttributeError, match="module 'modelbroker' has no attribute 'conect'"):
        _ = modelbroker.conect  # type: ignore[attr-defined]  # the subject of the test
