"""What the kernel may lack: its names, as `--disable-features` takes them, and tests that need one.

The whole suite runs on a second way with MODELBROKER_DISABLE_FEATURES=<name> (make second-ways).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FEATURES = tuple(
    re.findall(
        r'\{"(\w+)", &OsFeatures::',
        (Path(__file__).parents[2] / "shm" / "os.h").read_text(),
    )
)
DISABLED = set(os.environ.get("MODELBROKER_DISABLE_FEATURES", "").split(",")) - {""}


def switched_off(*features: str) -> set[str]:
    """Which of them are, or all at once."""
    return DISABLED & {*features, "all"}


# Else only the books do: a mapping without a lease is not seen, what was adopted waits for grace.
KERNEL_TELLS_HOLDERS = not switched_off("write_lease")


def needs(*features: str) -> pytest.MarkDecorator:
    """A test that is about a feature itself: skipped, by its name, where that is switched off."""
    missing = switched_off(*features)
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is switched off")
