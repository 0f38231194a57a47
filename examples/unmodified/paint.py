"""Paints a picture with a diffusers pipeline. An ordinary program: it knows no broker."""

from __future__ import annotations

import argparse

import torch
from diffusers import DiffusionPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", help="a folder with a pipeline, as save_pretrained writes it")
    parser.add_argument("picture", help="the PNG file to write")
    parser.add_argument("prompt", nargs="?", default="a red cube on a blue table")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pipeline = DiffusionPipeline.from_pretrained(arguments.pipeline)
    generator = torch.Generator().manual_seed(arguments.seed)
    print("painting", flush=True)
    painted = pipeline(arguments.prompt, num_inference_steps=arguments.steps, generator=generator)
    painted.images[0].save(arguments.picture)
    print("painted", arguments.picture)


if __name__ == "__main__":
    main()
