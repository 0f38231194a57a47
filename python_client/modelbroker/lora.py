"""LoRA and its relatives over shared weights: see Loras."""

from __future__ import annotations

from ._lora.adapter import Added
from ._lora.loras import Loras

__all__ = ["Added", "Loras"]
