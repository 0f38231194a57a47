"""Loras on plain modules: the scale that a file asks for, quantised layers, a killed worker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import modelbroker
from modelbroker import InvalidArgumentError, UnimplementedError
from modelbroker.lora import Loras
from support.broker import BrokerProcess, start_python, wait_until
from support.workers import line_of

RANK = 4


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with modelbroker.connect(shared.endpoint) as connected:
        yield connected


def network() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.ModuleDict({"fc": torch.nn.Linear(16, 8)})


def factors(seed: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, 16, generator=generator), torch.randn(8, RANK, generator=generator)


def peft_file(path: Path, metadata: dict[str, str] | None = None, prefix: str = "") -> Path:
    down, up = factors()
    tensors = {f"{prefix}fc.lora_A.weight": down, f"{prefix}fc.lora_B.weight": up}
    save_file(tensors, path, metadata=metadata)
    return path


def effect(module: Any, loras: Loras, weight: float = 1.0) -> float:
    """How many times up·down it adds."""
    x = torch.ones(2, 16)
    down, up = factors()
    with torch.no_grad():
        loras.weights = dict.fromkeys(loras.names, 0.0)
        plain = module["fc"](x)
        loras.weights = dict.fromkeys(loras.names, weight)
        added = module["fc"](x) - plain
        unit = x @ down.T @ up.T
    scale = float((added * unit).sum() / (unit * unit).sum())
    torch.testing.assert_close(added, scale * unit, rtol=1e-4, atol=1e-4)
    return scale


SCALES: dict[str, tuple[dict[str, Any], float]] = {
    "nothing": ({}, 1.0),
    "alpha": ({"lora_alpha": 2.0}, 0.5),
    "rslora": ({"lora_alpha": 2.0, "use_rslora": True}, 1.0),
    "a pattern": ({"lora_alpha": 2.0, "alpha_pattern": {"fc": 8.0}}, 2.0),
    "another module's pattern": ({"lora_alpha": 2.0, "alpha_pattern": {"c": 8.0}}, 0.5),
    "no number": ({"lora_alpha": "much"}, 1.0),
}


@pytest.mark.parametrize(("config", "scale"), SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("where", ["metadata", "folder", "file of a folder"])
def test_the_scale(
    client: modelbroker.Broker,
    where: str,
    config: dict[str, Any],
    scale: float,
    tmp_path: Path,
) -> None:
    """As diffusers' save_lora_weights writes it, and as PEFT does, in a file of its own."""
    if where == "metadata":
        flat = {f"unet.{key}": value for key, value in config.items()}
        metadata = {"lora_adapter_metadata": json.dumps(flat)} if config else {}
        path = peft_file(tmp_path / "pytorch_lora_weights.safetensors", metadata, "unet.")
    else:
        path = tmp_path
        peft_file(tmp_path / "adapter_model.safetensors", None, "base_model.model.")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        if where != "folder":
            path = path / "adapter_model.safetensors"
    module = Pipeline() if where == "metadata" else network()
    loras = Loras(module, client)
    loras.add(path, "one")
    target = module.components["unet"] if isinstance(module, Pipeline) else module
    assert effect(target, loras) == pytest.approx(scale, rel=1e-4)


class Pipeline:
    """What is known of a pipeline: its components."""

    def __init__(self) -> None:
        self.components = {"unet": network(), "tokenizer": "words", "vae": None}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", InvalidArgumentError),
        ("[1]", InvalidArgumentError),
        ("[" * 100_000, InvalidArgumentError),
        ('{"peft_type": "IA3"}', UnimplementedError),
    ],
    ids=["cut", "a list", "deep", "another kind"],
)
def test_wrong_configurations(
    client: modelbroker.Broker, text: str, error: type[Exception], tmp_path: Path
) -> None:
    peft_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(error):
        Loras(network(), client).add(tmp_path, "one")


def test_alpha_of_zero_adds_nothing(client: modelbroker.Broker, tmp_path: Path) -> None:
    down, up = factors()
    tensors = {"fc.lora_down.weight": down, "fc.lora_up.weight": up, "fc.alpha": torch.tensor(0.0)}
    save_file(tensors, tmp_path / "zero.safetensors")
    module = network()
    loras = Loras(module, client)
    assert loras.add(tmp_path / "zero.safetensors", "one").applied == 1
    assert effect(module, loras) == 0.0


@pytest.mark.filterwarnings("ignore")  # torch wants its own quantisation to be replaced
def test_a_quantised_layer(client: modelbroker.Broker, tmp_path: Path) -> None:
    quantise: Any = torch.ao.quantization
    quantised = quantise.quantize_dynamic(network(), {torch.nn.Linear})
    assert callable(quantised["fc"].weight)
    loras = Loras(quantised, client)
    assert loras.add(peft_file(tmp_path / "m.safetensors"), "one").applied == 1
    assert effect(quantised, loras, 0.5) == pytest.approx(0.5, rel=1e-3)


WORKER = """
import sys, torch, modelbroker
from modelbroker.lora import Loras
module = torch.nn.ModuleDict({"fc": torch.nn.Linear(16, 8)})
loras = Loras(module)
loras.add(sys.argv[1], "one")
print("added", flush=True)
while True:
    loras.add(sys.argv[1], "two")
    loras.remove("two")
"""


def test_a_worker_killed_in_an_add(
    shared: BrokerProcess, client: modelbroker.Broker, tmp_path: Path
) -> None:
    path = peft_file(tmp_path / "m.safetensors")
    module = network()
    loras = Loras(module, client)
    loras.add(path, "one")
    held = shared.cli("status", "--json").stdout
    leases = json.loads(held)["tiers"]["ram"]["leases"]
    for _ in range(3):
        worker = start_python(WORKER, [str(path)], shared.environment)
        try:
            assert line_of(worker) == "added"
            os.kill(worker.pid, signal.SIGKILL)
        finally:
            worker.kill()
            worker.communicate()
    wait_until(
        lambda: (
            json.loads(shared.cli("status", "--json").stdout)["tiers"]["ram"]["leases"] == leases
        )
    )
    assert effect(module, loras) == pytest.approx(1.0, rel=1e-4)
