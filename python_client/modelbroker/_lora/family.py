"""The family of base models, told from the names and shapes of what an adapter or a model has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = "tuple[int, ...]"
Shapes: TypeAlias = "Mapping[str, Mapping[str, Shape]]"
Roles: TypeAlias = "Mapping[str, Shape]"

_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}  # what attn2 reads

_UNET = re.compile(
    r"(?:(down|up)_blocks_([0-9]{1,2})_attentions_[0-9]{1,2}|(input|output)_blocks_([0-9]{1,2})_1"
    r"|mid_block_attentions_0|middle_block_1)_(?:transformer_blocks_([0-9]{1,2})_(.+)|(proj_in)$)"
)
# The numbers of blocks, in both layouts, where only one kind of UNet attends.
_EARLY = {("up", 0), ("output", 0), ("output", 1), ("output", 2)}  # SDXL: deep blocks attend
_LATE = {("down", 0), ("input", 1), ("input", 2), ("up", 3)}  # SD 1 and 2: all but the deepest
_LATE |= {("output", 9), ("output", 10), ("output", 11)}
_IMAGE_MODELS = ("unet", "transformer", "")
_LONGEST_NAME = 400  # that is examined: a model's names have up to 150 letters
_REFINER_WIDTHS = {768, 1536}
_SDXL_WIDTHS = {640, 1280}

_DIT = re.compile(
    r"(?:^|_)(single_transformer_blocks|transformer_blocks|joint_blocks|double_blocks"
    r"|single_blocks|blocks|layers)_([0-9]{1,3})_(.+)"
)
_WAN = re.compile(r"(?:self|cross)_attn_[qkvo]|ffn_[02]|attn[12]_to_(?:[qkv]|out_0)")
_TEXT = re.compile(r"(lora_te[123]?_|text_encoder(?:_[23])?_).*(?:self_attn_|SelfAttention_)")


def of_adapter(shapes: Shapes) -> str:
    """The family by module key, role and shape; "" where these do not tell it."""
    flat = [(_flat(key), roles) for key, roles in shapes.items() if len(key) <= _LONGEST_NAME]
    unet = [(found, roles) for key, roles in flat if (found := _UNET.search(key))]
    if unet:
        return _of_unet(unet)
    return _of_transformer(flat) or _of_text(flat)


def _flat(key: str) -> str:
    """As trainers write it, without the component's name, which may read as a block's."""
    key = key.removeprefix("base_model.model.").removeprefix("transformer.")
    return key.removeprefix("lora_transformer_").replace(".", "_")


def of_components(components: Mapping[str, torch.nn.Module]) -> str:
    """The family of the model that has these, by the same rules; "" where they do not tell it."""
    from .tree import Tree  # which imports torch

    for name in _IMAGE_MODELS:
        if name in components:
            return of_modules(Tree(components[name]).modules)
    return ""


def of_trees(trees: Mapping[str, Mapping[str, torch.nn.Module]]) -> str:
    """As `of_components`, from the modules that a Finder has found already."""
    return next((of_modules(trees[name]) for name in _IMAGE_MODELS if name in trees), "")


def of_modules(modules: Mapping[str, torch.nn.Module]) -> str:
    """Of one component, whose layers are read as an adapter with a difference for each."""
    return of_adapter(dict(_as_adapter(modules)))


def _as_adapter(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, Roles]]:
    for path, module in modules.items():
        values = module.__dict__  # asking a module for what it lacks is slow
        if values.get("in_features") and values.get("out_features"):  # the weight may be packed
            yield path, {"diff": (values["out_features"], values["in_features"])}
        elif "in_channels" in values and (weight := module._parameters.get("weight")) is not None:
            yield path, {"diff": tuple(weight.shape)}


def _of_unet(found: list[tuple[re.Match[str], Roles]]) -> str:
    contexts = (
        _CONTEXT.get(_inputs(roles), "")
        for place, roles in found
        if place[6] in ("attn2_to_k", "attn2_to_v")
    )
    return _most(contexts) or _by_structure(found)


def _by_structure(found: list[tuple[re.Match[str], Roles]]) -> str:
    """For what has nothing of the cross attention's keys and values."""
    blocks = {_block_of(place) for place, _ in found}
    deep = any(int(place[5] or 0) > 0 for place, _ in found)
    if deep or blocks & _EARLY:
        widths = {_inputs(roles) for _, roles in found}
        refiner = widths & _REFINER_WIDTHS and not widths & _SDXL_WIDTHS
        return "sdxl-refiner" if refiner else "sdxl"
    if not blocks & _LATE:
        return ""
    projections = (_ranks(roles) for place, roles in found if place[7])
    return _most({4: "sd1", 2: "sd2"}.get(ranks, "") for ranks in projections)


def _block_of(place: re.Match[str]) -> tuple[str, int]:
    """Its side and its number, as `_EARLY` and `_LATE` have them."""
    return place[1] or place[3] or "middle", int(place[2] or place[4] or 0)


def _of_transformer(flat: list[tuple[str, Roles]]) -> str:
    """Diffusion transformers, in diffusers' names and in those of their makers."""
    votes: Counter[str] = Counter()
    last: Counter[str] = Counter()
    found = [(place, roles) for key, roles in flat if (place := _DIT.search(key))]
    for place, _ in found:
        last[place[1]] = max(last[place[1]], int(place[2]))
    for place, roles in found:
        votes[_of_block(place[1], place[3], roles, last)] += 1
    del votes[""]
    return _most(votes.elements())


def _of_block(kind: str, part: str, roles: Roles, last: Counter[str]) -> str:
    """One module's vote; `last`: the highest number of each kind of block in the file."""
    width = _inputs(roles)
    if kind == "joint_blocks":
        return "sd3"
    if kind in ("double_blocks", "single_blocks"):
        return _of_flux_like(part, width, roles, (last["double_blocks"], last["single_blocks"]))
    if kind == "single_transformer_blocks":
        if part.startswith("attn_to_qkv_mlp_proj"):
            return "flux2"
        if width != 3072 or not part.startswith(("attn_to_", "proj_mlp", "norm_linear")):
            return ""
        few = last["transformer_blocks"] <= 18 and last[kind] <= 37
        return "flux" if few else "hunyuan-video"
    if kind == "transformer_blocks":
        if part.startswith(("img_mod", "img_mlp", "txt_mod", "txt_mlp")):
            return "qwen-image"
        if part.startswith("attn_add_") and width in (1536, 2432):
            return "sd3"
    if kind == "blocks" and width in (1536, 3072, 5120) and _WAN.fullmatch(part):
        return "wan"
    if kind == "layers" and part.startswith(("attention_to_", "attention_qkv", "feed_forward_")):
        return {3840: "z-image", 2304: "lumina2"}.get(width, "")
    return ""


def _of_flux_like(part: str, width: int, roles: Roles, last: tuple[int, int]) -> str:
    """FLUX.1 (19 double and 38 single blocks), FLUX.2 and HunyuanVideo (20 and 40)."""
    if width in (4096, 6144):
        return "flux2"
    if width != 3072:
        return ""
    if part.startswith(("img_mlp_fc", "txt_mlp_fc", "img_mod_linear")) or last[0] == 19:
        return "hunyuan-video"
    if last[1] > 37:
        return "hunyuan-video"
    outputs = _outputs(roles)
    if part == "linear1":
        return {21504: "flux", 27648: "flux2"}.get(outputs, "")
    if part.startswith(("img_mod_lin", "txt_mod_lin", "modulation_lin")):
        return "flux"
    return "flux" if last[0] > 4 or last[1] > 19 else ""


def _of_text(flat: list[tuple[str, Roles]]) -> str:
    """SDXL has two CLIP encoders, SD 2 has one that is as wide as no other's."""
    widths: dict[str, set[int]] = {}
    for key, roles in flat:
        if found := _TEXT.match(key):
            widths.setdefault(found[1].replace("lora_te", "text_encoder"), set()).add(
                _inputs(roles)
            )
    first = widths.get("text_encoder_", set()) | widths.get("text_encoder1_", set())
    second = widths.get("text_encoder_2_", set()) | widths.get("text_encoder2_", set())
    third = widths.get("text_encoder_3_", set()) | widths.get("text_encoder3_", set())
    if first == {768} and second == {1280} and not third:
        return "sdxl"
    return "sd2" if first == {1024} and not second and not third else ""


def _most(names: Iterable[str]) -> str:
    counted = Counter(name for name in names if name).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return ""
    return counted[0][0]


def _inputs(roles: Roles) -> int:
    """How many the layer reads, 0 where the shapes do not say it."""
    for role in ("down", "diff", "hada_w1_b"):
        if role in roles:
            return _at(roles[role], 1)
    return _of_factors(roles, "b", 1)


def _outputs(roles: Roles) -> int:
    for role in ("up", "diff", "hada_w1_a"):
        if role in roles:
            return _at(roles[role], 0)
    return _of_factors(roles, "a", 0)


def _of_factors(roles: Roles, half: str, axis: int) -> int:
    """LoKr: the product of both factors', each whole or itself a product."""
    product = 1
    for factor in ("lokr_w1", "lokr_w2"):
        product *= _at(roles.get(factor) or roles.get(f"{factor}_{half}") or (), axis)
    return product


def _at(shape: Shape, axis: int) -> int:
    return shape[axis] if len(shape) > axis else 0


def _ranks(roles: Roles) -> int:
    """Of the layer's weight; LyCORIS flattens convolutions of one pixel, LoRA does not."""
    return len(roles.get("down") or roles.get("diff") or ())
