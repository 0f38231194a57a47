"""Keys of adapters' files: the module, the role, and the kinds that are refused."""

from __future__ import annotations

import pytest

from modelbroker import UnimplementedError
from modelbroker._lora import keys
from modelbroker._lora.keys import Key

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn"

ROLES = [
    ("lora_unet_a.lora_down.weight", "lora_unet_a", "down"),
    ("lora_unet_a.lora_up.weight", "lora_unet_a", "up"),
    ("lora_unet_a.lora_mid.weight", "lora_unet_a", "mid"),
    ("lora_unet_a.alpha", "lora_unet_a", "alpha"),
    ("lora_unet_a.dora_scale", "lora_unet_a", "dora_scale"),
    ("lycoris_a.hada_w1_a", "lycoris_a", "hada_w1_a"),
    ("lycoris_a.hada_t2", "lycoris_a", "hada_t2"),
    ("lycoris_a.lokr_w1", "lycoris_a", "lokr_w1"),
    ("lycoris_a.lokr_w2_b", "lycoris_a", "lokr_w2_b"),
    ("lycoris_a.lokr_t2", "lycoris_a", "lokr_t2"),
    ("lycoris_a.diff", "lycoris_a", "diff"),
    ("lycoris_a.diff_b", "lycoris_a", "diff_b"),
    ("lycoris_a.w_norm", "lycoris_a", "w_norm"),
    ("lycoris_a.b_norm", "lycoris_a", "b_norm"),
    ("base_model.model.a.b.lora_A.weight", "base_model.model.a.b", "down"),
    ("base_model.model.a.b.lora_B.default.weight", "base_model.model.a.b", "up"),
    ("a.b.lora_A.weight.weight", "a.b", "down"),  # an adapter of the name "weight"
    ("a.b.lora_A", "a.b", "down"),
    ("a.b.lora_B.bias", "a.b", "up_bias"),
    ("a.b.lora_B.default.bias", "a.b", "up_bias"),
    ("a.b.lora_magnitude_vector", "a.b", "dora_scale"),
    ("a.b.lora_magnitude_vector.weight", "a.b", "dora_scale"),
    ("a.b.lora_magnitude_vector.default", "a.b", "dora_scale"),
    ("a.b.lora_magnitude_vector.default.weight", "a.b", "dora_scale"),
    ("a.b.lora_embedding_A", "a.b", "embedding_down"),
    ("a.b.lora_embedding_B.default", "a.b", "embedding_up"),
    ("a.b.hada_w2_b.default", "a.b", "hada_w2_b"),
    ("a.b.lokr_w1.default", "a.b", "lokr_w1"),
    (f"{LAYER}.to_q.lora.down.weight", f"{LAYER}.to_q", "down"),
    (f"{LAYER}.to_q.lora_linear_layer.up.weight", f"{LAYER}.to_q", "up"),
    (f"{LAYER}.processor.to_q_lora.down.weight", f"{LAYER}.to_q", "down"),
    (f"{LAYER}.processor.to_q_lora.alpha", f"{LAYER}.to_q", "alpha"),
    (f"{LAYER}.processor.to_out_lora.up.weight", f"{LAYER}.to_out.0", "up"),
    (f"{TEXT}.to_v_lora.up.weight", f"{TEXT}.v_proj", "up"),
    (f"{TEXT}.to_out_lora.down.weight", f"{TEXT}.out_proj", "down"),
    ("_" * 9 + ".alpha", "_" * 9, "alpha"),
    ("a" * 4000 + ".diff", "a" * 4000, "diff"),
    ("a." * 2000 + "lora_A.weight", ("a." * 2000)[:-1], "down"),
]


@pytest.mark.parametrize(("key", "module", "role"), ROLES)
def test_each_spelling_has_its_module_and_role(key: str, module: str, role: str) -> None:
    assert keys.split(key) == Key(module, role)


OTHERS = [
    *("", ".", "..", "_", "____", ".weight", "alpha", "lora_A.weight", ".lora_A.weight"),
    *("model.diffusion_model.input_blocks.0.0.weight", "conv_in.bias", "a.down.weight"),
    *("a.lora_A.bias", "a.lora_A.one.two.weight", "a.alpha.weight", "a.diff.weight"),
    *("a.base_layer.weight", "decoder.a1.weight", "b1.bias", "lora_unet_a.weight"),
    *("lora_down" * 400, "." * 4000, "lora_A." * 600, "\0.\n.\ud800"),
]


@pytest.mark.parametrize("key", OTHERS, ids=lambda key: repr(key)[:40])
def test_other_keys_belong_to_no_adapter(key: str) -> None:
    assert keys.split(key) is None


REFUSED = [
    ("lora_unet_a.oft_blocks", "OFT"),
    ("a.oft_R.default.weight", "OFT"),
    ("a.boft_R.default", "BOFT"),
    ("lora_unet_a.b1.weight", "GLoRA"),
    ("lycoris_a.bm.weight", "GLoRA"),
    ("lora_unet_a.on_input", "(IA)^3"),
    ("base_model.model.a.ia3_l", "(IA)^3"),
    ("diffusion_model.img_in.reshape_weight", "reshape_weight"),
    ("lora_unet_a.bias_indices", "bias_indices"),
    ("lora_unet_a.bias_values", "bias_indices"),
    ("base_model.model.a.lora_E", "AdaLoRA"),
    ("base_model.model.a.vera_lambda_b.default", "VeRA"),
    ("a" * 4000 + ".oft_diag", "OFT"),
]


@pytest.mark.parametrize(("key", "kind"), REFUSED, ids=lambda text: text[-40:])
def test_kinds_that_are_not_applied_are_named_with_what_is(key: str, kind: str) -> None:
    with pytest.raises(UnimplementedError) as caught:
        keys.split(key)
    message = str(caught.value)
    assert kind in message
    assert key[:60] in message
    assert "convert it" in message
    assert len(message) < 400
