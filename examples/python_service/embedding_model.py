"""A sentence-embedding model whose weights are the broker's: built in every worker, held once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

import modelbroker


class EmbeddingModel:
    """Turns sentences into unit vectors. Threads: any may call embed(); they take turns."""

    def __init__(self, broker: modelbroker.Broker, name: str, folder: Path) -> None:
        """`name`: a model that the broker knows; `folder` has its config.json and tokenizer."""
        weights = broker.attach(name)
        self.name, self.generation = weights.model, weights.generation
        config = AutoConfig.from_pretrained(folder)
        network: Any = getattr(transformers, config.architectures[0])
        # transformers takes the tensors as they are: no weights of its own.
        self._network, report = network.from_pretrained(
            None, config=config, state_dict=weights.state_dict(), output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise modelbroker.InvalidArgumentError(
                f"{name} is not the model of {folder}: it lacks {', '.join(missing[:3])}"
            )
        self._longest: int = config.max_position_embeddings
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
