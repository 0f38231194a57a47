"""Where `make examples` puts what it builds."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
SOURCES = _ROOT / "examples"
EXAMPLES = Path(os.environ.get("MODELBROKER_TEST_EXAMPLES") or _ROOT / "build" / "examples")
EMBED_WORKER = EXAMPLES / "cpp_worker" / "embed_worker"
