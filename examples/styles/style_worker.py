"""Paints with a Stable Diffusion XL pipeline, in styles that are switched also while it paints.

It reads commands from its standard input, a line each, quoted as for a shell:

    add NAME FILE         a LoRA file as a style, with weight 0
    paint FILE            begin a picture; the answer comes when FILE is written
    style NAME [WEIGHT]   from the next call of the UNet on, also for the picture that is begun
    style                 no style
    check                 what is shared, what is this process's own, and the sha256 of the weights
    compare [ROUNDS]      how long diffusers takes for the same: see beside_diffusers.py

and answers each with a line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from beside_diffusers import compare
from diffusers import StableDiffusionXLPipeline

import modelbroker
from modelbroker.lora import Added, Loras

_EXAMPLES = """examples:
  modelbroker serve &
  style_worker.py PIPELINE --style ink=ink.safetensors --style oil=oil.safetensors
  echo paint plain.png | style_worker.py PIPELINE
"""


def answer(**words: object) -> None:
    """One line, whole: two threads answer."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


class StyleWorker:
    """One pipeline over shared weights, its styles, and a thread that paints."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.prompt, self.steps, self.seed = arguments.prompt, arguments.steps, arguments.seed
        with modelbroker.sharing():
            self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(arguments.pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.loras = Loras(self.pipeline)
        self.files: dict[str, str] = {}
        self.added: dict[str, Added] = {}
        self.step = 0  # of the picture that is being painted; 0 between pictures
        self.painter = ThreadPoolExecutor(max_workers=1)

    def obey(self, line: str) -> None:
        """Does one command; what is wrong with it is the answer."""
        commands: dict[str, Callable[..., None]] = {
            "add": self.add,
            "paint": self.paint,
            "style": self.style,
            "check": self.check,
            "compare": self.compare,
        }
        try:
            command, *words = shlex.split(line)
            if command not in commands:
                raise ValueError(f"{command!r} is not a command: give {', '.join(commands)}")
            commands[command](*words)
        except (TypeError, ValueError, modelbroker.ModelBrokerError) as error:
            answer(error=str(error))

    def add(self, name: str, file: str) -> None:
        added = self.loras.add(file, name, weight=0)
        self.files[name], self.added[name] = file, added
        answer(
            added=name,
            layers=added.applied,
            ms=added.seconds * 1000,
            private_bytes=added.private_bytes,
        )

    def style(self, name: str = "", weight: str = "1") -> None:
        began = time.perf_counter()
        self.loras.weights = {name: float(weight)} if name else {}
        answer(style=name, ms=(time.perf_counter() - began) * 1000, step=self.step)

    def paint(self, file: str) -> None:
        self.painter.submit(self._paint, file)

    def _paint(self, file: str) -> None:
        def stepped(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self.step = step + 1
            return tensors

        try:
            images = self.pipeline(
                self.prompt,
                num_inference_steps=self.steps,
                generator=torch.Generator().manual_seed(self.seed),
                callback_on_step_end=stepped,
                output_type="np",
            ).images
            self.pipeline.image_processor.numpy_to_pil(images)[0].save(file)
        except Exception as error:  # whoever asked waits for an answer
            answer(error=f"{file}: {error}")
        else:
            answer(painted=file, sha256=hashlib.sha256(images.tobytes()).hexdigest())
        finally:
            self.step = 0

    def check(self) -> None:
        found = modelbroker.shared(self.pipeline)
        added = self.added.values()
        answer(
            sha256=weights_hash(self.pipeline),
            shared_bytes=found.shared_bytes + sum(one.shared_bytes for one in added),
            private_bytes=found.copied_bytes
            + found.written_bytes
            + sum(one.private_bytes for one in added),
            written_bytes=found.written_bytes,
        )

    def compare(self, rounds: str = "1") -> None:
        answer(**compare(self.pipeline, list(self.files.values()), int(rounds)))


def weights_hash(pipeline: Any) -> str:
    """Of all weights of the pipeline."""
    found = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                found.update(f"{name}.{key}".encode())
                found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def named_file(text: str) -> tuple[str, str]:
    """NAME=FILE."""
    name, is_given, file = text.partition("=")
    if not (name and is_given and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", help="a folder with a Stable Diffusion XL pipeline")
    parser.add_argument(
        "--style",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help="a LoRA file of the pipeline's family; may be given many times",
    )
    parser.add_argument("--prompt", default="a lighthouse above the sea")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several workers share the cores
    worker = StyleWorker(arguments)
    for name, file in arguments.style:
        worker.obey(shlex.join(["add", name, file]))
    answer(ready=True)
    for line in sys.stdin:
        if line.strip():
            worker.obey(line)
    worker.painter.shutdown()


if __name__ == "__main__":
    main()
