"""keep_alive: how long an unused model stays, as a number or in the words of the command line."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any

from ._errors import InvalidArgumentError

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(ms|s|m|h|d|)")


def seconds_of(keep_alive: Any) -> float:
    """Of 300, "300", "5m" or "-1": the same that `modelbroker load --keep-alive` takes."""
    if isinstance(keep_alive, str):
        written = _TIME.fullmatch(keep_alive)
        if written is not None and math.isfinite(number := float(written[1])):
            return number * _UNITS[written[2]]
    elif isinstance(keep_alive, numbers.Real) and not math.isnan(keep_alive):
        return float(keep_alive)
    raise InvalidArgumentError(
        f"keep_alive={keep_alive!r} must be seconds, or a text of a number and ms, s, m, h or d "
        'like "5m"; below zero: for ever'
    )
