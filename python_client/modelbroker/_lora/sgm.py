"""The original layout (LDM, sgm) of Stable Diffusion's UNets: its names in diffusers' words.

All names here have `_` where a path has a dot, as trainers write them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator

_TOP = {
    "time_embed_0": ("time_embedding.linear_1",),
    "time_embed_2": ("time_embedding.linear_2",),
    "label_emb_0_0": ("add_embedding.linear_1", "class_embedding.linear_1"),
    "label_emb_0_2": ("add_embedding.linear_2", "class_embedding.linear_2"),
    "input_blocks_0_0": ("conv_in",),
    "out_0": ("conv_norm_out",),
    "out_2": ("conv_out",),
}
_INNER = {
    "resnets": {
        "in_layers_0": "norm1",
        "in_layers_2": "conv1",
        "emb_layers_1": "time_emb_proj",
        "out_layers_0": "norm2",
        "out_layers_3": "conv2",
        "skip_connection": "conv_shortcut",
    },
    "downsamplers": {"op": "conv"},
}
_BLOCK = re.compile(r"((?:input|output)_blocks_[0-9]{1,3}_[0-9]|middle_block_[0-9]{1,3})(?:_(.+))?")


class Blocks:
    """The blocks of one UNet, numbered as the original layout numbers them."""

    def __init__(self, paths: Container[str]) -> None:
        """`paths`: of all modules of the UNet, with dots; they tell the layers of each block."""
        self._blocks = dict(_blocks(paths))
        self._top = {
            name: next((path for path in found if path in paths), found[0]).replace(".", "_")
            for name, found in _TOP.items()
        }

    def in_diffusers(self, name: str) -> str:
        """The module's name in diffusers, or "" where the name is not one of this layout."""
        if name in self._top:
            return self._top[name]
        parsed = _BLOCK.fullmatch(name)
        block = self._blocks.get(parsed[1]) if parsed else None
        if parsed is None or block is None:
            return ""
        path, kind = block
        inner = parsed[2]
        return f"{path}_{_INNER.get(kind, {}).get(inner, inner)}" if inner else path


def _blocks(paths: Container[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each block's name: its name in diffusers and its kind."""
    for number, path, kind in (*_down(paths), *_middle(paths), *_up(paths)):
        yield number, (path.replace(".", "_"), kind)


def _down(paths: Container[str]) -> Iterator[tuple[str, str, str]]:
    number = 1  # 0 is conv_in
    for block in _counted(paths, "down_blocks"):
        for layer, resnet in enumerate(_counted(paths, f"{block}.resnets")):
            yield f"input_blocks_{number}_0", resnet, "resnets"
            yield f"input_blocks_{number}_1", f"{block}.attentions.{layer}", "attentions"
            number += 1
        yield f"input_blocks_{number}_0", f"{block}.downsamplers.0", "downsamplers"
        number += 1


def _middle(paths: Container[str]) -> Iterator[tuple[str, str, str]]:
    for layer, resnet in enumerate(_counted(paths, "mid_block.resnets")):
        yield f"middle_block_{2 * layer}", resnet, "resnets"
        yield f"middle_block_{2 * layer + 1}", f"mid_block.attentions.{layer}", "attentions"


def _up(paths: Container[str]) -> Iterator[tuple[str, str, str]]:
    """The upsampler is the last layer's part after its resnet and, where it has one, attention."""
    number = 0
    for block in _counted(paths, "up_blocks"):
        attends = f"{block}.attentions" in paths
        for layer, resnet in enumerate(_counted(paths, f"{block}.resnets")):
            yield f"output_blocks_{number}_0", resnet, "resnets"
            if attends:
                yield f"output_blocks_{number}_1", f"{block}.attentions.{layer}", "attentions"
            number += 1
        last = f"output_blocks_{number - 1}_{2 if attends else 1}"
        yield last, f"{block}.upsamplers.0", "upsamplers"


def _counted(paths: Container[str], parent: str) -> Iterator[str]:
    number = 0
    while (path := f"{parent}.{number}") in paths:
        yield path
        number += 1
