"""A sentence-embedding model whose weights are the broker's: built in every worker, held once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import modelbroker


class EmbeddingModel:
    """Turns sentences into unit vectors. Threads: any may call embed(); they take turns."""

    def __init__(self, broker: modelbroker.Broker, name: str, folder: Path) -> None:
        """`name`: a model that the broker knows; `folder` has its config.json and tokenizer."""
        weights = broker.attach(name)
        self.name, self.generation = weights.model, weights.generation
        with torch.device("meta"):  # the network without memory of its own
            network: Any = AutoModel.from_config(  # type: ignore[no-untyped-call]  # it has no types
                AutoConfig.from_pretrained(folder)
            )
        report = weights.apply_to(network, strict=False)
        if report.missing:
            raise modelbroker.InvalidArgumentError(
                f"{name} is not the model of {folder}: it has no {', '.join(report.missing[:3])}"
            )
        # Buffers that a checkpoint does not hold are the worker's to make.
        positions = network.embeddings.position_embeddings.num_embeddings
        network.embeddings.position_ids = torch.arange(positions)[None]
        network.embeddings.token_type_ids = torch.zeros((1, positions), dtype=torch.int64)
        self._network, self._longest = network.eval(), positions
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._turn = threading.Lock()  # a tokenizer is for one thread at a time

    def embed(self, sentences: Sequence[str]) -> list[list[float]]:
        """One vector for each; what is too long for the model is cut."""
        with self._turn, torch.inference_mode():
            batch = self._tokenizer(
                list(sentences),
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            )
            states = self._network(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        found: list[list[float]] = vectors.tolist()
        return found
