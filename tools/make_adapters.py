"""Adapters of random numbers for a module's layers, named as trainers name them.

make_adapters.py PIPELINE FILE [FILE ...] [--rank 16] [--names kohya] [--seed 1] writes one for the
UNet (and, with --text-encoders, theirs) of a folder that DiffusionPipeline.save_pretrained wrote;
each file with numbers of its own. With --dora it is a DoRA: kohya's names have a length for each
column, the others, as PEFT, for each row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NAMES = ("kohya", "peft", "diffusers")
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_MATRICES = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}


def layers(component: torch.nn.Module, convolutions: bool = False) -> Iterator[tuple[str, Any]]:
    """The linear layers of its transformer blocks, with their paths; or all, and convolutions."""
    for path, module in component.named_modules():
        in_block = ".transformer_blocks." in path or ".proj_" in path or ".layers." in path
        kinds = (torch.nn.Linear, torch.nn.Conv2d) if convolutions else (torch.nn.Linear,)
        if isinstance(module, kinds) and (in_block or convolutions):
            yield path, module


def adapter(
    components: Mapping[str, torch.nn.Module],
    rank: int = 4,
    names: str = "kohya",
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    convolutions: bool = False,
    size: float = 0.5,
    dora: bool = False,
) -> dict[str, torch.Tensor]:
    """Tensors by name. `size`: how much it changes what a layer gives, roughly, to 1."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def random(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    for component, module in components.items():
        for path, layer in layers(module, convolutions):
            out, inner, *kernel = layer.weight.shape
            down = random(rank, inner, *kernel, scale=inner**-0.5)
            up = random(out, rank, *(1 for _ in kernel), scale=size * rank**-0.5)
            first, second = _MATRICES["kohya" if names == "kohya" else "peft"]
            key = _key(names, component, path)
            made[f"{key}.{first}.weight"], made[f"{key}.{second}.weight"] = down, up
            if names == "kohya":
                made[f"{key}.alpha"] = torch.tensor(float(rank), dtype=dtype)
            if dora:
                name, shape, length = _lengths(names, out, inner, [1 for _ in kernel])
                lengths = 1 + 0.2 * torch.rand(shape, generator=generator)
                made[f"{key}.{name}"] = (lengths * length).to(dtype)
    return made


def _lengths(
    names: str, out: int, inner: int, ones: list[int]
) -> tuple[str, tuple[int, ...], float]:
    """Of DoRA: the name, the shape, and how long rows or columns of a new linear layer are."""
    if names == "kohya":
        return "dora_scale", (1, inner, *ones), (out / inner / 3) ** 0.5
    return "lora_magnitude_vector", (1, out, *ones) if ones else (out,), 3**-0.5


def _key(names: str, component: str, path: str) -> str:
    if names == "kohya":
        return f"{_KOHYA[component]}_{path.replace('.', '_')}"
    return f"base_model.model.{path}" if names == "peft" else f"{component}.{path}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("files", type=Path, nargs="+", metavar="file")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--names", choices=NAMES, default="kohya")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text-encoders", action="store_true", help="for them, too")
    parser.add_argument("--dora", action="store_true", help="with learned lengths")
    arguments = parser.parse_args()
    import diffusers  # takes seconds

    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(arguments.pipeline)
    wanted = tuple(_KOHYA) if arguments.text_encoders else ("unet",)
    components = {name: pipeline.components[name] for name in wanted}
    for seed, file in enumerate(arguments.files, arguments.seed):
        made = adapter(components, arguments.rank, arguments.names, seed=seed, dora=arguments.dora)
        save_file(made, file)
        print(f"{file}: {len(made)} tensors, {sum(t.nbytes for t in made.values())} bytes")


if __name__ == "__main__":
    main()
