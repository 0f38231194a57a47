"""The demo's workers: each runs in a process of its own and answers by JSON lines.

demo_worker.py embed   broker|stock FOLDER ENDPOINT     a line for each line that it reads:
                                                        empty, or {"vectors": true}
demo_worker.py measure broker|safetensors|torch PATH ENDPOINT
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

import weight_memory

SENTENCES = [
    "The broker loads a model once and every worker shares it.",
    "A cat sleeps on the warm roof of the old library.",
    "Quarterly revenue grew by eleven percent despite the strike.",
]
_PAGE = 4096


def say(**words: object) -> None:
    """One JSON line."""
    print(json.dumps(words), flush=True)


# ---- the real model


def broker_model(folder: str, endpoint: str) -> Any:
    """The stock network, its weights the broker's."""
    from transformers import AutoConfig, BertModel

    import modelbroker

    weights = modelbroker.connect(endpoint).attach("minilm")
    config = AutoConfig.from_pretrained(folder)
    model: Any = BertModel
    return model.from_pretrained(None, config=config, state_dict=weights.state_dict())


def stock_model(folder: str) -> Any:
    """What everybody does."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


def embed(which: str, folder: str, endpoint: str) -> None:
    """Embeds the sentences for every line on standard input."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = broker_model(folder, endpoint) if which == "broker" else stock_model(folder)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    say(ready=True, pid=os.getpid())
    for line in sys.stdin:
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
            vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        wanted = json.loads(line) if line.strip() else {}
        say(
            digest=hashlib.sha256(vectors.numpy().tobytes()).hexdigest(),
            shape=list(vectors.shape),
            **({"vectors": vectors.tolist()} if wanted.get("vectors") else {}),
        )


# ---- the big file


def tensors_of(which: str, path: str, endpoint: str) -> dict[str, torch.Tensor]:
    """One way to get at the weights of a file."""
    if which == "broker":
        import modelbroker

        return modelbroker.connect(endpoint).attach(path).state_dict()
    if which == "safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def touch(tensors: dict[str, torch.Tensor]) -> int:
    """Reads a byte of every page."""
    found = 0
    for tensor in tensors.values():
        bytes_ = tensor.view(-1).view(torch.uint8).numpy()
        found |= int(np.bitwise_or.reduce(bytes_[::_PAGE]))
    return found


def measure(which: str, path: str, endpoint: str) -> None:
    """Times getting at the weights and touching them; then tells its memory when it is asked."""
    if which == "broker":
        import modelbroker  # noqa: F401  imports are in no figure
    elif which == "safetensors":
        import safetensors.torch  # noqa: F401  imports are in no figure
    torch.set_num_threads(1)
    began = time.perf_counter()
    tensors = tensors_of(which, path, endpoint)
    opened = time.perf_counter()
    touch(tensors)
    say(opened=opened - began, seconds=time.perf_counter() - began)
    for _ in sys.stdin:
        say(memory=weight_memory.at(tensor.data_ptr() for tensor in tensors.values()))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    {"embed": embed, "measure": measure}[what](*rest)
