"""modelbroker.lora.Loras on a small SDXL pipeline over shared weights."""

from __future__ import annotations

import copy
import hashlib
import math
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter

import modelbroker
from modelbroker import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)
from modelbroker._lora.side import _Forward
from modelbroker.lora import Loras
from support.adapters import Studio, step, studio

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(place: Studio) -> Any:
    return place.pipeline()


@pytest.fixture
def pipeline(whole: Any) -> Iterator[Any]:
    """With nothing applied, before and after."""
    plain = step(whole.unet)
    yield whole
    loras = Loras(whole)
    loras.clear()
    loras._max_adapters = loras._memory_limit = None
    assert not overridden(whole.unet)
    assert torch.equal(step(whole.unet), plain)
    assert modelbroker.shared(whole).written_bytes == 0


def overridden(component: Any) -> list[str]:
    """Layers that have our forward; the component itself has one for good."""
    return [
        name
        for name, module in component.named_modules()
        for held in (module.__dict__.get("forward"), module.__dict__.get("_old_forward"))
        if isinstance(held, _Forward) and module is not component
    ]


def hashed(pipeline: Any) -> str:
    found = hashlib.sha256()
    for tensor in pipeline.unet.state_dict().values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def test_an_adapter_is_applied_weighted_and_taken_away(place: Studio, pipeline: Any) -> None:
    loras, plain, before = Loras(pipeline), step(pipeline.unet), hashed(pipeline)
    names = list(pipeline.unet.state_dict())
    added = loras.add(place.style(), "style", weight=0.8)
    assert added.applied > 60
    assert added.kinds == {"LoRA": added.applied}
    assert (added.skipped, added.private_bytes) == ({}, 0)
    assert added.shared_bytes == sum(
        tensor.nbytes for name, tensor in load_file(place.style()).items() if "lora_" in name[-20:]
    )
    assert loras.weights == {"style": 0.8}
    much = step(pipeline.unet)
    assert (much - plain).abs().max() > 1e-3
    loras.weights = {"style": 0.3}
    little = step(pipeline.unet)
    assert 0 < (little - plain).abs().max() < (much - plain).abs().max()
    loras.weights["style"] = 0.8
    assert torch.equal(step(pipeline.unet), much)
    loras.weights["style"] = 0
    assert torch.equal(step(pipeline.unet), plain)
    assert list(pipeline.unet.state_dict()) == names
    loras.remove("style")
    assert loras.names == []
    assert not overridden(pipeline.unet)
    assert torch.equal(step(pipeline.unet), plain)
    assert hashed(pipeline) == before


@pytest.mark.parametrize("names", ["peft", "diffusers"])
def test_whatever_the_names_the_same_comes_out(place: Studio, pipeline: Any, names: str) -> None:
    loras = Loras(pipeline)
    kohya = loras.add(place.style(), "style")
    expected = step(pipeline.unet)
    added = loras.add(place.style(names=names), "style")
    assert loras.names == ["style"]
    assert (added.applied, added.skipped) == (kohya.applied, {})
    assert torch.equal(step(pipeline.unet), expected)


def test_a_pipeline_has_one_object_for_its_adapters(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    first = loras.add(place.style(), "style")
    assert Loras(pipeline) is loras
    again = Loras(pipeline).add(place.style(), "style", 0.5)
    assert (loras.names, again.applied) == (["style"], first.applied)
    assert loras.weights == {"style": 0.5}


def test_adapters_add_up_and_may_be_switched(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    for seed in (1, 2, 3):
        loras.add(place.style(seed), f"s{seed}")
    loras.weights = {"s2": 1.0}
    assert loras.weights == {"s1": 0, "s2": 1, "s3": 0}
    two = step(pipeline.unet)
    loras.clear()
    loras.add(place.style(2), "alone")
    assert torch.equal(step(pipeline.unet), two)
    loras.add(place.style(3), "alone")  # in its place
    three = step(pipeline.unet)
    loras.clear()
    loras.add(place.style(3), "three")
    assert torch.equal(step(pipeline.unet), three)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_what_peft_computes_is_what_we_compute(place: Studio, pipeline: Any) -> None:
    loras, stock = Loras(pipeline), place.pipeline()
    weights: dict[str, float] = {}
    for seed in range(4):
        weights[f"s{seed}"] = 0.1 + seed / 10
        loras.add(place.style(seed), f"s{seed}", weights[f"s{seed}"])
        stock.load_lora_weights(place.style(seed), adapter_name=f"s{seed}")
        if seed in (0, 3):
            stock.set_adapters(list(weights), list(weights.values()))
            assert torch.equal(step(pipeline.unet), step(stock.unet))


def _only_of(part: str) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part not in name]:
            del tensors[name]

    return change


def test_a_thousand_random_changes_leave_nothing(
    place: Studio, pipeline: Any, tmp_path: Path
) -> None:
    loras, plain, before = Loras(pipeline), step(pipeline.unet), hashed(pipeline)
    choice = random.Random(3)
    files = [
        corrupt(place.style(seed), _only_of("mid_block"), tmp_path / f"{seed}.safetensors")
        for seed in range(1, 5)
    ]
    for _ in range(1000):
        name = choice.choice("abcd")
        what = choice.random()
        if what < 0.4 or name not in loras.names:
            loras.add(choice.choice(files), name, choice.uniform(-1, 1))
        elif what < 0.7:
            loras.weights[name] = choice.choice([0, 0.5, 1])
        else:
            loras.remove(name)
    first = step(pipeline.unet)
    assert torch.equal(step(pipeline.unet), first)
    loras.clear()
    assert torch.equal(step(pipeline.unet), plain)
    assert hashed(pipeline) == before


def test_the_text_encoders_have_a_weight_of_their_own(pipeline: Any, tmp_path: Path) -> None:
    import make_adapters

    components = {
        name: pipeline.components[name] for name in ("unet", "text_encoder", "text_encoder_2")
    }
    path = tmp_path / "whole.safetensors"
    save_file(make_adapters.adapter(components), path)
    tokens = torch.tensor([[512, 5, 6, 513]])

    def encoded() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = pipeline.text_encoder(tokens)[0]
            return found

    plain, loras = encoded(), Loras(pipeline)
    added = loras.add(path, "style", weight=0.5, te_weight=0)
    assert added.skipped == {}
    assert torch.equal(encoded(), plain)
    loras.weights["style"] = {"unet": 0.5, "text_encoder": 1.0}
    assert not torch.equal(encoded(), plain)
    loras.clear()
    assert torch.equal(encoded(), plain)


def test_weights_by_block_are_diffusers(place: Studio, pipeline: Any) -> None:
    blocks = {
        "unet": {
            "down": 0.9,
            "mid": 0.0,
            "up": {"block_0": [0.6], "block_1": [0.4, 0.8, 1.0]},
        }
    }
    loras = Loras(pipeline)
    loras.add(place.style(), "style", weight=blocks)
    assert loras.weights == {"style": blocks}
    stock = place.pipeline()
    stock.load_lora_weights(place.style(), adapter_name="style")
    stock.set_adapters("style", blocks)
    assert torch.equal(step(pipeline.unet), step(stock.unet))


WRONG_WEIGHTS = {
    "NaN": math.nan,
    "endless": math.inf,
    "a word": "0.5",
    "a missing component": {"unet_2": 1.0},
    "a side without its component": {"down": 1.0},
    "a missing side": {"unet": {"left": 1.0}},
    "a block's name": {"unet": {"down": {"first": 1.0}}},
    "a missing block": {"unet": {"down": {"block_9": 1.0}}},
    "too many attentions": {"unet": {"up": {"block_1": [1.0, 1.0]}}},
    "attentions of other blocks": {"unet": {"up": [1.0, 1.0]}},
    "sides of a text encoder": {"text_encoder": {"down": 1.0}},
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_a_weight_that_is_none_changes_nothing(place: Studio, pipeline: Any, wrong: Any) -> None:
    loras = Loras(pipeline)
    with pytest.raises(InvalidArgumentError):
        loras.add(place.style(), "style", weight=wrong)
    assert loras.names == []
    loras.add(place.style(), "style", weight=0.5)
    with pytest.raises(InvalidArgumentError):
        loras.weights["style"] = wrong
    with pytest.raises(InvalidArgumentError):
        loras.weights = {"style": wrong}
    with pytest.raises(modelbroker.ModelBrokerError):
        loras.weights.update({"style": 1.0, "other": wrong})
    assert loras.weights == {"style": 0.5}


@pytest.mark.parametrize("wrong", [None, 3, ["style"], "style"])
def test_weights_are_a_mapping(place: Studio, pipeline: Any, wrong: Any) -> None:
    loras = Loras(pipeline)
    loras.add(place.style(), "style", 0.5)
    with pytest.raises(InvalidArgumentError):
        loras.weights = wrong
    assert loras.weights == {"style": 0.5}


def test_weights_that_are_read_are_copies(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    loras.add(place.style(), "style", {"unet": {"down": 0.5}})
    read: Any = loras.weights["style"]
    read["unet"]["down"] = 0.1
    assert loras.weights == {"style": {"unet": {"down": 0.5}}}


def test_any_finite_weight_counts(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    loras.add(place.style(), "style", weight=-1)
    negative = step(pipeline.unet)
    loras.weights = {"style": 1}
    assert not torch.equal(step(pipeline.unet), negative)
    loras.weights = {"style": 1e30}
    step(pipeline.unet)  # whatever it is


def test_names_that_are_not_there(pipeline: Any) -> None:
    loras = Loras(pipeline)
    with pytest.raises(NotFoundError, match="there are none"):
        loras.remove("style")
    with pytest.raises(NotFoundError):
        loras.weights["style"] = 1.0
    with pytest.raises(NotFoundError):
        loras.weights = {"style": 1.0}


def test_limits(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline, max_adapters=2)
    first = loras.add(place.style(1), "a")
    loras.add(place.style(2), "b")
    with pytest.raises(ResourceExhaustedError, match="max_adapters is 2"):
        loras.add(place.style(3), "c")
    size = first.shared_bytes + first.private_bytes
    Loras(pipeline, max_adapters=9, memory_limit_mb=2.5 * size / 1e6)
    before = step(pipeline.unet)
    with pytest.raises(ResourceExhaustedError, match="memory_limit_mb is "):
        loras.add(place.style(3), "c")
    assert loras.names == ["a", "b"]
    assert torch.equal(step(pipeline.unet), before)
    loras.add(place.style(3), "b")  # in its place


def corrupt(path: Path, change: Callable[[dict[str, torch.Tensor]], object], to: Path) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, to)
    return to


def some(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


def _set(ending: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = some(tensors, ending)
        tensors[name] = value(tensors[name])

    return change


def _without(ending: str) -> Any:
    return lambda tensors: tensors.pop(some(tensors, ending))


def _only(make: Callable[[], dict[str, torch.Tensor]]) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.clear()
        tensors.update(make())

    return change


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] = value
        return tensor

    return change


BROKEN: dict[str, tuple[Any, type[Exception], str]] = {
    "NaN": (_set("lora_up.weight", _with(math.nan)), DataLossError, "holds NaN or Inf"),
    "Inf": (_set("lora_down.weight", _with(math.inf)), DataLossError, "holds NaN or Inf"),
    "ranks that disagree": (
        _set("lora_up.weight", lambda tensor: tensor[:, :-1].contiguous()),
        InvalidArgumentError,
        "do not belong together",
    ),
    "a half missing": (_without("lora_up.weight"), InvalidArgumentError, "'up' is missing"),
    "a scalar for a matrix": (
        _set("lora_up.weight", lambda tensor: tensor[0, 0].clone()),
        InvalidArgumentError,
        "must be a matrix",
    ),
    "alpha of many numbers": (
        _set("alpha", lambda tensor: tensor.repeat(4)),
        InvalidArgumentError,
        "must be one number",
    ),
    "an alpha alone": (
        _only(lambda: {"lora_unet_conv_in.alpha": torch.tensor(4.0)}),
        InvalidArgumentError,
        "has an alpha alone",
    ),
    "an empty file": (_only(dict), InvalidArgumentError, "holds no adapter"),
    "a checkpoint": (
        _only(lambda: {"model.diffusion_model.out.0.weight": torch.ones(3, 3)}),
        InvalidArgumentError,
        "holds no adapter: its first key is",
    ),
    "no module of ours": (
        _only(
            lambda: {
                f"lora_unet_no_such_layer.lora_{half}.weight": torch.ones(4, 4)
                for half in ("up", "down")
            }
        ),
        InvalidArgumentError,
        "nothing of",
    ),
    "OFT": (
        _only(lambda: {"lora_unet_conv_in.oft_blocks": torch.ones(2, 4, 4)}),
        UnimplementedError,
        "OFT",
    ),
}


@pytest.mark.parametrize(("change", "error", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_files_change_nothing(
    place: Studio,
    pipeline: Any,
    tmp_path: Path,
    change: Any,
    error: type[Exception],
    words: str,
) -> None:
    loras, before = Loras(pipeline), step(pipeline.unet)
    with pytest.raises(error, match=words):
        loras.add(corrupt(place.style(), change, tmp_path / "broken.safetensors"), "style")
    assert loras.names == []
    assert not overridden(pipeline.unet)
    assert torch.equal(step(pipeline.unet), before)


def test_a_truncated_file_and_none(place: Studio, pipeline: Any, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(place.style().read_bytes()[:-100])
    loras = Loras(pipeline)
    with pytest.raises((InvalidArgumentError, DataLossError)):
        loras.add(short, "style")
    with pytest.raises(NotFoundError):
        loras.add(tmp_path / "none.safetensors", "style")
    with pytest.raises(NotFoundError, match="is not a file or folder here"):
        loras.add("no-model-of-the-broker", "style")
    with pytest.raises(NotFoundError, match="no such file"):
        loras.add("none.safetensors", "style")
    wrongs: list[Any] = [None, 3, {}, ""]
    for wrong in wrongs:
        with pytest.raises(InvalidArgumentError):
            loras.add(wrong, "style")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"holds no \.safetensors file"):
        loras.add(tmp_path / "folder", "style")


def test_what_does_not_fit_is_skipped_with_its_reason(
    place: Studio, pipeline: Any, tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for number in range(5000):
            for half in ("up", "down"):
                tensors[f"lora_unet_nowhere_{number}.lora_{half}.weight"] = torch.ones(1, 1)
        tensors["x" * 4000] = torch.ones(1)
        name = some(tensors, "lora_up.weight")
        tensors[name] = torch.ones(7, tensors[name].shape[1])

    path = corrupt(place.style(), change, tmp_path / "more.safetensors")
    loras = Loras(pipeline)
    whole = loras.add(place.style(), "whole").applied
    added = loras.add(path, "style")
    assert added.applied == whole - 1
    assert len(added.skipped) == 10_001 + 3  # up, down and alpha
    assert all(added.skipped.values())


def test_another_family_is_refused_unless_forced(
    place: Studio, pipeline: Any, tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        halves = [name for name in tensors if name.endswith("lora_down.weight")]
        for number, name in enumerate(halves):
            if number % 3:
                tensors[name] = torch.ones(tensors[name].shape[0], 7)

    path = corrupt(place.style(), change, tmp_path / "other.safetensors")
    loras = Loras(pipeline)
    with pytest.raises(FailedPreconditionError, match="force=True"):
        loras.add(path, "style")
    assert loras.names == []
    assert loras.add(path, "style", force=True).applied > 0


def test_two_keys_for_one_layer(place: Studio, pipeline: Any, tmp_path: Path) -> None:
    """Of names by diffusers and by sgm, sgm's is dropped, as by diffusers."""
    sgm, own = "lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in"
    tensors = {
        name: tensor for name, tensor in load_file(place.style()).items() if name.startswith(own)
    }
    both = {name.replace(own, sgm): torch.ones_like(tensor) for name, tensor in tensors.items()}
    path = tmp_path / "both.safetensors"
    save_file({**both, **tensors}, path)
    added = Loras(pipeline).add(path, "style")
    assert (added.applied, set(added.skipped)) == (1, set(both))
    expected = step(pipeline.unet)
    save_file(tensors, path)
    Loras(pipeline).add(path, "style")
    assert torch.equal(step(pipeline.unet), expected)


def test_a_changed_file_is_another_adapter(place: Studio, pipeline: Any, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(place.style(1).read_bytes())
    loras = Loras(pipeline)
    loras.add(path, "style")
    one = step(pipeline.unet)
    path.with_suffix(".new").write_bytes(place.style(2).read_bytes())
    path.with_suffix(".new").rename(path)
    assert torch.equal(step(pipeline.unet), one)
    loras.add(path, "style")
    two = step(pipeline.unet)
    assert not torch.equal(two, one)
    loras.add(place.style(2), "style")
    assert torch.equal(step(pipeline.unet), two)


def test_a_name_at_the_broker(place: Studio, pipeline: Any) -> None:
    with modelbroker.connect() as client:
        client.load(place.style(2), "of-the-broker")
        loras = Loras(pipeline)
        loras.add(place.style(2), "style")
        expected = step(pipeline.unet)
        assert loras.add("of-the-broker", "style").private_bytes == 0
        assert torch.equal(step(pipeline.unet), expected)
        client.unload("of-the-broker")  # what is applied stays
        assert torch.equal(step(pipeline.unet), expected)


def test_without_a_broker_it_is_private(
    place: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = place.pipeline()
    shared = Loras(pipeline).add(place.style(), "style")
    expected = step(pipeline.unet)
    other = place.pipeline()
    monkeypatch.setenv("MODELBROKER_ENDPOINT", f"ipc://{tmp_path}/broker.sock")
    added = Loras(other).add(place.style(), "style")
    assert (added.shared_bytes, added.private_bytes) == (0, shared.shared_bytes)
    assert torch.equal(step(other.unet), expected)


def test_a_broker_that_dies_is_not_missed(tmp_path: Path) -> None:
    with studio(tmp_path) as other:
        pipeline = other.pipeline()
        loras = Loras(pipeline)
        loras.add(other.style(), "style")
        expected = step(pipeline.unet)
        other.broker.kill()
        assert torch.equal(step(pipeline.unet), expected)
        loras.weights["style"] = 0.5
        loras.clear()
        other.broker.start()
        loras.add(other.style(), "style")
        assert torch.equal(step(pipeline.unet), expected)


def test_an_error_in_the_middle_changes_nothing(
    place: Studio, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras, before = Loras(pipeline), step(pipeline.unet)
    put, count = _Forward.put, 0

    def failing(forward: Any) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        put(forward)

    monkeypatch.setattr(_Forward, "put", failing)
    with pytest.raises(KeyboardInterrupt):
        loras.add(place.style(), "style")
    monkeypatch.undo()
    assert loras.names == []
    assert not overridden(pipeline.unet)
    assert torch.equal(step(pipeline.unet), before)


def test_a_call_sees_one_state(place: Studio, pipeline: Any) -> None:
    """Changed from inside a call of the UNet, by another thread: the call ends as it began."""
    loras, plain = Loras(pipeline), step(pipeline.unet)
    loras.add(place.style(1), "style")
    one = step(pipeline.unet)
    middle = pipeline.unet.mid_block
    changes: list[Callable[[], object]] = [
        lambda: loras.add(place.style(2), "more"),
        lambda: loras.remove("more"),
        lambda: setattr(loras, "weights", {"style": 0}),
        lambda: loras.clear(),
    ]
    change: Callable[[], object]

    def hook(*_: object) -> None:
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()

    handle = middle.register_forward_hook(hook)
    try:
        for change in changes:  # noqa: B007  the hook's
            loras.weights = {name: 1 if name == "style" else 0 for name in loras.names}
            assert torch.equal(step(pipeline.unet), one)
    finally:
        handle.remove()
    assert not overridden(pipeline.unet)
    assert torch.equal(step(pipeline.unet), plain)


def test_many_threads_switch_while_one_computes(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    expected = []
    for seed in (1, 2):
        loras.add(place.style(seed), f"s{seed}")
        loras.weights = {f"s{seed}": 1}
        expected.append(step(pipeline.unet))
    stop = threading.Event()

    def switch(seed: int) -> None:
        while not stop.wait(0.0005):
            loras.weights = {f"s{seed}": 1}

    threads = [threading.Thread(target=switch, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            found = step(pipeline.unet)
            assert any(torch.equal(found, one) for one in expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("first", ["compiled", "applied"])
def test_compiled_modules(place: Studio, first: str) -> None:
    """One attention of the UNet: tracing all of it takes a minute."""
    unet = place.pipeline().unet
    block = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = torch.randn(1, 16, block.to_q.in_features)

    def run(module: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = module(x)
        return found

    torch.compiler.reset()
    counts = CompileCounter()
    compiled: Any = torch.compile(block, backend=counts, fullgraph=True)
    plain = run(block)
    if first == "compiled":
        assert torch.equal(run(compiled), plain)
    loras = Loras(unet)
    loras.add(place.style(), "style")
    assert torch.equal(run(compiled), run(block))
    assert not torch.equal(run(block), plain)
    before = counts.frame_count
    for weight in (0.5, 0.25, 0.125, 2.0):
        loras.weights = {"style": weight}
        assert torch.equal(run(compiled), run(block))
    assert counts.frame_count - before <= 1
    loras.clear()
    assert torch.equal(run(compiled), plain)
    torch.compiler.reset()


def test_a_compiled_component(place: Studio) -> None:
    encoder = place.pipeline().text_encoder
    compiled: Any = torch.compile(encoder, backend="eager")
    assert Loras(compiled) is Loras(encoder)


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "the component": lambda unet: unet,
    "a layer": lambda unet: unet.mid_block.attentions[0].proj_in,
}


@pytest.mark.parametrize("which", WRAPPED)
def test_other_programs_may_wrap_what_we_put(place: Studio, pipeline: Any, which: str) -> None:
    """As caches of steps do. What is beneath such a wrapper stays there, and adds nothing twice."""
    loras, plain = Loras(pipeline), step(pipeline.unet)
    loras.add(place.style(), "style")
    expected = step(pipeline.unet)
    module = WRAPPED[which](pipeline.unet)
    ours = module.forward
    module.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    for _ in range(2):
        loras.add(place.style(2), "style")
        loras.remove("style")
        assert torch.equal(step(pipeline.unet), plain)
        loras.add(place.style(), "style")
        assert torch.equal(step(pipeline.unet), expected)
    module.forward = ours
    assert torch.equal(step(pipeline.unet), expected)
    loras.clear()
    assert torch.equal(step(pipeline.unet), plain)


def test_two_objects_for_one_component(place: Studio, pipeline: Any) -> None:
    """As pipelines made by from_pipe have: their adapters add up."""
    plain = step(pipeline.unet)
    one, two = Loras(pipeline), Loras(pipeline.unet)
    one.add(place.style(1), "s1")
    expected = step(pipeline.unet)
    for _ in range(2):
        two.add(place.style(2), "s2")
        one.add(place.style(1), "s1")
        both = step(pipeline.unet)
        one.clear()
        assert not torch.equal(step(pipeline.unet), plain)
        two.clear()
        assert torch.equal(step(pipeline.unet), plain)
        one.add(place.style(1), "s1")
        assert torch.equal(step(pipeline.unet), expected)
        assert not torch.equal(both, expected)


def test_copies_of_a_component_alone(place: Studio, tmp_path: Path) -> None:
    pipeline = place.pipeline()
    plain = step(pipeline.unet)
    Loras(pipeline).add(place.style(), "style", 0.5)
    expected = step(pipeline.unet)
    twin = copy.deepcopy(pipeline.unet)
    torch.save(pipeline.unet, tmp_path / "unet.pt")
    loaded = torch.load(tmp_path / "unet.pt", weights_only=False)
    for other in (twin, loaded):
        torch.testing.assert_close(step(other), expected)
        loras = Loras(other)
        assert loras.weights == {"style": 0.5}
        torch.testing.assert_close(step(other), expected)
        loras.clear()
        torch.testing.assert_close(step(other), plain)
    other = place.pipeline()
    other.unet = copy.deepcopy(pipeline.unet)
    assert Loras(other).weights == {"style": 0.5}
    Loras(other).clear()
    torch.testing.assert_close(step(other.unet), plain)


def test_a_layer_that_is_called_by_keyword(place: Studio, pipeline: Any) -> None:
    Loras(pipeline).add(place.style(), "style")
    layer = pipeline.unet.mid_block.attentions[0].proj_in
    x = torch.randn(2, layer.in_features)
    assert torch.equal(layer(input=x), layer(x))
    with pytest.raises(TypeError, match="input"):
        layer()


def test_deep_copies(place: Studio, pipeline: Any) -> None:
    loras, plain = Loras(pipeline), step(pipeline.unet)
    loras.add(place.style(), "style")
    expected = step(pipeline.unet)
    twin = copy.deepcopy(pipeline)
    torch.testing.assert_close(step(twin.unet), expected)  # other alignment: last bits
    assert Loras(twin) is not loras
    assert Loras(twin).names == ["style"]
    loras.clear()
    torch.testing.assert_close(step(twin.unet), expected)
    assert torch.equal(step(pipeline.unet), plain)
    Loras(twin).clear()
    torch.testing.assert_close(step(twin.unet), plain)
    assert not overridden(twin.unet)


@pytest.mark.parametrize("first", ["hooks", "adapter"])
def test_accelerates_hooks(place: Studio, first: str) -> None:
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    hooks: Any = __import__("accelerate.hooks", fromlist=["ModelHook"])
    unet = place.pipeline().unet
    loras, plain = Loras(unet), step(unet)

    def hook() -> None:
        for module in list(unet.modules()):
            add_hook_to_module(module, hooks.ModelHook())

    if first == "hooks":
        hook()
    loras.add(place.style(), "style")
    expected = step(unet)
    if first == "adapter":
        hook()
    assert torch.equal(step(unet), expected)
    assert not torch.equal(expected, plain)
    loras.weights = {"style": 0}
    assert torch.equal(step(unet), plain)
    loras.weights = {"style": 1}
    for module in unet.modules():
        remove_hook_from_module(module)
    assert torch.equal(step(unet), expected)
    loras.clear()
    assert torch.equal(step(unet), plain)
    assert not overridden(unet)


def test_autocast_and_inference_mode(place: Studio, pipeline: Any) -> None:
    stock = place.pipeline()
    stock.load_lora_weights(place.style(), adapter_name="style")
    Loras(pipeline).add(place.style(), "style")
    with torch.inference_mode():
        expected = step(stock.unet)
        assert torch.equal(step(pipeline.unet), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = step(stock.unet)
            assert not torch.equal(half, expected)
            assert torch.equal(step(pipeline.unet), half)


def test_modules_that_change_after_the_add(place: Studio) -> None:
    unet = place.pipeline().unet
    loras = Loras(unet)
    loras.add(place.style(), "style")
    expected = step(unet)
    unet.to(torch.float64)
    unet.to(torch.float32)
    torch.testing.assert_close(step(unet), expected)
    old = unet.mid_block.attentions[0].proj_in
    unet.mid_block.attentions[0].proj_in = copy.deepcopy(old)  # with what is applied to it
    torch.testing.assert_close(step(unet), expected)
    fresh = torch.nn.Linear(old.in_features, old.out_features)
    fresh.load_state_dict(old.state_dict())
    unet.mid_block.attentions[0].proj_in = fresh
    assert (step(unet) - expected).abs().max() > 1e-4
    loras.add(place.style(), "style")  # finds what has taken its place
    torch.testing.assert_close(step(unet), expected)


def test_another_dtype_is_brought_once(place: Studio, pipeline: Any) -> None:
    loras = Loras(pipeline)
    added = loras.add(place.style(dtype=torch.float16), "style")
    assert added.shared_bytes == 0
    assert added.private_bytes == 2 * sum(
        tensor.nbytes
        for name, tensor in load_file(place.style(dtype=torch.float16)).items()
        if "lora_" in name[-20:]
    )


def test_a_component_that_is_replaced(place: Studio) -> None:
    pipeline = place.pipeline()
    loras = Loras(pipeline)
    loras.add(place.style(), "style")
    expected = step(pipeline.unet)
    pipeline.unet = place.pipeline().unet
    assert not torch.equal(step(pipeline.unet), expected)
    loras.add(place.style(), "style")
    assert torch.equal(step(pipeline.unet), expected)


@pytest.mark.parametrize(
    "wrong", [{"broker": "ipc://x"}, {"max_adapters": "3"}, {"memory_limit_mb": -1}], ids=str
)
def test_wrong_settings(pipeline: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Loras(pipeline, **wrong)


@pytest.mark.parametrize("wrong", [3, None, {}, object()])
def test_what_is_no_target(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        Loras(wrong)
