"""UNets of SDXL's shape for the benchmark of adapters: full size, and small. Imports torch."""

from __future__ import annotations

from typing import Any

import torch

_FULL_WIDTH = 320
_SMALL_WIDTH = 64
_FULL_TEXT, _SMALL_TEXT = 2048, 128  # width of what the text encoders give
_FULL_VECTOR, _SMALL_VECTOR = 2816, 320
_SIDE = 8  # of what the small one denoises: a step takes tens of milliseconds


def _unet(full: bool) -> Any:
    import diffusers  # takes seconds

    width = _FULL_WIDTH if full else _SMALL_WIDTH
    return diffusers.UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=2,
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10) if full else (1, 1, 1),
        attention_head_dim=(width // 64, width // 32, width // 16),
        cross_attention_dim=_FULL_TEXT if full else _SMALL_TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 if full else 32,
        projection_class_embeddings_input_dim=_FULL_VECTOR if full else _SMALL_VECTOR,
        use_linear_projection=True,
    ).eval()


def shapes(full: bool) -> Any:
    """Without weights."""
    with torch.device("meta"):
        return _unet(full)


def empty(full: bool) -> Any:
    """In float16, its weights whatever the memory holds: an adapter is attached as fast to any."""
    return shapes(full).to(torch.float16).to_empty(device="cpu")


def small() -> Any:
    """In float32, with the same random weights in every process."""
    torch.manual_seed(7)
    return _unet(False)


def fill(unet: Any) -> None:
    """Random weights, of the scale that new layers have: what reads them reads memory."""
    generator = torch.Generator().manual_seed(7)
    largest = max(weight.numel() for weight in unet.parameters())
    random = (torch.rand(largest, generator=generator) * 2 - 1).to(torch.float16)
    with torch.no_grad():
        for weight in unet.parameters():
            inner = max(1, weight.numel() // weight.shape[0])
            part = random[: weight.numel()].view_as(weight)
            torch.mul(part, inner**-0.5, out=weight.data)


def step(unet: Any) -> torch.Tensor:
    """One step of the small one, always with the same inputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        output: torch.Tensor = unet(
            sample=torch.randn(1, 4, _SIDE, _SIDE, generator=generator),
            timestep=torch.tensor(10),
            encoder_hidden_states=torch.randn(1, 77, _SMALL_TEXT, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, _SMALL_VECTOR - 6 * 32, generator=generator),
                "time_ids": torch.ones(1, 6),
            },
            return_dict=False,
        )[0]
    return output
