"""What `modelbroker bench` asks of Python: `python3 -c <this> VERB ...`.

has                      which of the libraries are there, as JSON
convert SOURCE TARGET    a checkpoint for torch.load of a safetensors file
worker WHICH PATH        gets at the weights ("safetensors", "torch") and touches them
plot TARGET              a picture of the JSON on standard input
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import Any

_PAGE = 4096


def has() -> None:
    """Says which libraries this Python has."""
    words = ("safetensors", "torch", "matplotlib")
    print(json.dumps({word: importlib.util.find_spec(word) is not None for word in words}))


def convert(source: str, target: str) -> None:
    """Writes what torch.load reads."""
    import safetensors.torch
    import torch

    torch.save(safetensors.torch.load_file(source), target)


def tensors_of(which: str, path: str) -> dict[str, Any]:
    """One way to get at the weights of a file."""
    if which == "safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(path)
    import torch

    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def touch(tensors: dict[str, Any]) -> None:
    """Reads a byte of every page."""
    import torch

    for tensor in tensors.values():
        if tensor.numel():
            flat = tensor.reshape(-1).view(torch.uint8)
            int(flat[::_PAGE].max())


def memory(tensors: dict[str, Any]) -> int:
    """PSS of the mappings that hold the tensors."""
    addresses = sorted(tensor.data_ptr() for tensor in tensors.values() if tensor.numel())
    total, counts, at = 0, False, 0
    with open("/proc/self/smaps", encoding="utf-8") as smaps:
        for line in smaps:
            word = line.split(" ", 1)[0]
            if "-" in word and not word.endswith(":"):
                begin, end = (int(part, 16) for part in word.split("-"))
                while at < len(addresses) and addresses[at] < begin:
                    at += 1
                counts = at < len(addresses) and addresses[at] < end
            elif word == "Pss:" and counts:
                total += int(line.split()[1]) * 1024
    return total


def worker(which: str, path: str) -> None:
    """Measures when the first line comes; tells its memory at each further one."""
    if which == "safetensors":
        import safetensors.torch  # noqa: F401  imports are in no figure
    import torch

    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()  # all begin at once
    began = time.perf_counter()
    tensors = tensors_of(which, path)
    opened = time.perf_counter()
    touch(tensors)
    touched = time.perf_counter()
    print(json.dumps({"opened": opened - began, "seconds": touched - began}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"memory": memory(tensors)}), flush=True)
    os._exit(0)  # without minutes of freeing


def plot(target: str) -> None:
    """Draws the figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    told = json.load(sys.stdin)
    groups = [
        ("one worker, weights touched (s)", "worker_seconds"),
        (f"{told['workers']} workers at once (s)", "workers_seconds"),
        (f"memory of {told['workers']} workers (GB)", "workers_bytes"),
    ]
    figure, axes = pyplot.subplots(1, len(groups), figsize=(11, 3.6))
    for axis, (title, key) in zip(axes, groups, strict=True):
        rows = [(way["name"], way[key]) for way in told["ways"] if way.get(key) is not None]
        scale = 1e9 if key == "workers_bytes" else 1
        bars = axis.bar([name for name, _ in rows], [value / scale for _, value in rows])
        axis.bar_label(bars, fmt="%.3g")
        axis.margins(y=0.12)  # room for the highest bar's label
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"{told['file']}, {told['payload_bytes'] / 1e9:.2f} GB", fontsize=11)
    figure.tight_layout()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    verbs: dict[str, Any] = {"has": has, "convert": convert, "worker": worker, "plot": plot}
    verbs[sys.argv[1]](*sys.argv[2:])
