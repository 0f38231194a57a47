"""Turns texts into vectors with a transformers model. An ordinary program: it knows no broker."""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "A cat sleeps on the warm roof of the old library.",
    "The kitten is asleep.",
    "Quarterly revenue grew by eleven percent.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder with a model and its tokenizer")
    parser.add_argument("texts", nargs="*", default=TEXTS, metavar="text")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModel.from_pretrained(arguments.model)
    batch = tokenizer(arguments.texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))

    for text, vector in zip(arguments.texts, vectors, strict=True):
        print(*vector.tolist()[:4], "...", text)
    print("similar to the first:", *(vectors @ vectors[0]).tolist())


if __name__ == "__main__":
    main()
