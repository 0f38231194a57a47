"""How long modelbroker's Loras and diffusers take for the same, by turns on one pipeline."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import modelbroker
from modelbroker.lora import Loras

_SWITCHES = 10


class _Way(NamedTuple):
    add: Callable[[str, str], Any]
    switch: Callable[[str], Any]
    remove: Callable[[str], Any]


def _ours(pipeline: Any) -> _Way:
    loras = Loras(pipeline)

    def switch(name: str) -> None:
        loras.weights = {name: 1.0}

    return _Way(loras.add, switch, loras.remove)


def _diffusers(pipeline: Any) -> _Way:
    def add(file: str, name: str) -> None:
        pipeline.load_lora_weights(file, adapter_name=name)

    return _Way(add, pipeline.set_adapters, pipeline.delete_adapters)


def compare(pipeline: Any, files: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds (medians) to add, switch and remove a style, and bytes that two styles cost.

    `files`: two LoRA files or more. The pipeline has no style afterwards.
    """
    if len(files) < 2:
        raise ValueError("to compare, give two styles or more")
    Loras(pipeline).clear()
    found: dict[str, dict[str, list[float]]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the second adapter
        for _ in range(rounds):
            for label, way in (("modelbroker", _ours), ("diffusers", _diffusers)):
                times = found.setdefault(label, defaultdict(list))
                _use(pipeline, way(pipeline), files, times)
                pipeline.unload_lora_weights()  # PEFT's layers, too
    return {
        label: {verb: statistics.median(times) for verb, times in verbs.items()}
        for label, verbs in found.items()
    }


def _use(pipeline: Any, way: _Way, files: Sequence[str], times: dict[str, list[float]]) -> None:
    def timed(verb: str, call: Callable[..., Any], *arguments: str) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        times[verb].append((time.perf_counter() - began) * 1000)
        return result

    before = modelbroker.shared(pipeline).copied_bytes
    names = ("first", "second")
    own = 0
    for name, file in zip(names, files, strict=False):
        added = timed("add_ms", way.add, file, name)
        own += getattr(added, "private_bytes", 0)  # diffusers returns nothing
    for number in range(_SWITCHES):
        timed("switch_ms", way.switch, names[number % 2])
    times["private_bytes"].append(modelbroker.shared(pipeline).copied_bytes - before + own)
    for name in names:
        timed("remove_ms", way.remove, name)
