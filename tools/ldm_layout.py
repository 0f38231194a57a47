"""Names and shapes of a single file in SDXL's original layout, from those that diffusers has."""

from __future__ import annotations

import re
from typing import TypeAlias

import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"

_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _first_part(name: str, table: dict[str, str]) -> str:
    """The name with its longest first part that stands in the table replaced."""
    for old, new in table.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def unet(tensors: Tensors, layers_per_block: int) -> Tensors:
    up = re.compile(r"up_blocks\.(\d+)\.attentions\.")
    with_attention = {int(found[1]) for name in tensors if (found := up.match(name))}
    return {
        "model.diffusion_model." + _unet_name(name, layers_per_block + 1, with_attention): tensor
        for name, tensor in tensors.items()
    }


def _unet_name(name: str, step: int, with_attention: set[int]) -> str:
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = block * step + (side == "down")
        place = "input_blocks" if side == "down" else "output_blocks"
        if kind == "resnets":
            return f"{place}.{first + layer}.0.{_first_part(rest, _UNET_RESNET)}"
        if kind == "attentions":
            return f"{place}.{first + layer}.1.{rest}"
        if kind == "downsamplers":
            return f"{place}.{first + step - 1}.0.op.{rest.removeprefix('conv.')}"
        return f"{place}.{first + step - 1}.{2 if block in with_attention else 1}.{rest}"
    if found := re.match(r"mid_block\.(\w+?)\.(\d+)\.(.*)", name):
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_first_part(found[3], _UNET_RESNET)}"
    return _first_part(name, _UNET_TOP)


def vae(tensors: Tensors, blocks: int) -> Tensors:
    made = {}
    for name, tensor in tensors.items():
        attention = ".attentions." in name and name.endswith("weight") and tensor.ndim == 2
        found = tensor[:, :, None, None] if attention else tensor  # a convolution of one pixel
        made["first_stage_model." + _vae_name(name, blocks)] = found
    return made


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := re.match(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.*)", name):
        part, side, block, kind, layer, rest = found.groups()
        number = int(block) if side == "down" else blocks - 1 - int(block)
        inner = f"block.{layer}" if kind == "resnets" else f"{side}sample"
        return f"{part}.{side}.{number}.{inner}.{rest}"
    if found := re.match(r"(\w+)\.mid_block\.(\w+?)\.(\d+)\.(.*)", name):
        part, kind, number, rest = found[1], found[2], int(found[3]), found[4]
        if kind == "resnets":
            return f"{part}.mid.block_{number + 1}.{rest}"
        return f"{part}.mid.attn_1.{_first_part(rest, _VAE_ATTENTION)}"
    return name


def clip(tensors: Tensors) -> Tensors:
    """The first text encoder: the names of transformers."""
    return {
        f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in tensors.items()
    }


def open_clip(tensors: Tensors) -> Tensors:
    """The second: OpenCLIP's names, q, k and v in one, the projection transposed."""
    made = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("text_model.")
        if name == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        elif found := re.match(r"encoder\.layers\.(\d+)\.(.*)", name):
            prefix, rest = f"transformer.resblocks.{found[1]}.", found[2]
            if match := re.match(r"self_attn\.q_proj\.(\w+)", rest):
                parts = [tensors[full.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                made[f"{prefix}attn.in_proj_{match[1]}"] = torch.cat(parts)
            elif not re.match(r"self_attn\.[kv]_proj\.", rest):
                made[prefix + _first_part(rest, _OPEN_CLIP_LAYER)] = tensor
        else:
            made[_OPEN_CLIP[name]] = tensor
    return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in made.items()}
