"""docs/python.md's recipe for transformers: a stock network, every weight of it the broker's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.utils import logging

import modelbroker
from compiled_model import demo_model
from support.broker import BrokerProcess

TINY: Any = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": 100}
transformers_logging: Any = logging
WORDS = torch.arange(2, 12)[None]


class Case(NamedTuple):
    network: Any  # the class
    make: Callable[[], Any]  # its configuration
    inputs: dict[str, torch.Tensor]


CASES = {
    "BERT": Case(
        transformers.BertModel,
        lambda: transformers.BertConfig(**TINY, intermediate_size=64),
        {"input_ids": WORDS},
    ),
    "CLIP": Case(
        transformers.CLIPModel,
        lambda: transformers.CLIPConfig(
            text_config={**TINY, "intermediate_size": 64, "max_position_embeddings": 20},
            vision_config={**TINY, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        ),
        {"input_ids": WORDS, "pixel_values": torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)},
    ),
    "Llama": Case(
        transformers.LlamaForCausalLM,
        lambda: transformers.LlamaConfig(**TINY, intermediate_size=64),
        {"input_ids": WORDS},
    ),
    "Llama, tied": Case(
        transformers.LlamaForCausalLM,
        lambda: transformers.LlamaConfig(**TINY, intermediate_size=64, tie_word_embeddings=True),
        {"input_ids": WORDS},
    ),
    "GPT-2, tied": Case(
        transformers.GPT2LMHeadModel,
        lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=32
        ),
        {"input_ids": WORDS},
    ),
    "T5, tied": Case(
        transformers.T5ForConditionalGeneration,
        lambda: transformers.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=100
        ),
        {"input_ids": WORDS, "decoder_input_ids": WORDS[:, :4]},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on how sums are shared out; and no progress bars."""
    before, progress = torch.get_num_threads(), transformers_logging
    torch.set_num_threads(1)
    progress.disable_progress_bar()
    yield
    progress.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with shared.connect() as client:
        yield client


def mapping_of(block: str) -> tuple[int, int, int]:
    """Where a block's one mapping in this process begins and ends, and what is private of it."""
    found: list[tuple[int, int]] = []
    private: list[int] = []
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):
            ours = block in line
            if ours:
                begin, end = word.split("-")
                found.append((int(begin, 16), int(end, 16)))
        elif ours and word == "Anonymous:":  # pages that were written, and so copied
            private.append(int(rest[0]) * 1024)
    assert len(found) == len(private) == 1, found
    return *found[0], private[0]


def own_memory() -> int:
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def output(network: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    kind = next(network.parameters()).dtype
    given = {n: t.to(kind) if t.is_floating_point() else t for n, t in inputs.items()}
    with torch.inference_mode():
        found: torch.Tensor = network(**given)[0]
    return found


def shared_network(weights: modelbroker.Weights, network: Any, config: Any, block: str) -> Any:
    """By the recipe. Every parameter of it lies in the block's mapping."""
    made = network.from_pretrained(None, config=config, state_dict=weights.state_dict())
    begin, end, _ = mapping_of(block)
    outside = [n for n, p in made.named_parameters() if not begin <= p.data_ptr() < end]
    assert outside == []
    assert not any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_shared_and_the_output_is_bit_equal(
    client: modelbroker.Broker, tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    network, make, inputs = CASES[case]
    torch.manual_seed(7)
    network(make()).to(dtype).save_pretrained(tmp_path)
    name = f"{case}, {dtype}"
    block = client.load(tmp_path / "model.safetensors", name).block
    stock = network.from_pretrained(tmp_path)
    with client.attach(name) as weights:
        ours = shared_network(weights, network, AutoConfig.from_pretrained(tmp_path), block)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert len(list(ours.parameters())) == len(list(stock.parameters())), "ties differ"
    assert torch.equal(output(ours, inputs), output(stock, inputs))
    assert mapping_of(block)[2] == 0, "private memory"


def test_the_demos_model_costs_this_process_nothing_for_its_weights(
    client: modelbroker.Broker,
) -> None:
    folder = demo_model()
    loaded = client.load(folder / "model.safetensors", "minilm")
    config = AutoConfig.from_pretrained(folder)
    network = transformers.BertModel
    with client.attach("minilm") as weights:
        before = own_memory()
        ours = shared_network(weights, network, config, loaded.block)
        result = output(ours, {"input_ids": WORDS})
        grown = own_memory() - before
    assert mapping_of(loaded.block)[2] == 0, "private memory"
    assert grown < loaded.payload_bytes / 4
    assert torch.equal(result, output(network.from_pretrained(folder), {"input_ids": WORDS}))
