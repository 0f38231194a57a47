"""An ordinary program of transformers: a language model that computes when it is asked.

It does not know modelbroker. Asked by lines, it answers by JSON lines: for "memory" with the PSS of
its weights, for another line with the seconds to load the model and to compute its first output.
"""

from __future__ import annotations

import json
import sys
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.llama import modeling_llama  # otherwise imported at the first load

_TOKENS = torch.arange(16).reshape(1, 16)


def first_output(folder: str) -> tuple[Any, dict[str, float]]:
    """The model, and how long each step took."""
    began = time.perf_counter()
    model = modeling_llama.LlamaModel.from_pretrained(folder)
    loaded = time.perf_counter()
    with torch.inference_mode():
        output = model(_TOKENS).last_hidden_state
    ended = time.perf_counter()
    value = float(output.abs().sum())
    return model, {"loaded": loaded - began, "seconds": ended - began, "value": value}


def pss_of_weights(model: Any) -> int:
    """Of the mappings in which parameters lie: what is shared counts by its share."""
    starts: list[int] = []
    sizes: list[int] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            starts.append(int(word.partition("-")[0], 16))
        elif word == "Pss:":
            sizes.append(int(rest.split()[0]) * 1024)
    at = {bisect_right(starts, weight.data_ptr()) - 1 for weight in model.parameters()}
    return sum(sizes[i] for i in at)


def main() -> None:
    torch.set_num_threads(1)
    logging: Any = transformers.utils.logging  # without types
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))
    print(json.dumps({"ready": True}), flush=True)
    model = None
    for line in sys.stdin:
        if line.strip() == "memory":
            said: dict[str, float] = {"memory": pss_of_weights(model)}
        else:
            model, said = first_output(sys.argv[1])
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
