"""How names from files stand in messages: they may be long, and hold anything."""

from __future__ import annotations

_LONGEST = 120


def shown(text: str) -> str:
    """In quotes, in one line, cut in its middle where it is long."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}…{text[-half:]}"
    return repr(text)
