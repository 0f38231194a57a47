"""Small models of every kind that programs load, made from configurations: no network, no download.

small_models.py FOLDER                  all of them: FOLDER/bert, FOLDER/sentences, FOLDER/pipeline,
                                        FOLDER/ldm.safetensors (made from FOLDER/pipeline)
small_models.py FOLDER pipeline --wide 3    this one; its widest part has 9 times the weights

Each is the same at every call: seeded. Each of their files is larger than 1 MiB, below which
nothing is shared unless it is asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import ldm_layout

WIDTH = 96  # of SDXL's first text encoder
WIDTH_2 = 128  # of the second: diffusers tells them apart by it
_SEED = 7


def words(folder: Path) -> None:
    """A byte-level CLIP tokenizer: every byte is a word."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(_byte_letters())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _byte_letters() -> str:
    """What GPT-2 and CLIP write for the 256 bytes."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256 - len(printed))
    return "".join(map(chr, printed)) + "".join(chr(256 + number) for number in others)


def _clip_tokenizer(folder: Path) -> Any:
    words(folder)
    tokenizer: Any = transformers.CLIPTokenizer
    return tokenizer.from_pretrained(folder, model_max_length=77)


def _text_encoder(kind: Any, width: int, layers: int) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=WIDTH_2,
        vocab_size=514,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return kind(config).eval()


def _diffusers() -> Any:
    import diffusers  # takes seconds: only where it is needed

    return diffusers


def _unet(wide: int) -> Any:
    return (
        _diffusers()
        .UNet2DConditionModel(
            block_out_channels=(32 * wide, 64 * wide, 128 * wide),
            layers_per_block=2,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4, 8),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH_2 + 6 * 8,
            cross_attention_dim=WIDTH + WIDTH_2,
            norm_num_groups=8,
        )
        .eval()
    )


def _vae() -> Any:
    return (
        _diffusers()
        .AutoencoderKL(
            block_out_channels=(32, 64),
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=16,
        )
        .eval()
    )


def _sdxl_pipeline(folder: Path, wide: int) -> Any:
    diffusers = _diffusers()
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return diffusers.StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(transformers.CLIPTextModel, WIDTH, 3),
            text_encoder_2=_text_encoder(transformers.CLIPTextModelWithProjection, WIDTH_2, 10),
            tokenizer=_clip_tokenizer(folder / "tokenizer"),
            tokenizer_2=_clip_tokenizer(folder / "tokenizer_2"),
            unet=_unet(wide),
            scheduler=diffusers.DDIMScheduler(clip_sample=False),
            add_watermarker=False,
        )


def sdxl(folder: Path, wide: int = 1) -> None:
    """A StableDiffusionXLPipeline that paints 16 by 16, in safetensors files.

    It has 12 M parameters, and with a UNet that is `wide` times as wide about 9 M * wide^2 more.
    """
    _sdxl_pipeline(folder, wide).save_pretrained(folder)


def ldm_single_file(folder: Path, file: Path) -> None:
    """The weights of `sdxl(folder)` as one file in the original layout (OpenCLIP's in_proj too)."""

    def config(part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
        return found

    def tensors(part: str) -> ldm_layout.Tensors:
        (weights,) = (folder / part).glob("*.safetensors")
        loaded: ldm_layout.Tensors = load_file(weights)
        return loaded

    whole = ldm_layout.unet(tensors("unet"), config("unet")["layers_per_block"])
    whole |= ldm_layout.vae(tensors("vae"), len(config("vae")["block_out_channels"]))
    whole |= ldm_layout.clip(tensors("text_encoder"))
    whole |= ldm_layout.open_clip(tensors("text_encoder_2"))
    save_file(whole, file)


def _word_pieces(folder: Path) -> Any:
    """Letters are words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    entries += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    tokenizer: Any = transformers.BertTokenizer
    return tokenizer.from_pretrained(folder, model_max_length=64)


def bert(folder: Path) -> None:
    """A BertModel of 3 MB with its tokenizer, for AutoModel and AutoTokenizer."""
    tokenizer = _word_pieces(folder)
    config: Any = transformers.BertConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model: Any = transformers.BertModel(config)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sentence_model(folder: Path) -> None:
    """A SentenceTransformer: `bert`, mean pooling, and a dense layer that has a file of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    inner = folder.with_name(f"{folder.name}-bert")
    bert(inner)
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        dense: Any = modules.Dense(128, 4096)
    layers = [modules.Transformer(str(inner), max_seq_length=64), modules.Pooling(128), dense]
    SentenceTransformer(modules=layers, device="cpu").save(str(folder))


def _kinds(folder: Path, wide: int) -> dict[str, Callable[[], None]]:
    """Each one's maker; in this order, since the single file is made from the pipeline."""
    return {
        "bert": lambda: bert(folder / "bert"),
        "sentences": lambda: sentence_model(folder / "sentences"),
        "pipeline": lambda: sdxl(folder / "pipeline", wide),
        "ldm": lambda: ldm_single_file(folder / "pipeline", folder / "ldm.safetensors"),
    }


def main() -> None:
    makers = _kinds(Path(), 1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("which", nargs="*", help=f"of {', '.join(makers)}; all of them without it")
    parser.add_argument("--wide", type=int, default=1, help="a wider pipeline")
    arguments = parser.parse_args()
    wrong = [which for which in arguments.which if which not in makers]
    if wrong or arguments.wide < 1:
        parser.error(f"no such model: {wrong[0]}" if wrong else "--wide is 1 or more")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for kind, make in _kinds(arguments.folder, arguments.wide).items():
        if not arguments.which or kind in arguments.which:
            make()


if __name__ == "__main__":
    main()
