"""Names of modules in adapters: every spelling leads to the one module of the real tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from modelbroker._lora import family, keys
from modelbroker._lora.names import Finder, Place

# ---- every layer of real UNets and text encoders, in every spelling


def tiny_sd1() -> nn.Module:
    import diffusers

    made: nn.Module = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return made


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Components of a pipeline of SDXL's shape, and a UNet of SD 1.5's."""
    import small_models

    pipeline = small_models._sdxl_pipeline(tmp_path_factory.mktemp("pipeline"), 1)
    return {
        "sdxl": {
            name: getattr(pipeline, name) for name in ("unet", "text_encoder", "text_encoder_2")
        },
        "sd1": {"unet": tiny_sd1()},
    }


def layers(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in root.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
            yield name, module


def sgm_name(unet: Any) -> Callable[[str], str]:
    """By the tool that writes single files in that layout, which has a table of its own."""
    import ldm_layout

    names = {f"{path}.weight": torch.empty(0) for path, _ in layers(unet)}
    original = ldm_layout.unet(names, unet.config.layers_per_block)
    mapped = dict(zip(names, original, strict=True))
    return lambda path: mapped[f"{path}.weight"].removesuffix(".weight")


def flat(name: str) -> str:
    return name.replace(".", "_")


@pytest.mark.parametrize("model", ["sdxl", "sd1"])
def test_each_spelling_of_each_layer_of_a_unet_is_the_same_module(
    trees: dict[str, Any], model: str
) -> None:
    components = trees[model]
    unet = components["unet"]
    ldm = sgm_name(unet)
    spellings: list[Callable[[str], str]] = [
        lambda path: f"unet.{path}",
        lambda path: f"unet.base_model.model.{path}",
        lambda path: f"base_model.model.{path}",
        lambda path: f"base_model.model.unet.{path}",
        lambda path: path,
        lambda path: f"lora_unet_{flat(path)}",
        lambda path: f"lycoris_{flat(path)}",
        lambda path: f"lora_unet_{flat(ldm(path).removeprefix('model.diffusion_model.'))}",
        lambda path: ldm(path).removeprefix("model."),
        ldm,
        lambda path: f"diffusion_model.{path}",
    ]
    pipeline, alone = Finder(components), Finder({"": unet})
    count = 0
    for path, module in layers(unet):
        for spelling in spellings:
            name = spelling(path)
            assert pipeline.find(name) == Place("unet", path, module), name
            assert alone.find(name) == Place("", path, module), name
        count += 1
    assert count > 200


@pytest.mark.parametrize(
    ("component", "kohya"), [("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")]
)
@pytest.mark.parametrize("with_text_model", [True, False])
def test_text_model_may_be_absent_on_either_side(
    trees: dict[str, Any], component: str, kohya: str, with_text_model: bool
) -> None:
    found = trees["sdxl"][component]
    encoder: nn.Module = getattr(found, "text_model", found)
    root: nn.Module = nn.ModuleDict({"text_model": encoder}) if with_text_model else encoder
    finder = Finder({component: root})
    for path, module in layers(encoder):
        if path == "text_projection":
            continue
        real = f"text_model.{path}" if with_text_model else path
        for name in (
            f"{component}.text_model.{path}",
            f"{component}.{path}",
            f"{kohya}text_model_{flat(path)}",
            f"{kohya}{flat(path)}",
        ):
            assert finder.find(name) == Place(component, real, module), name


def test_the_original_layouts_upsamplers(trees: dict[str, Any]) -> None:
    for model, name, path in (
        ("sd1", "output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd1", "output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("sdxl", "output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
    ):
        found = Finder(trees[model]).find(f"lora_unet_{name}")
        assert isinstance(found, Place)
        assert found.path == path


# ---- small trees


def tree(*paths: str, leaf: Callable[[], nn.Module] = lambda: nn.Linear(2, 2)) -> nn.Module:
    root = nn.Module()
    for path in paths:
        parent = root
        *parts, last = path.split(".")
        for part in parts:
            child = parent._modules.get(part)
            if child is None:
                parent.add_module(part, child := nn.Module())
            parent = child
        parent.add_module(last, leaf())
    return root


ATTENTION = "mid_block.attentions.0.attn1"
UNET = ("conv_in", f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0")
TEXT = ("encoder.layers.0.q_proj",)

FOUND = [
    (f"unet.{ATTENTION}.processor.to_q", "unet", f"{ATTENTION}.to_q"),
    (f"lora_unet_{ATTENTION.replace('.', '_')}_to_out_0", "unet", f"{ATTENTION}.to_out.0"),
    ("lora_te_text_model_encoder_layers_0_q_proj", "text_encoder", TEXT[0]),
    ("lora_te3_encoder_layers_0_only", "text_encoder_2", "encoder.layers.0.only"),
    (
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.q_proj",
        "text_encoder",
        TEXT[0],
    ),
    ("encoder.layers.0.only", "text_encoder_2", "encoder.layers.0.only"),
    ("lycoris_encoder_layers_0_only", "text_encoder_2", "encoder.layers.0.only"),
    ("lora_unet_conv_in", "unet", "conv_in"),
    ("lora_transformer_conv_in", "unet", "conv_in"),
    ("lora_unet__conv_in", "unet", "conv_in"),
]


def small_pipeline() -> dict[str, nn.Module]:
    return {
        "unet": tree(*UNET),
        "text_encoder": tree(*TEXT),
        "text_encoder_2": tree(*TEXT, "encoder.layers.0.only"),
    }


@pytest.mark.parametrize(("name", "component", "path"), FOUND)
def test_names_of_a_pipeline(name: str, component: str, path: str) -> None:
    components = small_pipeline()
    expected = Place(component, path, components[component].get_submodule(path))
    assert Finder(components).find(name) == expected


REASONS = [
    ("unet.nothing", "no module has the name 'nothing'"),
    ("lora_unet_nothing", "no module has the name 'nothing'"),
    ("transformer.conv_in", "the target has no transformer"),
    ("vae.conv_in", "the target has no vae"),
    ("nothing", "no module has the name 'nothing'"),
    ("encoder.layers.0.q_proj", "it may be of text_encoder or text_encoder_2"),
    ("lora_unet_input_blocks_99_0_in_layers_2", "no module has the name"),
    ("lora_unet_input_blocks_" + "9" * 5000, "no module has the name"),
    *((name, "no module has the name") for name in ("", ".", "_", "_" * 4000, "a" * 4000)),
    *((name, "no module has the name") for name in ("unet.", "lora_unet_", "base_model.model.")),
    ("unet." + "conv_in." * 500, "no module has the name"),
]


@pytest.mark.parametrize(("name", "reason"), REASONS, ids=lambda text: text[:30])
def test_a_name_that_leads_nowhere_has_its_reason(name: str, reason: str) -> None:
    found = Finder(small_pipeline()).find(name)
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert len(found) < 200


def test_a_module_by_itself_takes_any_prefix_unless_its_own_names_fit() -> None:
    root = tree("conv_in", "unet.conv_in", "out")
    finder = Finder({"": root})
    for name, path in (
        ("unet.conv_in", "unet.conv_in"),
        ("unet.out", "out"),
        ("lora_te2_out", "out"),
        ("base_model.model.out", "out"),
        ("transformer.out", "out"),
    ):
        assert finder.find(name) == Place("", path, root.get_submodule(path))


def test_underscores_are_read_as_the_tree_has_them() -> None:
    root = tree("a_b.c", "d.e_f", "d_e.g", "x.y_z.w", "x_y.z.w")
    finder = Finder({"unet": root})
    for path in ("a_b.c", "d.e_f", "d_e.g"):
        assert finder.find(f"lora_unet_{flat(path)}") == Place(
            "unet", path, root.get_submodule(path)
        )
    assert finder.find("lora_unet_x_y_z_w") == "'x_y_z_w' may be 'x.y_z.w' or 'x_y.z.w'"
    assert isinstance(finder.find("unet.x_y.z.w"), Place)
    assert isinstance(finder.find("unet.a.b.c"), str)  # dots mean themselves


def test_a_layer_is_meant_before_a_container() -> None:
    root = tree("a_b", "a.b.c")
    assert Finder({"": root}).find("lora_unet_a_b") == Place("", "a_b", root.get_submodule("a_b"))


def test_one_module_of_two_names_is_one_place() -> None:
    root = tree("first", "second")
    root.add_module("second", root.get_submodule("first"))
    root.add_module("itself", root)
    finder = Finder({"text_encoder": root, "text_encoder_2": root})
    assert finder.find("lora_te1_first") == finder.find("lora_te2_second")
    assert finder.find("first") == finder.find("lora_te1_first")


def test_attention_that_reads_its_weights_without_calling_them_is_a_reason() -> None:
    root = tree("attn", leaf=lambda: nn.MultiheadAttention(4, 2))
    finder = Finder({"": root})
    for name in ("attn.out_proj", "lora_te1_attn_out_proj", "attn", "attn.in_proj", "attn_in_proj"):
        assert finder.find(name) == "its weight is read without calling it"


def test_compiled_modules_and_those_of_peft_keep_their_names() -> None:
    import peft

    root = tree(*TEXT)
    place = Place("text_encoder", TEXT[0], root.get_submodule(TEXT[0]))
    compiled, compiled_too = nn.Module(), nn.Module()  # as torch.compile wraps, in seconds less
    compiled.add_module("_orig_mod", root)
    wrapped: nn.Module = peft.get_peft_model(root, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert wrapped.get_submodule(f"base_model.model.{TEXT[0]}") is not place.module
    compiled_too.add_module("_orig_mod", wrapped)
    for target in (wrapped, root, compiled, compiled_too):
        assert Finder({"text_encoder": target}).find(f"lora_te1_{flat(TEXT[0])}") == place


@pytest.mark.parametrize(
    ("kind", "settings", "roles"),
    [
        ("LoraConfig", {"r": 2}, {"down", "up"}),
        ("LoraConfig", {"r": 2, "use_dora": True}, {"down", "up", "dora_scale"}),
        ("LoHaConfig", {"r": 2}, {f"hada_w{n}_{half}" for n in "12" for half in "ab"}),
        ("LoKrConfig", {"r": 1, "decompose_both": True}, {"lokr_w1", "lokr_w2"}),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_every_key_that_peft_writes_is_read(
    kind: str, settings: dict[str, Any], roles: set[str], saved: bool
) -> None:
    import peft

    root = tree(*TEXT)
    finder = Finder({"": root})
    config = getattr(peft, kind)(target_modules=["q_proj"], **settings)
    wrapped = peft.get_peft_model(root, config)
    names = peft.get_peft_model_state_dict(wrapped) if saved else wrapped.state_dict()
    found = [key for name in names if (key := keys.split(name))]
    assert {key.role for key in found} == roles
    for key in found:
        place = finder.find(key.module)
        assert isinstance(place, Place), key
        assert place.path == TEXT[0]


def test_what_pefts_layer_holds_is_not_a_name_of_its_own() -> None:
    root = tree("a.base_layer", "a.lora_A.default", "b._orig_mod.c")
    finder = Finder({"": root})
    assert finder.find("lora_unet_a") == Place("", "a", root.get_submodule("a.base_layer"))
    assert finder.find("a.lora_A.default") == "no module has the name 'a.lora_A.default'"
    assert finder.find("b.c") == Place("", "b.c", root.get_submodule("b._orig_mod.c"))


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ("pass", True),
        ("root.a.b.weight = nn.Parameter(torch.zeros(1, 1))", True),
        ("root.a.b = nn.Linear(1, 1)", False),
        ("root.a.c = nn.Linear(1, 1)", False),
        ("del root.a.b", False),
        ("root.a = nn.Sequential()", False),
        ("root.a.b.inner = nn.Linear(1, 1)", False),  # a layer becomes a container
        ("root.a = torch.nn.ModuleDict({'base_layer': root.a})", False),
        ("root.w.base_layer = nn.Linear(1, 1)", False),
        ("root.a._modules['b'], root.a._modules['d'] = root.a.d, root.a.b", False),
    ],
)
def test_a_tree_tells_whether_it_is_current(change: str, current: bool) -> None:
    root = tree("a.b", "a.d", "w.base_layer")
    finder = Finder({"unet": root})
    exec(change, {"root": root, "nn": nn, "torch": torch})
    assert finder.is_current() is current


@pytest.mark.timeout(60)  # a name that is compared with every module would take minutes
def test_many_long_names_cost_a_lookup_each() -> None:
    finder = Finder({"unet": tree(*(f"blocks.{i}.layer" for i in range(2000)))})
    shapes = {}
    for i in range(10_000):
        key = keys.split(f"lora_unet_blocks_{i}_{'a_' * 2000}.lora_down.weight")
        assert key is not None
        assert isinstance(finder.find(key.module), str)
        shapes[key.module] = {"down": (1, 1)}
    assert family.of_adapter(shapes) == ""


# ---- families


def attn2(width: int, prefix: str = "lora_unet_down_blocks_2_attentions_0") -> dict[str, Any]:
    return {f"{prefix}_transformer_blocks_0_attn2_to_k": {"down": (4, width), "up": (640, 4)}}


def one(key: str, inputs: int, outputs: int = 8, **others: tuple[int, ...]) -> dict[str, Any]:
    return {key: {"down": (4, inputs), "up": (outputs, 4), **others}}


def text(key: str, inputs: int) -> dict[str, Any]:
    return one(f"{key}text_model_encoder_layers_0_self_attn_q_proj", inputs)


FLUX_BLOCK, SD3_BLOCK = "transformer.transformer_blocks.3.attn", "lora_unet_joint_blocks_3"
DOWN = "unet.down_blocks.1.attentions.0.transformer_blocks"
ATTN2 = f"{DOWN}.0.attn2.to_v"
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("sd1", attn2(768)),
    ("sd2", attn2(1024)),
    ("sdxl", attn2(2048)),
    ("sdxl-refiner", attn2(1280)),
    ("sd1", attn2(768, "diffusion_model.input_blocks.4.1")),
    ("sd1", attn2(768, "lora_unet_mid_block_attentions_0") | attn2(5)),
    ("", attn2(224)),
    ("", attn2(768) | attn2(2048, "lora_unet_middle_block_1")),
    ("sd1", {ATTN2: {"hada_w1_a": (320, 4), "hada_w1_b": (4, 768)}}),
    ("sdxl", {ATTN2: {"lokr_w1": (8, 16), "lokr_w2_a": (40, 4), "lokr_w2_b": (4, 128)}}),
    ("sd2", {ATTN2: {"diff": (320, 1024)}}),
    ("", {ATTN2: {"down": (), "up": (3,), "diff": (1,), "lokr_w1": ()}}),
    ("sdxl", one(f"{DOWN}.1.attn1.to_q", 640)),
    ("sdxl-refiner", one(f"{DOWN}.3.attn1.to_q", 768)),
    ("sdxl", one("lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q", 1280)),
    ("sd1", {"lora_unet_down_blocks_0_attentions_0_proj_in": {"down": (4, 320, 1, 1)}}),
    ("sd2", {"lora_unet_input_blocks_1_1_proj_in": {"down": (4, 320)}}),
    ("", one("lora_unet_up_blocks_2_resnets_0_time_emb_proj", 1280)),
    ("sdxl", text("lora_te1_", 768) | text("lora_te2_", 1280)),
    ("sdxl", text("text_encoder.", 768) | text("text_encoder_2.", 1280)),
    ("sd2", text("lora_te_", 1024)),
    ("", text("lora_te1_", 768)),
    ("flux", one("lora_unet_double_blocks_18_img_attn_qkv", 3072, 9216)),
    ("flux", one("diffusion_model.single_blocks.0.linear1", 3072, 21504)),
    ("flux2", one("diffusion_model.single_blocks.0.linear1", 3072, 27648)),
    ("flux2", one("diffusion_model.double_blocks.0.img_attn.qkv", 6144)),
    ("hunyuan-video", one("lora_unet_single_blocks_39_linear1", 3072, 21504)),
    ("flux", one("transformer.single_transformer_blocks.37.attn.to_q", 3072)),
    ("hunyuan-video", one("transformer.single_transformer_blocks.39.attn.to_q", 3072)),
    ("", one("transformer.transformer_blocks.3.attn.to_q", 3072)),
    ("sd3", one("transformer.transformer_blocks.3.attn.add_q_proj", 1536)),
    ("sd3", one("lora_unet_joint_blocks_3_x_block_attn_qkv", 1536)),
    ("qwen-image", one("transformer.transformer_blocks.59.img_mlp.net.0.proj", 3072)),
    ("wan", one("diffusion_model.blocks.0.self_attn.q", 5120)),
    ("wan", one("transformer.blocks.0.attn2.to_out.0", 1536)),
    ("wan", one("lora_transformer_blocks_0_attn2_to_q", 5120)),
    ("", one("transformer.blocks.0.attn2.to_out.0", 640)),
    ("z-image", one("diffusion_model.layers.0.attention.to_q", 3840)),
    ("", one("base_model.model.model.layers.0.self_attn.q_proj", 4096)),
    ("", {}),
    ("", {"": {}, "_" * 4000: {"down": ()}, "a" * 4000: {"alpha": ()}}),
]


@pytest.mark.parametrize(("expected", "shapes"), FAMILIES)
def test_the_family_is_told_from_shapes(expected: str, shapes: dict[str, Any]) -> None:
    assert family.of_adapter(json.loads(json.dumps(shapes))) == expected


def test_the_family_of_models(trees: dict[str, Any]) -> None:
    models: list[tuple[str, dict[str, nn.Module]]] = [
        ("sdxl", trees["sdxl"]),
        ("sd1", trees["sd1"]),
        ("sd1", {"": trees["sd1"]["unet"]}),
        ("", {"": trees["sdxl"]["text_encoder"]}),
        ("", {"": nn.Linear(2, 2)}),
        ("", {}),
    ]
    for expected, components in models:
        assert family.of_components(components) == expected
        assert family.of_trees(Finder(components).trees) == expected


def test_an_adapter_of_a_model_is_of_the_models_family(trees: dict[str, Any]) -> None:
    for model in ("sdxl", "sd1"):
        unet = trees[model]["unet"]
        ldm = sgm_name(unet)
        for spelling in (flat, lambda path, ldm=ldm: flat(re.sub("^model.", "", ldm(path)))):
            adapter = {
                f"lora_unet_{spelling(path)}": {"down": (4, *module.weight.shape[1:])}
                for path, module in layers(unet)
                if isinstance(module, nn.Linear)
            }
            assert family.of_adapter(adapter) == model
