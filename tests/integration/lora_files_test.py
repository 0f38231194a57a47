"""Files of every kind in every form of names, through Loras, equal layers with changed weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import modelbroker
from modelbroker.lora import Loras
from support import lora_cases as cases
from support import lora_formulae as formulae
from support.broker import BrokerProcess
from support.lora_cases import ALPHA, Base, Case

_OWN, _SGM = "down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"
_KOHYA = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "up_bias": "lora_up.bias",
}
_PEFT = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "mid": "lora_mid.weight",
    "up_bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector",
}
_EMBEDDING = {"embedding_down": "lora_embedding_A", "embedding_up": "lora_embedding_B"}
FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "kohya": (f"lora_unet_{_OWN.replace('.', '_')}", _KOHYA),
    "kohya sgm": (f"lora_unet_{_SGM.replace('.', '_')}", _KOHYA),
    "LyCORIS": (f"lycoris_{_OWN.replace('.', '_')}", _KOHYA),
    "sgm": (f"diffusion_model.{_SGM}", _KOHYA),
    "diffusers": (f"unet.{_OWN}", {"down": "lora.down.weight", "up": "lora.up.weight"}),
    "PEFT": (f"base_model.model.{_OWN}", _PEFT),
}


def in_a_tree(layer: torch.nn.Module) -> torch.nn.Module:
    """In the place of an SDXL UNet's layer, with the resnets by which its blocks are counted."""
    root = torch.nn.Module()
    for path in (
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
        "down_blocks.1.resnets.0",
        _OWN.removesuffix(".proj_in"),
    ):
        module = root
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, torch.nn.Module())
            module = module.get_submodule(name)
    module.add_module("proj_in", layer)
    return root


def each() -> list[Any]:
    found = []
    for case in cases.CASES:
        base = next((base for base in case.bases.values() if not base.library), None)
        roles = set() if base is None else set(case.make(cases.made(base)[1]))
        for form, (_, names) in FORMS.items():
            if base is not None and case.peft == (form == "PEFT" and "dora_scale" in roles):
                if form == "diffusers" and roles & {"mid", "up_bias"}:
                    continue  # its old names have no such thing
                found.append(pytest.param(case, base, form, names, id=f"{case.id}-{form}"))
    return found


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Any:
    with modelbroker.connect(shared.endpoint) as connected:
        yield connected


@pytest.mark.parametrize(("case", "base", "form", "names"), each())
def test_files_equal_changed_weights(
    client: modelbroker.Broker,
    case: Case,
    base: Base,
    form: str,
    names: dict[str, str],
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    module, layer, x = cases.made(base)
    group = case.make(layer)
    key = FORMS[form][0]
    tensors = {
        f"{key}.{names.get(role) or _EMBEDDING.get(role) or role}": tensor.contiguous()
        for role, tensor in group.items()
    }
    if not {"diff", "diff_b", "w_norm", "b_norm"} >= group.keys():
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA, dtype=torch.float64)
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path)
    weight: Any = module.weight
    plain, before = module(x), weight.clone()
    loras = Loras(in_a_tree(module), client)
    added = loras.add(path, "one")
    assert (dict(added.kinds), added.skipped) == ({case.kind: 1}, {})
    for strength in cases.STRENGTHS:
        loras.weights = {"one": strength}
        wanted = formulae.with_weights(
            module_without_ours(module),
            *formulae.changed_weights(
                module, layer, group, alpha=ALPHA, strength=strength, peft=case.peft
            ),
            x,
        )
        assert formulae.relative(module(x), wanted) <= (1e-12 if base.exact else 1e-6)
    loras.clear()
    assert torch.equal(module(x), plain)
    assert torch.equal(weight, before)


def module_without_ours(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares its parameters."""
    other: Callable[..., Any] = type(module).__new__
    copy: torch.nn.Module = other(type(module))
    copy.__dict__.update({k: v for k, v in module.__dict__.items() if k != "forward"})
    return copy


def test_doras_lengths_are_kept_until_the_weight_changes(
    client: modelbroker.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelbroker._lora import dora

    calls: list[int] = []
    real = dora.lengths_of

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(dora, "lengths_of", counted)
    module, layer, x = cases.made(cases.LINEAR)
    group = cases.dora(cases.lora, "rows")(layer)
    path = tmp_path / "adapter.safetensors"
    save_file({f"lora_unet_fc.{_KOHYA.get(role) or role}": t for role, t in group.items()}, path)
    loras = Loras(torch.nn.ModuleDict({"fc": module}), client)
    for _ in range(2):
        loras.add(path, "one")
        loras.remove("one")
    assert len(calls) == 1
    weight: Any = module.weight
    weight.data.mul_(2)  # as PEFT fuses: no version of torch's changes
    loras.add(path, "one")
    assert len(calls) == 2
    changed = formulae.changed_weights(module, layer, group, alpha=formulae.RANK, strength=1.0)
    wanted = formulae.with_weights(module_without_ours(module), *changed, x)
    assert formulae.relative(module(x), wanted) <= 1e-12
