"""What PEFT's configuration, or diffusers' metadata, says of the scale of a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._errors import InvalidArgumentError, UnimplementedError
from .source import AdapterFile

_IN_METADATA = "lora_adapter_metadata"  # diffusers' save_lora_weights


class Rule(NamedTuple):
    """Of one module: alpha where the file has no tensor of it, and how it makes the scale."""

    alpha: float | None
    rslora: bool


_NO_RULE = Rule(None, rslora=False)


class Configuration:
    """Of all modules of a file."""

    def __init__(self, file: AdapterFile) -> None:
        kind = file.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise UnimplementedError(f"{file.label} is of PEFT's kind {kind!r:.80}, not LORA")
        self._parts: dict[str, Mapping[str, Any]] = {"": file.config} if file.config else {}
        self._parts |= _in_metadata(file)

    def rule(self, component: str, path: str) -> Rule:
        """`path`: of the module in its component."""
        config = self._parts.get(component) or self._parts.get("")
        if config is None:
            return _NO_RULE
        alpha = config.get("lora_alpha")
        patterns = config.get("alpha_pattern")
        if isinstance(patterns, dict):
            for pattern, value in patterns.items():
                if path == pattern or path.endswith(f".{str(pattern).lstrip('^')}"):
                    alpha = value
                    break
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
            alpha = None
        return Rule(alpha, rslora=config.get("use_rslora") is True)


def _in_metadata(file: AdapterFile) -> dict[str, Mapping[str, Any]]:
    """Its keys are those of each component's configuration: unet.lora_alpha, say."""
    text = file.metadata.get(_IN_METADATA)
    if not text:
        return {}
    try:
        found = json.loads(text)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in found.items():
            component, _, word = key.partition(".")
            parts.setdefault(component if word else "", {})[word or component] = value
    except (ValueError, RecursionError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{file.label}: {_IN_METADATA} in its metadata is not a JSON object: {error}"
        ) from None
    return dict(parts)
