"""A program that applies adapters to a UNet of diffusers; adapter_program.py ours|peft.

"ours" by modelbroker.lora.Loras, "peft" as diffusers does it, without importing modelbroker. Asked
by JSON lines [what, arguments...] on its standard input, it answers by JSON lines. Imports are in
no figure. Adapters are files; they are called by their names from then on.

unet KIND                   a new one: "full" or "shapes" (small) in float16 with weights that are
                            whatever memory holds, "filled" (full) or "filled-small" with random
                            ones, "small" in float32
make FILE RANK NAMES SEED DORA   writes an adapter for the present one
add FILES NAMES             attaches and applies them: seconds
replace FILE NAME           another file in its place: seconds
weigh WEIGHTS TIMES         by name; the least seconds and the median of some times, in turns with
                            other weights
remove NAMES                seconds
memory                      bytes of tensors that this process alone has, and its anonymous memory
step TIMES                  the least seconds of some steps, and a hash of what came out
generate                    steps until the next line; how many
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import select
import statistics
import sys
import time
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unets

ROOT = Path(__file__).resolve().parent.parent

Said = dict[str, Any]


def seconds(what: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


class Way(ABC):
    """How adapters get to a UNet."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    @abstractmethod
    def add(self, files: list[str], names: list[str]) -> None:
        """All of them have a weight then."""

    @abstractmethod
    def replace(self, file: str, name: str) -> None: ...

    @abstractmethod
    def weigh(self, weights: dict[str, float]) -> None:
        """The others get no weight."""

    @abstractmethod
    def remove(self, names: list[str]) -> None: ...

    @abstractmethod
    def tidy(self) -> None:
        """After a removal, in no figure: the module tree as it was."""


class Ours(Way):
    """By Loras."""

    def __init__(self, unet: Any) -> None:
        from modelbroker.lora import Loras

        super().__init__(unet)
        self._loras = Loras(unet)

    def add(self, files: list[str], names: list[str]) -> None:
        """As Way says."""
        for file, name in zip(files, names, strict=True):
            self._loras.add(file, name)

    def replace(self, file: str, name: str) -> None:
        """As Way says."""
        self._loras.add(file, name)

    def weigh(self, weights: dict[str, float]) -> None:
        """As Way says."""
        self._loras.weights = weights

    def remove(self, names: list[str]) -> None:
        """As Way says."""
        for name in names:
            self._loras.remove(name)

    def tidy(self) -> None:
        """As Way says: nothing is left."""


class Peft(Way):
    """By diffusers: what load_lora_weights() calls for a UNet."""

    def __init__(self, unet: Any) -> None:
        import diffusers

        super().__init__(unet)
        self._mixin = diffusers.StableDiffusionXLPipeline

    def add(self, files: list[str], names: list[str]) -> None:
        """As Way says."""
        for file, name in zip(files, names, strict=True):
            self._load(file, name)
        if len(names) > 1:  # the last one alone is active
            self.weigh(dict.fromkeys(names, 1.0))

    def replace(self, file: str, name: str) -> None:
        """As Way says."""
        self._load(file, name, hotswap=True)

    def _load(self, file: str, name: str, **options: Any) -> None:
        tensors, alphas, metadata = self._mixin.lora_state_dict(
            file, unet_config=self.unet.config, return_lora_metadata=True
        )
        self._mixin.load_lora_into_unet(
            tensors,
            network_alphas=alphas,
            unet=self.unet,
            adapter_name=name,
            metadata=metadata,
            low_cpu_mem_usage=True,
            **options,
        )

    def weigh(self, weights: dict[str, float]) -> None:
        """As Way says."""
        self.unet.set_adapters(list(weights), list(weights.values()))

    def remove(self, names: list[str]) -> None:
        """As Way says."""
        self.unet.delete_adapters(names)

    def tidy(self) -> None:
        """As Way says: without this the next adapter finds the wrapped layers of the last one."""
        if not getattr(self.unet, "peft_config", None):
            self.unet.unload_lora()


WAYS: dict[str, type[Way]] = {"ours": Ours, "peft": Peft}


class Program:
    """What is asked and answered; a method of each name."""

    def __init__(self, way: str) -> None:
        self._kind = WAYS[way]
        self._way: Way | None = None

    def _ready(self) -> Way:
        if self._way is None:
            raise RuntimeError("first a UNet")
        return self._way

    def unet(self, kind: str) -> Said:
        """Anything of the last one goes before."""
        self._way = None
        gc.collect()
        unet = unets.small() if kind == "small" else unets.empty(kind in ("full", "filled"))
        if kind.startswith("filled"):
            unets.fill(unet)
        self._way = self._kind(unet)
        gc.collect()
        return {"bytes": sum(weight.nbytes for weight in unet.parameters())}

    def make(self, file: str, rank: int, names: str, seed: int, dora: bool) -> Said:
        """In the UNet's dtype."""
        from safetensors.torch import save_file

        sys.path.append(str(ROOT / "tools"))
        import make_adapters

        unet = self._ready().unet
        made = make_adapters.adapter(
            {"unet": unet}, rank, names, seed=seed, dtype=unet.dtype, dora=dora
        )
        save_file(made, file)
        return {"layers": sum("lora_down" in key or "lora_A" in key for key in made)}

    def add(self, files: list[str], names: list[str]) -> Said:
        way = self._ready()
        return {"seconds": seconds(lambda: way.add(files, names))}

    def replace(self, file: str, name: str) -> Said:
        way = self._ready()
        return {"seconds": seconds(lambda: way.replace(file, name))}

    def weigh(self, weights: dict[str, float], times: int) -> Said:
        way = self._ready()
        others = {name: weight / 2 for name, weight in weights.items()}
        took = []
        for _ in range(times):
            way.weigh(others)
            took.append(seconds(lambda: way.weigh(weights)))
        return {"seconds": min(took), "p50": statistics.median_low(took)}

    def remove(self, names: list[str]) -> Said:
        way = self._ready()
        took = seconds(lambda: way.remove(names))
        way.tidy()
        return {"seconds": took}

    def memory(self) -> Said:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what comes now
        return {"private": private_tensors(), "anonymous": anonymous_memory()}

    def step(self, times: int) -> Said:
        unet = self._ready().unet
        outputs: list[torch.Tensor] = []
        took = [seconds(lambda: outputs.append(unets.step(unet))) for _ in range(times)]
        digest = hashlib.sha256(outputs[-1].numpy().tobytes()).hexdigest()
        return {"seconds": min(took), "digest": digest}

    def generate(self) -> Said:
        unet = self._ready().unet
        steps = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            unets.step(unet)
            steps += 1
        sys.stdin.readline()
        return {"steps": steps}


def private_tensors() -> int:
    """Bytes of the storages of all tensors there are which lie in no file's mapping."""
    starts: list[int] = []
    of_files: list[bool] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        starts.append(int(addresses.partition("-")[0], 16))
        of_files.append(inode != "0")
    storages: dict[int, int] = {}
    for held in gc.get_objects():
        if issubclass(type(held), torch.Tensor) and held.device.type == "cpu":
            storage = held.untyped_storage()
            if storage.nbytes() > 0 and not of_files[bisect_right(starts, storage.data_ptr()) - 1]:
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def anonymous_memory() -> int:
    """Bytes of this process' memory that are no file's."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say how much memory is anonymous")


def main() -> None:
    torch.set_num_threads(1)
    import diffusers
    import peft  # noqa: F401  otherwise imported at the first adapter
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    for words in ("Already found a `peft_config`", "Adapter . was active which is now deleted"):
        warnings.filterwarnings("ignore", words, UserWarning)
    program = Program(sys.argv[1])
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        what, *arguments = json.loads(line)
        print(json.dumps(getattr(program, what)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
