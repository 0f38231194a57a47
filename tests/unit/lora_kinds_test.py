"""Each kind of adapter beside each type of layer equals a layer whose weight was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from modelbroker._lora import kinds, layers
from modelbroker._lora.beside import Beside
from modelbroker._lora.layers import Layer

Group: TypeAlias = "dict[str, Tensor]"

RANK = 3
WEIGHTS = (1.0, 0.3, -1.0, 0.5)


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Base:
    """A layer and an input for it."""

    make: Callable[[], nn.Module]
    size: tuple[int, ...] = (2, 5, 6)
    numbers: int = 0  # the input are numbers below this

    def input(self) -> Tensor:
        if self.numbers:
            return torch.randint(0, self.numbers, self.size)
        return torch.randn(self.size, dtype=torch.float64)


def conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    made: nn.Module = Conv1D(8, 6)
    return made


LINEAR = Base(lambda: nn.Linear(6, 8))
CONV2D = Base(lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 7, 9))
MATRICES = {
    "linear": LINEAR,
    "linear without a bias": Base(lambda: nn.Linear(6, 8, bias=False)),
    "Conv1D of transformers": Base(conv1d_of_transformers),
}
CONVOLUTIONS = {
    "conv1d": Base(lambda: nn.Conv1d(6, 8, 3, stride=2, padding=2, dilation=2), (2, 6, 11)),
    "conv2d": CONV2D,
    "conv2d, all settings": Base(
        lambda: nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False),
        (2, 6, 7, 9),
    ),
    "conv2d of one picture": Base(lambda: nn.Conv2d(6, 8, 3, padding="same"), (6, 7, 9)),
    "conv2d, circular": Base(
        lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (2, 6, 7, 9)
    ),
    "conv3d": Base(lambda: nn.Conv3d(6, 8, (1, 2, 3), padding=(0, 1, 1)), (2, 6, 3, 4, 5)),
}
CONV2D_1X1 = {"conv2d 1x1": Base(lambda: nn.Conv2d(6, 8, 1), (2, 6, 4, 5))}
EMBEDDING = Base(lambda: nn.Embedding(6, 8, padding_idx=1), (2, 5), numbers=6)


def made(base: Base, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Layer, Tensor]:
    module = base.make().to(dtype)
    layer = layers.layer_of(module)
    assert isinstance(layer, Layer), layer
    x = base.input()
    return module, layer, x if base.numbers else x.to(dtype)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def lora(layer: Layer) -> Group:
    return {"down": random(RANK, layer.in_features), "up": random(layer.out_features, RANK)}


def locon(layer: Layer) -> Group:
    ones = (1,) * len(layer.kernel)
    return {
        "down": random(RANK, layer.in_features, *layer.kernel),
        "up": random(layer.out_features, RANK, *ones),
    }


# Kind: what makes its tensors, the layers that it is for.
CASES: list[tuple[str, Callable[[Layer], Group], dict[str, Base]]] = [
    ("LoRA", lora, {**MATRICES, "embedding": EMBEDDING}),
    ("LoRA", locon, CONV2D_1X1),
    ("LoCon", locon, CONVOLUTIONS),
]


def forward(module: nn.Module, layer: Layer, besides: list[tuple[Beside, float]], x: Tensor) -> Any:
    """As the forward of a layer with adapters does it."""
    gains = [gain for beside, weight in besides if (gain := beside.gain(weight)) is not None]
    plain = module(x)
    y = module(x * (1 + sum(gains))) if gains else plain
    for beside, weight in besides:
        without = layer.without_bias(plain) if beside.needs_plain else None
        y = beside.add(y, x, without, weight)
    return y


def changed_weights(
    module: nn.Module, layer: Layer, group: Group, scale: float
) -> tuple[Tensor, Tensor | None]:
    """The layer's weight and bias with all of the adapter, by the formulae of the references."""
    weight: Any = module.weight
    bias: Any = module.bias if hasattr(module, "bias") else None
    down, up = group["down"].flatten(1), group["up"].flatten(1)
    delta = (scale * up @ down).reshape(layer.shape)
    return weight + (delta.t() if layer.transposed else delta), bias


def with_weights(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Any:
    named = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return torch.func.functional_call(module, named, (x,))


def blend(old: Tensor | None, new: Tensor | None, weight: float) -> Tensor | None:
    if new is None:
        return None
    old = torch.zeros_like(new) if old is None else old
    return old + weight * (new - old)


def each(cases: list[tuple[str, Callable[[Layer], Group], dict[str, Base]]]) -> list[Any]:
    return [
        pytest.param(kind, group, base, id=f"{kind}-{name}")
        for kind, group, bases in cases
        for name, base in bases.items()
    ]


@pytest.mark.parametrize(("kind", "group", "base"), each(CASES))
def test_equals_changed_weights(kind: str, group: Callable[[Layer], Group], base: Base) -> None:
    module, layer, x = made(base)
    tensors = group(layer)
    part = kinds.read("module", tensors, alpha=2.0, rslora=False, peft=False)
    assert part.kind == kind
    assert part.misfit(layer) == ""
    weight, bias = changed_weights(module, layer, tensors, 2.0 / RANK)
    old: Any = module.weight
    old_bias: Any = getattr(module, "bias", None)
    beside = part.beside(layer, old)
    for strength in WEIGHTS:
        mixed = blend(old, weight, strength)
        assert mixed is not None
        wanted = with_weights(module, mixed, blend(old_bias, bias, strength), x)
        torch.testing.assert_close(
            forward(module, layer, [(beside, strength)], x), wanted, rtol=0, atol=1e-12
        )
