"""The time that a call may take."""

from __future__ import annotations

import math
import numbers
import time

from ._errors import InvalidArgumentError

_LONGEST = 1e9  # 31 years: what every kind of wait can count


class Deadline:
    """A moment on the monotonic clock, or no end at all."""

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float | None) -> None:
        number = isinstance(seconds, numbers.Real)  # numpy's too
        if seconds is not None and not (number and seconds >= 0 and math.isfinite(seconds)):
            raise InvalidArgumentError(
                f"timeout={seconds!r} must be None or a finite number of seconds, 0 or more"
            )
        self.seconds = seconds
        self._at = math.inf if seconds is None else time.monotonic() + min(seconds, _LONGEST)

    def left(self, most: float = math.inf) -> float:
        """Seconds until the end, but at most `most`; 0 when it has passed."""
        return max(0.0, min(most, self._at - time.monotonic()))

    def at_most(self, seconds: float) -> Deadline:
        """The sooner of this one and `seconds` from now."""
        return self if self.left() <= seconds else Deadline(seconds)

    def passed(self) -> bool:
        """True once the time is up."""
        return time.monotonic() >= self._at

    def milliseconds(self) -> int:
        """For the wire: 0 means no end, so what is left is at least 1."""
        return 0 if self._at == math.inf else max(1, math.ceil(self.left() * 1000))
