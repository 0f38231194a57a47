"""State of the whole process: the package changes none, and none changes what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from support.broker import BrokerProcess, run_python

TENSORS = {
    "f32": torch.linspace(0, 1, 12).view(3, 4),
    "bf16": torch.linspace(0, 1, 8).to(torch.bfloat16),
    "f8": torch.linspace(0, 1, 8).to(torch.float8_e4m3fn),
    "i64": torch.arange(5),
    "scalar": torch.tensor(3.5),
    "nothing": torch.zeros(0, 4),
    "nothing.bf16": torch.zeros(2, 0, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def path(shared: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "m.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    shared.cli("load", path, "--name", "state")
    return path


# ---- what it changes

UNCHANGED = """
import os, signal, sys, threading, warnings
import numpy, torch

def state():
    mask = os.umask(0)
    os.umask(mask)
    return {
        "filters": list(warnings.filters), "showwarning": warnings.showwarning,
        "device": torch.get_default_device(), "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(), "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(), "numpy": (numpy.geterr(), numpy.geterrcall()),
        "signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "handlers": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "wakeup": signal.set_wakeup_fd(-1), "umask": mask, "folder": os.getcwd(),
        "environment": dict(os.environ), "path": list(sys.path),
        "switch": sys.getswitchinterval(), "hooks": (sys.excepthook, threading.excepthook),
    }

before = state()
during = []
class Module(torch.nn.Module):  # sees what is so while the package works
    def __init__(self):
        super().__init__()
        for name in sys.argv[1:]:
            self.register_buffer(name, torch.empty(0, device="meta"))
    def _load_from_state_dict(self, *arguments):
        during.append(list(warnings.filters))

import modelbroker
assert state() == before, "import"
for mode in ("private", "readonly"):
    with modelbroker.connect(timeout=30) as client, client.attach("state", mode=mode) as weights:
        kept = weights.state_dict(), weights.numpy("i"), weights["f32"].torch()
        weights.apply_to(Module(), strict=False)
        client.list(), client.status(), client.load
        assert state() == before, mode
assert during == [before["filters"]] * 2
assert state() == before, "the end"
"""


def test_importing_and_using_it_leaves_the_process_as_it_was(
    shared: BrokerProcess, path: Path
) -> None:
    assert path.exists()
    done = run_python(UNCHANGED, environment=shared.environment)
    assert (done.returncode, done.stderr) == (0, "")


# ---- what changes it


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "as it is": nullcontext,
    "set_default_device": lambda: default_device("meta"),
    "a device as context": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
    "numpy's errors": lambda: np.errstate(all="raise"),
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("mode", ["private", "readonly"])
@pytest.mark.parametrize("state", STATES)
def test_it_gives_the_same_in_every_state(
    shared: BrokerProcess, path: Path, state: str, mode: Any
) -> None:
    assert path.exists()
    with shared.connect() as client, STATES[state]():
        weights = client.attach("state", mode=mode)
        found = weights.state_dict()
        alone = {name: weights[name].torch() for name in weights}
        arrays = {name: weights[name].numpy() for name in ("f32", "i64", "scalar", "nothing")}
        module = torch.nn.BatchNorm1d(4)
        normal = {n: torch.ones(4, device="cpu") for n in ("weight", "bias", "running_mean")}
        normal["running_var"] = normal["bias"].clone()
        safetensors.torch.save_file(normal, path.with_name(f"{mode} {state}.safetensors"))
        network = client.attach(path.with_name(f"{mode} {state}.safetensors"), mode=mode)
        network.apply_to(module)  # torch makes the counter that the file lacks
    for tensors in (found, alone):
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in tensors.items():
            assert (tensor.device.type, tensor.dtype) == ("cpu", TENSORS[name].dtype)
            assert tensor.shape == TENSORS[name].shape
            same = tensor.view(torch.uint8) if tensor.dim() else tensor
            wanted = TENSORS[name].view(torch.uint8) if tensor.dim() else TENSORS[name]
            assert torch.equal(same, wanted)
    for name, array in arrays.items():
        assert np.array_equal(array, TENSORS[name].numpy())
        assert array.dtype == TENSORS[name].numpy().dtype
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}


def test_threads_that_attach_read_only_keep_each_others_warning_filters(
    shared: BrokerProcess, path: Path
) -> None:
    assert path.exists()
    script = """
import threading, warnings
import modelbroker, torch
torch.zeros(1)
before = list(warnings.filters)
client = modelbroker.connect(timeout=30)
client.attach("state", mode="readonly").state_dict()
def work():
    for _ in range(200):
        client.attach("state", mode="readonly").state_dict()
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads):
    assert warnings.filters == before
[thread.join() for thread in threads]
assert warnings.filters == before
"""
    done = run_python(script, environment=shared.environment)
    assert (done.returncode, done.stderr) == (0, "")
