"""Compiles a sentence-embedding model ahead of time to a package without weights.

    compile_model.py MODEL_FOLDER PACKAGE_FOLDER

MODEL_FOLDER is as transformers saves it. Only its config.json is read: the weights are given when
the package is used, by the worker here or by any program that calls load_constants. Takes half a
minute and needs g++. Inputs: input_ids, attention_mask (int64, [sentences, tokens]); output: unit
vectors. The package's metadata says what constants it wants and what inputs it takes, for torch
itself looks at neither.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

_SENTENCES = 1024  # at most, in one run
# How safetensors calls them.
_WORDS = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
}


def embedder(folder: Path) -> Any:
    """The network `m`, its mean over the words that count, scaled to length 1. Weights: random."""
    import torch
    from transformers import AutoConfig, AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.m = network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.m(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask[..., None]
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))

    config = AutoConfig.from_pretrained(folder)
    return Embedder(AutoModel.from_config(config)).eval()


def constants_of(network: Any) -> dict[str, dict[str, object]]:
    """Type and shape of each; "from" says if the weights' file has it, or how to make it."""
    import torch

    def source(name: str, value: torch.Tensor) -> str:
        if name in network.state_dict():
            return "file"
        if not value.any():
            return "zeros"
        if torch.equal(value.flatten(), torch.arange(value.numel())):
            return "count"  # 0, 1, 2, ...
        raise SystemExit(f"error: {name} is in no file, and is neither zeros nor a count")

    return {
        name: {
            "dtype": _WORDS[str(value.dtype)],
            "shape": list(value.shape),
            "from": source(name, value),
        }
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }


def compile_to(folder: Path, package: Path, work: Path) -> None:
    """Makes the package in `work`, then moves it."""
    import torch

    network = embedder(folder)
    config = network.m.config
    longest: int = config.max_position_embeddings
    limits = {"sentences": _SENTENCES, "tokens": longest, "vocabulary": config.vocab_size}
    about = {"constants": json.dumps(constants_of(network)), "limits": json.dumps(limits)}
    sentences = torch.export.Dim("sentences", max=_SENTENCES)
    tokens = torch.export.Dim("tokens", max=longest)
    example = torch.zeros((2, 16), dtype=torch.int64)
    with torch.no_grad():
        program = torch.export.export(
            network,
            (example, torch.ones_like(example)),
            dynamic_shapes=({0: sentences, 1: tokens}, {0: sentences, 1: tokens}),
        )
        zipped = work / "model.pt2"
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(zipped),
            inductor_configs={
                "aot_inductor.package_constants_in_so": False,
                "aot_inductor.metadata": about,
            },
        )
    # Unpacked: else each worker unpacks it anew, and one that is killed leaves that behind.
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(work / "package")
    (work / "package").rename(package)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the model: config.json lies in it")
    parser.add_argument("package", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    if not (arguments.folder / "config.json").is_file():
        parser.error(f"{arguments.folder} has no config.json: name a model's folder")
    if arguments.package.exists():
        parser.error(f"{arguments.package} is there already: remove it, or name another")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        parser.error("there is no C++ compiler: install g++, or set CXX to one")
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about torch
    arguments.package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=arguments.package.parent) as work:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = work + "/cache"
        compile_to(arguments.folder, arguments.package, Path(work))
    size = sum(path.stat().st_size for path in arguments.package.rglob("*"))
    print(f"{arguments.package}: {size / 1e6:.1f} MB, no weights in it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
