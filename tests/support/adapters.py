"""A small SDXL pipeline over shared weights, and adapters for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import make_adapters
import modelbroker
import small_models
from support.broker import BrokerProcess


class Studio:
    """The pipeline's folder, its broker, and files of adapters that are made once."""

    def __init__(self, folder: Path, broker: BrokerProcess) -> None:
        self.folder, self.broker = folder, broker
        small_models.sdxl(folder / "pipeline")
        self._unet: Any = None

    def pipeline(self) -> Any:
        """A new one over the shared weights."""
        import diffusers

        kind: Any = diffusers.StableDiffusionXLPipeline
        with modelbroker.sharing(endpoint=self.broker.endpoint):
            pipeline = kind.from_pretrained(self.folder / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def style(self, seed: int = 1, names: str = "kohya", **options: Any) -> Path:
        """An adapter for the UNet."""
        words = "-".join(f"{key}-{value}" for key, value in options.items())
        path = self.folder / f"{names}-{seed}{words}.safetensors"
        if not path.exists():
            made = make_adapters.adapter(
                {"unet": self._shapes()}, names=names, seed=seed, **options
            )
            save_file(made, path)
        return path

    def _shapes(self) -> Any:
        if self._unet is None:
            import diffusers

            kind: Any = diffusers.UNet2DConditionModel
            with torch.device("meta"):
                self._unet = kind.from_config(kind.load_config(self.folder / "pipeline" / "unet"))
        return self._unet


@contextmanager
def studio(folder: Path) -> Iterator[Studio]:
    """With a broker of its own, which connect() finds."""
    broker = BrokerProcess("--ram-budget", "1GiB").start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELBROKER_ENDPOINT", broker.endpoint)
        patch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
        try:
            yield Studio(folder, broker)
        finally:
            broker.stop()


def inputs(unet: Any, seed: int = 0) -> dict[str, Any]:
    """Of one step of the small UNet."""
    generator = torch.Generator().manual_seed(seed)
    width = unet.config.cross_attention_dim
    return {
        "sample": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, 7, width, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, small_models.WIDTH_2, generator=generator),
            "time_ids": torch.ones(1, 6),
        },
    }


def step(unet: Any, seed: int = 0) -> torch.Tensor:
    """What the UNet gives for inputs of this seed."""
    with torch.no_grad():
        output: torch.Tensor = unet(**inputs(unet, seed), return_dict=False)[0]
    return output
