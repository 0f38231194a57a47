"""Unmodified libraries, stock and shared side by side: equal outputs, all parameters shared.

Small models, made from configurations; each case loads one by the library's own call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, load_model, save_file

import modelbroker
import small_models
from support.broker import BrokerProcess
from support.sharing import bits

TINY: Any = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": 100}
WORDS = torch.arange(2, 12)[None]
PIXELS = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)


class Case(NamedTuple):
    make: Callable[[Path], object]  # writes the files
    load: Callable[[Path], Any]  # what `modelbroker.shared` takes
    run: Callable[[Any], Any]
    copied: float = 0.0  # the part that the library itself copies, at most


def _saved(make: Callable[[], Any]) -> Callable[[Path], object]:
    def save(folder: Path) -> object:
        torch.manual_seed(3)
        return make().save_pretrained(folder)

    return save


def _transformer(network: str, config: Callable[[], Any], **inputs: torch.Tensor) -> Case:
    kind: Any = getattr(transformers, network)
    return Case(
        _saved(lambda: kind(config())),
        lambda folder: kind.from_pretrained(folder).eval(),
        lambda model: model(**inputs, return_dict=False),
    )


def _bert_config() -> Any:
    return transformers.BertConfig(**TINY, intermediate_size=64)


def _bert(**options: Any) -> Case:
    kind: Any = transformers.BertModel
    return Case(
        _saved(lambda: kind(_bert_config())),
        lambda folder: kind.from_pretrained(folder, **options).eval(),
        lambda model: model(input_ids=WORDS, return_dict=False),
    )


def _embed(model: Any) -> Any:
    return model.encode(["a cat", "a dog and a cat"], convert_to_tensor=True)


def _sentences(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _pipeline(folder: Path) -> Any:
    import diffusers

    pipe: Any = diffusers.StableDiffusionXLPipeline
    return _quiet(pipe.from_pretrained(folder))


def _single_file(folder: Path) -> Any:
    import diffusers

    pipe: Any = diffusers.StableDiffusionXLPipeline
    whole = pipe.from_single_file(str(folder / "ldm.safetensors"), config=str(folder / "pipeline"))
    return _quiet(whole)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _make_single_file(folder: Path) -> None:
    small_models.sdxl(folder / "pipeline")
    small_models.ldm_single_file(folder / "pipeline", folder / "ldm.safetensors")


def _paint(pipe: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    painted = pipe(
        "a red cube",
        num_inference_steps=2,
        height=16,
        width=16,
        generator=generator,
        output_type="pt",
    )
    return painted.images


def _accelerated(folder: Path) -> Any:
    import accelerate

    kind: Any = transformers.BertModel
    with accelerate.init_empty_weights():
        model = kind(_bert_config())
    dispatched: Any = accelerate.load_checkpoint_and_dispatch(
        model, str(folder / "model.safetensors"), device_map={"": "cpu"}
    )
    return dispatched.eval()


def _accelerated_without_a_map(folder: Path) -> Any:
    import accelerate

    kind: Any = transformers.BertModel
    model = kind(_bert_config())
    accelerate.load_checkpoint_in_model(model, str(folder / "model.safetensors"))
    return model.eval()


def _network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))


def _save_network(folder: Path) -> None:
    torch.manual_seed(3)
    save_file(_network().state_dict(), folder / "model.safetensors")


def _by_load_state_dict(folder: Path) -> Any:
    model = _network()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def _by_load_model(folder: Path) -> Any:
    model = _network()
    load_model(model, folder / "model.safetensors")
    return model


def _run_network(model: Any) -> Any:
    return model(torch.linspace(-1, 1, 128).view(2, 64))


CASES = {
    "BERT": _bert(),
    "BERT, device_map cpu": _bert(device_map="cpu"),
    "BERT, device_map auto": _bert(device_map="auto"),
    "GPT-2, tied": _transformer(
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=32
        ),
        input_ids=WORDS,
    ),
    "Llama, tied": _transformer(
        "LlamaForCausalLM",
        lambda: transformers.LlamaConfig(**TINY, intermediate_size=64, tie_word_embeddings=True),
        input_ids=WORDS,
    ),
    "T5": _transformer(
        "T5ForConditionalGeneration",
        lambda: transformers.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=100
        ),
        input_ids=WORDS,
        decoder_input_ids=WORDS[:, :4],
    ),
    "CLIP": _transformer(
        "CLIPModel",
        lambda: transformers.CLIPConfig(
            text_config={**TINY, "intermediate_size": 64, "max_position_embeddings": 20},
            vision_config={**TINY, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        ),
        input_ids=WORDS,
        pixel_values=PIXELS,
    ),
    "sentence-transformers": Case(
        lambda folder: small_models.sentence_model(folder / "m"),
        lambda folder: _sentences(folder / "m"),
        _embed,
    ),
    "diffusers": Case(small_models.sdxl, _pipeline, _paint),
    "diffusers, a single file": Case(_make_single_file, _single_file, _paint, copied=0.01),
    "accelerate, dispatched": Case(_bert().make, _accelerated, _bert().run),
    "accelerate, in place": Case(_bert().make, _accelerated_without_a_map, _bert().run),
    "load_state_dict": Case(_save_network, _by_load_state_dict, _run_network),
    "load_model": Case(_save_network, _by_load_model, _run_network),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Bits depend on how sums are shared out; and no progress bars."""
    before = torch.get_num_threads()
    logging: Any = transformers.utils.logging
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_a_library_shares_and_computes_the_same(
    shared: BrokerProcess, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        case.make(tmp_path)
        with torch.no_grad():
            stock = bits(_flat(case.run(case.load(tmp_path))))
            with modelbroker.sharing(endpoint=shared.endpoint, min_size=0):
                loaded = case.load(tmp_path)
            found = modelbroker.shared(_parameters(loaded))
            assert found.copied_bytes <= case.copied * found.bytes, found
            assert found.shared_bytes > 0
            assert bits(_flat(case.run(loaded))) == stock
    assert modelbroker.shared(loaded).written_bytes == 0


def _parameters(loaded: Any) -> dict[str, torch.Tensor]:
    """Without the buffers that no file has."""
    parts = getattr(loaded, "components", {"": loaded})
    return {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for name, parameter in module.named_parameters()
    }


def _flat(output: Any) -> torch.Tensor:
    """All tensors of an output, one after another."""
    if isinstance(output, torch.Tensor):
        return output.reshape(-1).double()
    parts = output.values() if isinstance(output, dict) else output
    tensors = [part for part in parts if isinstance(part, torch.Tensor | tuple | list)]
    return torch.cat([_flat(part) for part in tensors] or [torch.zeros(0).double()])
