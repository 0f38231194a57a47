"""A key of an adapter's file: which module it is for, and what it is there."""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import UnimplementedError
from .words import shown


@dataclass(frozen=True, slots=True)
class Key:
    """`module` as the file spells it, without the role's own words."""

    module: str
    role: str


# Roles that are one tensor, not a module with a weight; all programs spell them alike.
_TENSORS = frozenset(
    (
        *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm"),
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    )
)

# Names of modules in an adapter; their tensor is `weight`, or PEFT left that word out.
_MODULES = {
    "lora_down": "down",
    "lora_up": "up",
    "lora_mid": "mid",
    "lora_A": "down",
    "lora_B": "up",
    "lora_magnitude_vector": "dora_scale",
    "lora_embedding_A": "embedding_down",
    "lora_embedding_B": "embedding_up",
}

# What may be followed by the name of the adapter.
_OF_PEFT = (*_MODULES, "hada_", "lokr_")

# Kinds that change a layer's result otherwise than by what we apply, by the last word of a key.
_UNIMPLEMENTED = {
    "oft_blocks": "OFT or BOFT",
    "oft_diag": "OFT",
    "oft_R": "OFT",
    "oft_r": "OFT",
    "boft_R": "BOFT",
    "boft_s": "BOFT",
    "on_input": "(IA)^3",
    "ia3_l": "(IA)^3",
    "reshape_weight": "reshape_weight (the base layer gets another shape)",
    "bias_indices": "sparse bias (bias_indices)",
    "bias_values": "sparse bias (bias_indices)",
    "bias_size": "sparse bias (bias_indices)",
    "lokr_t1": "LoKr with a decomposed first factor (lokr_t1)",
    "lora_E": "AdaLoRA",
    "lambda_layer": "T-LoRA",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
}
_GLORA = frozenset(("a1", "a2", "b1", "b2", "bm"))
_TRAINERS = ("lora_", "lycoris_", "diffusion_model.")  # names that only adapters have

# What old versions of diffusers put between a layer's name and `down` or `up`.
_HOLDERS = frozenset(("lora", "lora_layer", "lora_linear_layer", "lora_conv2d_layer"))
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split(key: str) -> Key | None:
    """None where the key is not an adapter's; UnimplementedError where its kind is not applied."""
    rest, _, tensor = key.rpartition(".")
    if tensor not in ("weight", "bias"):
        rest, tensor = key, ""
    found = _with_role(key, rest, tensor) or _of_old_diffusers(rest, tensor)
    if found is None:
        rest, _, adapter = rest.rpartition(".")
        word = rest.rpartition(".")[2]
        if adapter and (word.startswith(_OF_PEFT) or word in _UNIMPLEMENTED):
            found = _with_role(key, rest, tensor)
    return found


def _with_role(key: str, name: str, tensor: str) -> Key | None:
    module, _, word = name.rpartition(".")
    role = _role(word, tensor)
    if role is None:
        _refuse_unimplemented(key, module, word, tensor)
    if role is None or not module:
        return None
    if role == "alpha":
        module = _old_target(module) or module
    return Key(module, role)


def _of_old_diffusers(name: str, tensor: str) -> Key | None:
    module, _, word = name.rpartition(".")
    target = _old_target(module) if word in ("down", "up") and tensor == "weight" else ""
    return Key(target, word) if target else None


def _role(word: str, tensor: str) -> str | None:
    if tensor == "bias":
        return "up_bias" if word in ("lora_up", "lora_B") else None
    if word in _MODULES:
        return _MODULES[word]
    return word if word in _TENSORS and not tensor else None


def _old_target(module: str) -> str:
    """The layer that an old name of diffusers means; "" where it is not one."""
    parent, _, last = module.rpartition(".")
    if last in _HOLDERS:
        return parent
    if not last.endswith("_lora"):
        return ""
    parent, layer = parent.removesuffix(".processor"), last.removesuffix("_lora")
    if parent.endswith("self_attn"):
        layer = _OLD_TEXT.get(layer, layer)
    elif layer == "to_out":
        layer = "to_out.0"
    return f"{parent}.{layer}" if parent else layer


def _refuse_unimplemented(key: str, module: str, word: str, tensor: str) -> None:
    kind = _UNIMPLEMENTED.get(word)
    if kind is None and word in _GLORA and tensor and module.startswith(_TRAINERS):
        kind = "GLoRA"
    if kind is not None:
        raise UnimplementedError(
            f"{shown(key)}: this version cannot apply {kind}; it applies LoRA, LoCon, LoHa, "
            "LoKr, DoRA and differences of weights, biases and norms: convert it to one of these"
        )
