"""Loras on pipelines that PEFT and diffusers work on, too: before, after and together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import modelbroker
from modelbroker.lora import Loras
from support.adapters import Studio, step

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture(scope="module")
def expected(place: Studio) -> dict[str, torch.Tensor]:
    """Plain; with styles 1, 2 and both, as stock diffusers computes them."""
    pipeline = place.pipeline()
    found = {"": step(pipeline.unet)}
    for seed in (1, 2):
        pipeline.load_lora_weights(place.style(seed), adapter_name=f"s{seed}")
    for names in (["s1"], ["s2"], ["s1", "s2"]):
        pipeline.set_adapters(names, [1.0] * len(names))
        found["".join(names)] = step(pipeline.unet)
    pipeline.unload_lora_weights()
    return found


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_ours_then_diffusers(place: Studio, expected: dict[str, torch.Tensor]) -> None:
    pipeline = place.pipeline()
    loras = Loras(pipeline)
    loras.add(place.style(1), "s1")
    pipeline.load_lora_weights(place.style(2), adapter_name="s2")
    same(step(pipeline.unet), expected["s1s2"])
    pipeline.set_adapters("s2", 0.0)
    same(step(pipeline.unet), expected["s1"])
    pipeline.set_adapters("s2", 1.0)
    loras.clear()
    same(step(pipeline.unet), expected["s2"])
    pipeline.delete_adapters("s2")
    same(step(pipeline.unet), expected[""])
    pipeline.unload_lora_weights()
    assert torch.equal(step(pipeline.unet), expected[""])
    assert modelbroker.shared(pipeline).written_bytes == 0


def test_diffusers_then_ours(place: Studio, expected: dict[str, torch.Tensor]) -> None:
    pipeline = place.pipeline()
    pipeline.load_lora_weights(place.style(1), adapter_name="s1")
    loras = Loras(pipeline)
    assert loras.add(place.style(2), "s2").skipped == {}
    same(step(pipeline.unet), expected["s1s2"])
    pipeline.unload_lora_weights()  # our layers are the ones that PEFT had wrapped
    same(step(pipeline.unet), expected["s2"])
    loras.clear()
    assert torch.equal(step(pipeline.unet), expected[""])
    assert modelbroker.shared(pipeline).written_bytes == 0


def test_fusing_writes_private_pages_alone(
    place: Studio, expected: dict[str, torch.Tensor]
) -> None:
    pipeline, other = place.pipeline(), place.pipeline()
    loras = Loras(pipeline)
    pipeline.load_lora_weights(place.style(1), adapter_name="s1")
    pipeline.fuse_lora()
    loras.add(place.style(2), "s2")
    same(step(pipeline.unet), expected["s1s2"])
    assert modelbroker.shared(pipeline).written_bytes > 0
    assert torch.equal(step(other.unet), expected[""])
    loras.clear()
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    same(step(pipeline.unet), expected[""])
    modelbroker.shared(pipeline).restore()
    assert torch.equal(step(pipeline.unet), expected[""])
    assert modelbroker.shared(pipeline).written_bytes == 0


def test_hotswap(place: Studio, expected: dict[str, torch.Tensor]) -> None:
    pipeline = place.pipeline()
    pipeline.enable_lora_hotswap(target_rank=4)
    pipeline.load_lora_weights(place.style(2), adapter_name="mine")
    loras = Loras(pipeline)
    pipeline.load_lora_weights(place.style(1), adapter_name="mine", hotswap=True)
    same(step(pipeline.unet), expected["s1"])
    loras.add(place.style(2), "s2")
    same(step(pipeline.unet), expected["s1s2"])
    loras.clear()
    pipeline.unload_lora_weights()
    assert torch.equal(step(pipeline.unet), expected[""])


def test_saving_is_as_before(place: Studio, tmp_path: Path) -> None:
    """Neither names nor weights are ours."""
    from safetensors.torch import load_file

    pipeline = place.pipeline()
    Loras(pipeline).add(place.style(1), "s1")
    pipeline.unet.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    stock = load_file(place.folder / "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert saved.keys() == stock.keys()
    assert all(torch.equal(saved[name], stock[name]) for name in stock)


# ---- PEFT's folders


def _linear() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8)]
    return torch.nn.Sequential(*layers)


CONFIGURATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "alpha": lambda: {"r": 4, "lora_alpha": 16},
    "rslora": lambda: {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": lambda: {
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {"2": 32},
        "rank_pattern": {"2": 2},
    },
    "DoRA": lambda: {"r": 4, "lora_alpha": 8, "use_dora": True},
    "biases": lambda: {"r": 4, "lora_bias": True},
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # of biases: they may be DeepSpeed's
@pytest.mark.parametrize("which", CONFIGURATIONS)
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_folders_of_peft(which: str, weight: float, tmp_path: Path) -> None:
    import peft

    kind: Any = peft
    stock = kind.get_peft_model(
        _linear(), kind.LoraConfig(target_modules=["0", "2"], **CONFIGURATIONS[which]())
    )
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    stock.save_pretrained(tmp_path)
    for module in stock.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(weight)
    x = torch.randn(3, 16)
    module = _linear()
    added = Loras(module).add(tmp_path, "mine", weight)
    assert (added.applied, added.skipped) == (2, {})
    with torch.no_grad():
        same(module(x), stock(x))


# ---- families whose names diffusers translates


def _flux() -> Any:
    import diffusers

    kinds: Any = diffusers
    torch.manual_seed(2)
    transformer = kinds.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return kinds.FluxPipeline(
        scheduler=kinds.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def _flux_step(transformer: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found: torch.Tensor = transformer(
            hidden_states=torch.randn(1, 4, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=generator),
            pooled_projections=torch.randn(1, 32, generator=generator),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]
    return found


def test_flux_with_fused_layers(tmp_path: Path) -> None:
    """Kohya's names, one layer for q, k and v: diffusers cuts it in three."""
    generator = torch.Generator().manual_seed(4)
    shapes = {
        "double_blocks_0_img_attn_qkv": (32, 96),
        "double_blocks_0_img_attn_proj": (32, 32),
        "double_blocks_0_txt_attn_qkv": (32, 96),
        "double_blocks_0_txt_attn_proj": (32, 32),
        "single_blocks_0_linear2": (32 + 128, 32),
    }
    tensors = {}
    for name, (inner, out) in shapes.items():
        key = f"lora_unet_{name}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, inner, generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    path = tmp_path / "flux.safetensors"
    save_file(tensors, path)
    stock, pipeline = _flux(), _flux()
    stock.load_lora_weights(path, adapter_name="mine")
    stock.set_adapters("mine", 0.7)
    plain, loras = _flux_step(pipeline.transformer), Loras(pipeline)
    added = loras.add(path, "mine", 0.7)
    assert added.skipped == {}
    assert added.private_bytes > 0
    assert (_flux_step(pipeline.transformer) - plain).abs().max() > 1e-3
    same(_flux_step(pipeline.transformer), _flux_step(stock.transformer))
    loras.clear()
    assert torch.equal(_flux_step(pipeline.transformer), plain)
