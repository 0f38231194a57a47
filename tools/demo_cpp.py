"""The demo's C++ worker: the network compiled without weights, over the block that Python uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import compiled_model
import demo_worker
from demo_parts import Claims, Worker, say

_TOKENS = str(Path(__file__).parents[1] / "examples" / "cpp_worker" / "make_tokens.py")
_TOLERANCE = 1e-5  # the vectors have length 1


def _start(endpoint: str, model: Path, package: Path, examples: Path) -> Worker:
    tokens = model / "tokens.json"
    with tokens.open("wb") as file:
        subprocess.run(
            [sys.executable, _TOKENS, str(model), *demo_worker.SENTENCES],
            stdout=file,
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    program = str(examples / "cpp_worker" / "embed_worker")
    options = ("--endpoint", endpoint, "--tokens", str(tokens))
    return Worker(*options, "minilm", str(package), command=[program])


def embed(
    endpoint: str, folder: Path, workers: list[Worker], examples: Path | None, claims: Claims
) -> list[Worker]:
    """Starts it and compares what it says with what `workers` say; none without `examples`."""
    if examples is None:
        say("  [--] no C++ worker: 'make examples' builds it; then add --examples build/examples")
        return []
    try:
        package = compiled_model.compiled_model(folder / "minilm", examples)
    except subprocess.CalledProcessError:
        claims.check(False, "a C++ worker: its network was not compiled, the reason stands above")
        return []
    worker = _start(endpoint, folder / "minilm", package, examples)
    ready = worker.hear()
    ours, theirs = (np.array(w.ask('{"vectors": true}')["vectors"]) for w in (worker, workers[0]))
    error = float(np.abs(ours - theirs).max())
    claims.check(error < _TOLERANCE, f"a C++ worker embeds alike, {error:.0e} off at most")
    copied = worker.ask('{"memory": true}')["copied"] + ready["grown"]
    size = ready["shared_bytes"]
    claims.check(
        all(name.endswith("_ids") for name in ready["own"]) and copied < size / 100,
        f"its compiled network reads {ready['shared']} constants, {size / 1e6:.0f} MB, where the "
        f"broker has them; it took {copied / 1e3:.0f} kB of its own",
    )
    return [worker]
