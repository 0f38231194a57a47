"""Tensors that do not belong together, changes for another layer, layers that take none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from modelbroker import FailedPreconditionError, InvalidArgumentError
from modelbroker._lora import kinds, layers
from modelbroker._lora.kinds import Part
from modelbroker._lora.layers import Layer

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"

LORA: Shapes = {"down": (2, 6), "up": (8, 2)}
LOHA: Shapes = {
    "hada_w1_a": (8, 2),
    "hada_w1_b": (2, 6),
    "hada_w2_a": (8, 2),
    "hada_w2_b": (2, 6),
}
LOHA_CORES: Shapes = {
    "hada_w1_a": (2, 8),
    "hada_w1_b": (2, 6),
    "hada_w2_a": (2, 8),
    "hada_w2_b": (2, 6),
    "hada_t1": (2, 2, 3, 3),
    "hada_t2": (2, 2, 3, 3),
}
LOKR: Shapes = {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 3)}


def read(shapes: Shapes, *, peft: bool = False) -> Part:
    group = {role: torch.zeros(shape) for role, shape in shapes.items()}
    return kinds.read("unet.mid.attn", group, alpha=1.0, rslora=False, peft=peft)


def without(shapes: Shapes, role: str) -> Shapes:
    return {other: shape for other, shape in shapes.items() if other != role}


BAD: list[tuple[Shapes, str]] = [
    # A half is missing.
    (without(LORA, "up"), r"'up' is missing; there are 'down'"),
    (without(LORA, "down"), r"'down' is missing"),
    ({"embedding_down": (2, 6)}, r"'embedding_up' is missing"),
    ({"up_bias": (8,)}, r"'down' is missing"),
    *((without(LOHA, role), f"'{role}' is missing") for role in LOHA),
    (without(LOHA_CORES, "hada_t1"), r"'hada_t1' is missing"),
    (without(LOHA_CORES, "hada_t2"), r"'hada_t2' is missing"),
    (without(LOKR, "lokr_w1"), r"'lokr_w1_a' is missing"),
    (without(LOKR, "lokr_w2_b"), r"'lokr_w2_b' is missing"),
    ({"lokr_w1_a": (2, 2)}, r"'lokr_w1_b' is missing"),
    ({}, r"no change of a weight"),
    ({"alpha": ()}, r"no change of a weight in \['alpha'\]"),
    ({"dora_scale": (8, 1)}, r"no change of a weight"),
    # Ranks disagree.
    ({"down": (2, 6), "up": (8, 3)}, r"'down' is \[2, 6\], 'up' is \[8, 3\]"),
    ({"down": (2, 6), "up": (2, 8)}, r"'up' is \[2, 8\]"),
    ({**LORA, "mid": (2, 3, 3, 3)}, r"'mid' is \[2, 3, 3, 3\]"),
    ({**LORA, "mid": (3, 2, 3, 3)}, r"'mid' is \[3, 2, 3, 3\]"),
    ({"embedding_down": (2, 6), "embedding_up": (8, 3)}, r"'embedding_up' is \[8, 3\]"),
    ({**LOHA, "hada_w1_b": (3, 6)}, r"'hada_w1_b' is \[3, 6\]"),
    ({**LOHA, "hada_w2_b": (2, 7)}, r"'hada_w2_b' is \[2, 7\]"),
    ({**LOHA, "hada_w2_a": (9, 2)}, r"'hada_w2_a' is \[9, 2\]"),
    ({**LOHA_CORES, "hada_t1": (3, 2, 3, 3)}, r"'hada_t1' is \[3, 2, 3, 3\]"),
    ({**LOHA_CORES, "hada_t2": (2, 2, 1, 1)}, r"'hada_t2' is \[2, 2, 1, 1\]"),
    ({**LOKR, "lokr_w2_b": (3, 3)}, r"'lokr_w2_b' is \[3, 3\]"),
    ({**LOKR, "lokr_t2": (3, 2, 3, 3)}, r"'lokr_t2' is \[3, 2, 3, 3\]"),
    ({**LORA, "up_bias": (7,)}, r"'up_bias' is \[7\]"),
    # Not matrices.
    ({**LORA, "down": ()}, r"'down' must be a matrix, and is a scalar"),
    ({**LORA, "up": (8,)}, r"'up' must be a matrix, and is \[8\]"),
    ({**LORA, "down": (2, 6, 1, 1, 1, 1)}, r"'down' must be a matrix"),
    ({**LORA, "up": (8, 2, 3, 3)}, r"'up' must be a matrix"),
    ({"down": (2, 6, 3, 3), "mid": (2, 2, 3, 3), "up": (8, 2)}, r"'down' must be a matrix"),
    ({"down": (0, 6), "up": (8, 0)}, r"'down' must be a matrix, and is \[0, 6\]"),
    ({**LORA, "up_bias": ()}, r"'up_bias' must be a vector, and is a scalar"),
    ({**LOKR, "lokr_w1": (2, 2, 3, 3)}, r"'lokr_w1' must be a matrix"),
    ({**LOKR, "lokr_w1": ()}, r"'lokr_w1' must be a matrix, and is a scalar"),
    ({"diff": ()}, r"'diff' must be a vector or a matrix, and is a scalar"),
    ({"diff_b": ()}, r"'diff_b' must be a vector, and is a scalar"),
    ({"diff_b": (8, 2)}, r"'diff_b' must be a vector, and is \[8, 2\]"),
    ({"w_norm": ()}, r"'w_norm' must be a vector, and is a scalar"),
    ({**LORA, "dora_scale": ()}, r"'dora_scale' must be a vector, and is a scalar"),
    ({**LORA, "dora_scale": (8, 6)}, r"'dora_scale' must be a vector, and is \[8, 6\]"),
    # Two kinds in one.
    ({**LORA, **LOHA}, r"LoHa and of LoRA"),
    ({**LORA, "diff": (8, 6)}, r"LoRA and of a full change"),
    ({**LOKR, "lokr_w2": (4, 3)}, r"'lokr_w2' is there whole and as factors"),
]


@pytest.mark.parametrize(("shapes", "words"), BAD)
def test_bad_groups_name_module_and_tensor(shapes: Shapes, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^unet\.mid\.attn: .*{words}"):
        read(shapes)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 8),
    "conv2d": lambda: nn.Conv2d(6, 8, 3),
    "embedding": lambda: nn.Embedding(6, 8),
    "norm": lambda: nn.LayerNorm(8),
}


def layer(name: str) -> Layer:
    made = layers.layer_of(MODULES[name]())
    assert isinstance(made, Layer)
    return made


MISFITS: list[tuple[Shapes, str, str]] = [
    ({"down": (2, 7), "up": (8, 2)}, "linear", "a weight of [8, 7], and this Linear's is [8, 6]"),
    ({"down": (2, 6), "up": (9, 2)}, "linear", "a weight of [9, 6], and this Linear's is [8, 6]"),
    ({"down": (2, 6, 3, 3), "up": (8, 2, 1, 1)}, "linear", "a weight of [8, 6, 3, 3]"),
    ({"down": (2, 6), "up": (8, 2)}, "conv2d", "this Conv2d's is [8, 6, 3, 3]"),
    ({"down": (2, 6, 1, 9), "up": (8, 2, 1, 1)}, "conv2d", "a weight of [8, 6, 1, 9]"),
    ({**LORA, "mid": (2, 2, 3, 3)}, "linear", "a weight of [8, 6, 3, 3]"),
    ({**LORA, "mid": (2, 2, 1, 1)}, "conv2d", "a weight of [8, 6, 1, 1]"),
    ({**LORA, "mid": (2, 2)}, "embedding", "this Embedding's is [6, 8]"),
    (LORA, "norm", "LoRA cannot be applied to a norm"),
    ({**LORA, "diff_b": (9,)}, "linear", "a bias of 9 values, and this Linear has 8 outputs"),
    (LOHA, "conv2d", "a weight of [8, 6], and this Conv2d's is [8, 6, 3, 3]"),
    (LOHA_CORES, "linear", "a weight of [8, 6, 3, 3], and this Linear's is [8, 6]"),
    (LOKR, "conv2d", "a weight of [8, 6], and this Conv2d's is [8, 6, 3, 3]"),
    ({"lokr_w1": (2, 5), "lokr_w2": (4, 3)}, "linear", "a weight of [8, 15]"),
    ({"lokr_w1": (2, 2), "lokr_w2": (4, 3, 3, 3)}, "linear", "a weight of [8, 6, 3, 3]"),
    (LOKR, "embedding", "LoKr cannot be applied to an embedding"),
    ({"diff": (6, 8)}, "linear", "a weight of [6, 8], and this Linear's is [8, 6]"),
    ({"diff": (8,)}, "linear", "a weight of [8], and this Linear's is [8, 6]"),
    ({"diff": (8, 6, 9)}, "conv2d", "a weight of [8, 6, 9]"),
    ({"w_norm": (9,)}, "norm", "a weight of [9], and this LayerNorm's is [8]"),
    ({"w_norm": (8,)}, "linear", "a weight of [8], and this Linear's is [8, 6]"),
    ({**LORA, "dora_scale": (9, 1)}, "linear", "9 lengths, and this Linear has 8 outputs"),
    ({**LORA, "dora_scale": (9,)}, "linear", "9 lengths, and this Linear has 8 outputs"),
    ({**LORA, "dora_scale": (1, 8)}, "linear", "8 lengths, and this Linear has 6 inputs"),
    ({**LORA, "dora_scale": (1, 6)}, "embedding", "DoRA by columns cannot be applied to Embedding"),
    ({"diff": (8,), "dora_scale": (8, 1)}, "norm", "DoRA cannot be applied to LayerNorm"),
]


@pytest.mark.parametrize(("shapes", "name", "words"), MISFITS)
def test_misfits_say_both_shapes(shapes: Shapes, name: str, words: str) -> None:
    assert words in read(shapes).misfit(layer(name))


@pytest.mark.parametrize(
    ("shape", "peft", "columns"),
    [
        ((8,), False, False),
        ((8,), True, False),
        ((8, 1), False, False),
        ((1, 8), False, True),
        ((1, 8), True, True),
        ((8, 1, 1, 1), False, False),
        ((1, 8, 1, 1), False, True),
        ((1, 8, 1, 1), True, False),
        ((1, 8, 1), True, False),
        ((1, 1), False, True),
    ],
)
def test_the_shape_tells_rows_from_columns(
    shape: tuple[int, ...], peft: bool, columns: bool
) -> None:
    part = read({"down": (2, 8), "up": (8, 2), "dora_scale": shape}, peft=peft)
    assert part.magnitude is not None
    assert part.magnitude.columns is columns


def test_dora_of_one_output_is_by_rows() -> None:
    part = read({"down": (2, 6), "up": (1, 2), "dora_scale": (1, 1)})
    assert part.magnitude is not None
    assert not part.magnitude.columns


class Packed(nn.Module):
    """As quantised layers are: sizes, a weight that cannot be multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.weight = nn.Parameter(torch.zeros(24, dtype=torch.uint8), requires_grad=False)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], 8)


def test_a_packed_layer_takes_what_does_not_need_its_weight() -> None:
    module = Packed()
    made = layers.layer_of(module)
    assert isinstance(made, Layer)
    assert made.weight() is None
    part = kinds.read(
        "m", {"down": torch.ones(2, 6), "up": torch.ones(8, 2)}, alpha=2.0, rslora=False, peft=False
    )
    assert part.misfit(made) == ""
    beside = part.beside(made, module.weight)
    assert beside.dtype == torch.float32
    x = torch.ones(1, 6, dtype=torch.float16)
    y = beside.add(module(x), x, None, 0.5)
    assert y.dtype == torch.float16
    assert torch.equal(y, torch.full((1, 8), 6.0, dtype=torch.float16))


@pytest.mark.parametrize(
    "weight", [None, torch.zeros(24, dtype=torch.uint8), torch.zeros(8, 6, device="meta")]
)
def test_dora_needs_the_values_of_the_weight(weight: Tensor | None) -> None:
    part = read({**LORA, "dora_scale": (8, 1)})
    with pytest.raises(FailedPreconditionError, match=r"^unet\.mid\.attn: DoRA needs the values"):
        part.beside(layer("linear"), weight)


class Scaled(nn.Embedding):
    """As those of Gemma: its output is multiplied by a number, which it keeps as a tensor."""

    embed_scale: Tensor

    def __init__(self) -> None:
        super().__init__(6, 8)
        self.register_buffer("embed_scale", torch.tensor(2.5))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


def test_an_embeddings_own_factor_counts() -> None:
    module = Scaled()
    made = layers.layer_of(module)
    assert isinstance(made, Layer)
    down, up = torch.randn(2, 6), torch.randn(8, 2)
    group = {"embedding_down": down, "embedding_up": up}
    beside = kinds.read("m", group, alpha=None, rslora=False, peft=False).beside(
        made, module.weight
    )
    numbers = torch.tensor([0, 3, 5])
    wanted = (module.weight + (up @ down).t())[numbers] * 2.5
    torch.testing.assert_close(beside.add(module(numbers), numbers, None, 1.0), wanted)


REASONS: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Conv2d(6, 6, 3, groups=6), "it is a grouped convolution (6 groups)"),
    (lambda: nn.ConvTranspose2d(6, 8, 3), "it is a transposed convolution"),
    (lambda: nn.Embedding(6, 8, max_norm=1.0), "it writes its own weight (max_norm)"),
    (lambda: nn.LayerNorm(8, elementwise_affine=False), "it has no weight"),
    (lambda: nn.GroupNorm(2, 8, affine=False), "it has no weight"),
    (lambda: nn.RMSNorm(8, elementwise_affine=False), "it has no weight"),
    (lambda: nn.MultiheadAttention(8, 2).out_proj, "its weight is read without calling it"),
    (lambda: nn.MultiheadAttention(8, 2), "adapters cannot run beside MultiheadAttention"),
    (lambda: nn.BatchNorm2d(8), "adapters cannot run beside BatchNorm2d"),
    (lambda: nn.Bilinear(2, 3, 4), "adapters cannot run beside Bilinear"),
    (nn.Identity, "adapters cannot run beside Identity"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS)
def test_layers_that_take_no_adapter_say_why(make: Any, reason: str) -> None:
    assert layers.layer_of(make()) == reason
