"""Prints sentences as token numbers, in the JSON that embed_worker reads.

make_tokens.py MODEL_FOLDER "A cat sleeps." | embed_worker MODEL PACKAGE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tokens_of(folder: Path, sentences: Sequence[str]) -> dict[str, Any]:
    """All in one batch, padded to the longest."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(sentences), padding=True, truncation=True)
    return {word: batch[word] for word in ("input_ids", "attention_mask")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the model: its tokenizer lies in it")
    parser.add_argument("sentences", nargs="+")
    arguments = parser.parse_args()
    print(json.dumps(tokens_of(arguments.folder, arguments.sentences)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
