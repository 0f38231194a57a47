"""Names that diffusers alone can read: a pipeline with fused layers translates them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from .plan import Layers
from .source import AdapterFile

_log = logging.getLogger("modelbroker")


def translated(file: AdapterFile, pipeline: Any, layers: Layers) -> AdapterFile:
    """The file as it is where most of its names lead to layers, else as the pipeline reads it.

    What the pipeline makes is partly in memory of this process's own: fused layers are cut, and a
    scale is multiplied in.
    """
    plan = layers.plan(file.tensors)
    read = getattr(type(pipeline), "lora_state_dict", None)
    if read is None or 2 * len(plan.targets) >= len(plan.groups):
        return file
    try:
        found: Any = _read(read, dict(file.tensors))
        tensors = _with_alphas(*found) if isinstance(found, tuple) else found
        new = replace(file, tensors=tensors, config={}, all_shared=False, runs=())
        better = len(layers.plan(tensors).targets) > len(plan.targets)
    except Exception as error:  # of diffusers, which knows this file no better
        _log.debug("%s: diffusers does not read it: %r", file.label, error)
        return file
    return new if better else file


def _read(read: Any, tensors: dict[str, Any]) -> Any:
    try:
        return read(tensors, return_alphas=True)
    except TypeError:  # a family without alphas
        return read(tensors)


def _with_alphas(tensors: dict[str, Any], alphas: Any, *_: Any) -> dict[str, Any]:
    return {
        **tensors,
        **{name: torch.as_tensor(float(alpha)) for name, alpha in (alphas or {}).items()},
    }
