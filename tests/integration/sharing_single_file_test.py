"""diffusers' single files in original layouts: as without us, and nearly nothing of them copied."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_model
from diffusers.loaders import single_file_utils as utils
from safetensors.torch import load_file, save_file

import modelbroker
import small_models
from support.broker import BrokerProcess
from support.sharing import is_shared

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")

diffusers_logging: Any = diffusers.utils.logging
pipeline_class: Any = diffusers.StableDiffusionXLPipeline


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    threads, level = torch.get_num_threads(), diffusers_logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()
    diffusers_logging.set_verbosity(level)
    torch.set_num_threads(threads)


@pytest.fixture
def sharing(shared: BrokerProcess) -> Any:
    return lambda: modelbroker.sharing(endpoint=shared.endpoint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("single") / "sdxl"
    small_models.sdxl(made)
    small_models.ldm_single_file(made, made.with_name("ldm.safetensors"))
    return made


def from_single_file(folder: Path, **options: Any) -> Any:
    file = str(folder.with_name("ldm.safetensors"))
    return pipeline_class.from_single_file(
        file, config=str(folder), local_files_only=True, **options
    )


def tensors_of(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in COMPONENTS
        for name, tensor in pipeline.components[part].state_dict(keep_vars=True).items()
    }


def paint(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    seed, size = torch.Generator().manual_seed(0), {"height": 16, "width": 16}
    painted: torch.Tensor = pipeline(
        "a cat", num_inference_steps=2, generator=seed, output_type="pt", **size
    ).images
    return painted


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: each.nbytes for name, each in tensors.items() if not is_shared(each)}


def test_a_single_file_of_sdxl_is_shared_but_for_its_transposed_projection(
    folder: Path, sharing: Any
) -> None:
    stock = from_single_file(folder)
    with sharing():
        pipeline = from_single_file(folder)
    wanted, found = tensors_of(stock), tensors_of(pipeline)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert (type(found[name]), found[name].dtype, found[name].stride()) == (
            type(tensor), tensor.dtype, tensor.stride(),
        ), name  # fmt: skip
    assert list(copied(found)) == ["text_encoder_2.text_projection.weight"]
    assert sum(copied(found).values()) < 0.01 * sum(each.nbytes for each in found.values())
    assert not any(map(is_shared, wanted.values()))
    assert torch.equal(paint(pipeline), paint(stock))


def test_a_single_file_that_torch_copies_into_its_parameters(folder: Path, sharing: Any) -> None:
    file = str(folder.with_name("ldm.safetensors"))
    unet: Any = diffusers.UNet2DConditionModel
    options = {"config": str(folder), "subfolder": "unet", "local_files_only": True}
    stock = unet.from_single_file(file, low_cpu_mem_usage=False, **options)
    with sharing():
        model = unet.from_single_file(file, low_cpu_mem_usage=False, **options)
    wanted, found = stock.state_dict(), model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert copied(found) == {}


# ---- the converters themselves

Tensors = dict[str, torch.Tensor]


def flux() -> Tensors:
    """One block of each kind, in Flux' original names."""
    width, mlp = 64, 256
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    for name in ("time_in", "vector_in"):
        linear(f"{name}.in_layer", width, width)
        linear(f"{name}.out_layer", width, width)
    for name in ("txt_in", "img_in"):
        linear(name, width, width)
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear(f"{block}_mod.lin", 6 * width, width)
        linear(f"{block}_attn.qkv", 3 * width, width)
        linear(f"{block}_attn.proj", width, width)
        linear(f"{block}_mlp.0", mlp, width)
        linear(f"{block}_mlp.2", width, mlp)
        shapes[f"{block}_attn.norm.query_norm.scale"] = (16,)
        shapes[f"{block}_attn.norm.key_norm.scale"] = (16,)
    linear("single_blocks.0.modulation.lin", 3 * width, width)
    linear("single_blocks.0.linear1", 7 * 3072, 8)  # rows that the converter insists on
    linear("single_blocks.0.linear2", width, 5 * width)
    shapes["single_blocks.0.norm.query_norm.scale"] = (16,)
    shapes["single_blocks.0.norm.key_norm.scale"] = (16,)
    linear("final_layer.linear", width, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def convert_flux(tensors: Tensors) -> Tensors:
    # From the table, where from_single_file finds it.
    table: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    made: Tensors = table["FluxTransformer2DModel"]["checkpoint_mapping_fn"](
        checkpoint=tensors, config={"num_attention_heads": 4, "attention_head_dim": 16}
    )
    return made


def test_the_pieces_of_fused_weights_are_shared_and_independent(
    tmp_path: Path, sharing: Any
) -> None:
    path = tmp_path / "flux.safetensors"
    save_file(flux(), path)
    wanted = convert_flux(load_file(path))
    with sharing():
        checkpoint = load_file(path)
        kept = dict(checkpoint)
        found = convert_flux(checkpoint)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()
    swapped = ["norm_out.linear.bias", "norm_out.linear.weight"]  # scale and shift, put together
    assert sorted(copied(found)) == swapped
    before = kept["double_blocks.0.img_attn.qkv.weight"].clone()
    found["transformer_blocks.0.attn.to_q.weight"].zero_()
    assert torch.equal(kept["double_blocks.0.img_attn.qkv.weight"], before)
    key = "transformer_blocks.0.attn.to_k.weight"
    kept["double_blocks.0.img_attn.qkv.weight"].zero_()
    assert torch.equal(found[key], wanted[key])


def test_a_converter_outside_and_one_of_stock_tensors_copies(tmp_path: Path, sharing: Any) -> None:
    path = tmp_path / "flux.safetensors"
    save_file(flux(), path)
    with sharing():
        checkpoint = load_file(path)
        of_stock = convert_flux(flux())
    assert not any(map(is_shared, of_stock.values()))
    outside = convert_flux(checkpoint)
    assert not is_shared(outside["transformer_blocks.0.attn.to_q.weight"])


def test_the_converters_look_as_before() -> None:
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    convert = getattr(utils, name)
    assert inspect.signature(convert).parameters.keys() == {"checkpoint", "kwargs"}
    assert convert.__module__ == utils.__name__
    assert getattr(single_file_model, name) is convert
