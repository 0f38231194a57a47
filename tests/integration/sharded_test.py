"""Models of several files, from Python: one model, a block each, nothing copied."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import modelbroker
from modelbroker import (
    DataLossError,
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)
from support import files
from support.broker import BrokerProcess, start_python, wait_until
from support.raw_wire import call, dealer


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return files.write_set(tmp_path / "llama")


def right(weights: modelbroker.Weights, folder: Path) -> bool:
    """Whether they are those of the files, byte for byte."""
    wanted = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, told in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = told["data_offsets"]
                wanted[name] = raw[8 + length + begin : 8 + length + end]
    return {name: weights.raw(name).tobytes() for name in weights} == wanted


def test_a_set_is_one_model(broker: BrokerProcess, index: Path) -> None:
    told: list[tuple[int, int]] = []
    with broker.connect() as client:
        loaded = client.load(index, progress=lambda *bytes_: told.append(bytes_))
        assert (loaded.model, loaded.outcome, loaded.block) == ("llama", "loaded", "")
        assert [Path(block.source).name for block in loaded.blocks] == [
            f"model-{number:05}.safetensors" for number in range(4)
        ]
        assert told[-1] == (loaded.payload_bytes, loaded.payload_bytes)
        (model,) = client.list()
        assert (model.path, model.tensors, model.blocks) == (str(index), 8, loaded.blocks)
        for what in ("llama", index, str(index)):
            with client.attach(what) as weights:
                assert right(weights, index.parent)
                assert (len(weights), weights.generation) == (8, loaded.generation)
                assert weights.metadata["seed"] == "0"
        assert client.status().tiers["ram"].loads == 4
        assert client.unload(index).freed == loaded.bytes
    assert broker.is_empty()


def test_nothing_is_copied(broker: BrokerProcess, tmp_path: Path) -> None:
    """All of it lies in the blocks; a tensor that is written to is a copy until it is restored."""
    index = files.write_set(tmp_path / "m", megabytes=4)
    with broker.connect() as client, client.attach(index) as weights:
        state = weights.state_dict()
        nbytes = sum(tensor.nbytes for tensor in state.values())
        found = modelbroker.shared(state)
        assert (found.shared_bytes, found.written_bytes, found.copied_bytes) == (nbytes, 0, 0)
        state["layer.3.b"][0] = 1
        assert weights.written() == ["layer.3.b"]
        assert modelbroker.shared(state).written_bytes > 0
        assert weights.restore() > 0
        assert modelbroker.shared(state).written_bytes == 0
        assert right(weights, index.parent)


def test_a_module_takes_a_set_and_its_copy_is_its_own(broker: BrokerProcess, index: Path) -> None:
    with broker.connect() as client, client.attach(index) as weights:
        state = weights.state_dict()
        with torch.device("meta"):
            layers = {
                str(number): torch.nn.ParameterDict(
                    {part: torch.empty_like(state[f"layer.{number}.{part}"]) for part in ("a", "b")}
                )
                for number in range(4)
            }
            module = torch.nn.ModuleDict({"layer": torch.nn.ModuleDict(layers)})
        weights.apply_to(module)
        assert modelbroker.shared(module).copied_bytes == 0
        copy = deepcopy(module)
        assert modelbroker.shared(copy).shared_bytes == 0
        for name, parameter in copy.named_parameters():
            assert torch.equal(parameter.view(torch.int16), state[name].view(torch.int16))


def test_workers_that_attach_at_once_load_each_file_once(
    broker: BrokerProcess, index: Path
) -> None:
    script = "import sys, modelbroker; print(len(modelbroker.connect().attach(sys.argv[1])))"
    environment = {**os.environ, "MODELBROKER_ENDPOINT": broker.endpoint}
    started = [start_python(script, [str(index)], environment) for _ in range(4)]
    assert [worker.communicate()[0].strip() for worker in started] == ["8"] * 4
    assert broker.cli_json("status")["tiers"]["ram"]["loads"] == 4


def test_a_changed_file_is_a_new_generation_that_shares_the_others(
    broker: BrokerProcess, index: Path
) -> None:
    with broker.connect() as client:
        before = client.load(index, "prod", pin=True)
        with client.attach("prod") as old:
            files.write_shard(index.parent, 2, seed=9)
            with client.attach(index) as new:
                assert new.model == "prod"
                assert right(new, index.parent)
                assert not right(old, index.parent)
            (model,) = client.list()
            assert (model.name, model.pinned) == ("prod", True)
            same = [one == other for one, other in zip(before.blocks, model.blocks, strict=True)]
            assert same == [True, True, False, True]
            assert broker.books()["draining"] == before.blocks[2].bytes
        wait_until(lambda: broker.books()["draining"] == 0)


def test_the_broker_opens_the_files_itself_for_a_plain_worker(
    broker: BrokerProcess, index: Path
) -> None:
    with dealer(broker) as peer:
        loaded = call(peer, "model.load_model", {"path": str(index)})["data"]
        granted = call(peer, "model.attach", {"model": "llama"})["data"]
    assert [block["block"] for block in granted["blocks"]] == [
        block["block"] for block in loaded["blocks"]
    ]


def test_the_verbs_of_the_command_line(broker: BrokerProcess, index: Path) -> None:
    assert "4 files" in broker.cli("load", index, "--name", "m").stdout
    (entry,) = broker.cli_json("ps")
    assert (entry["name"], entry["block"], len(entry["blocks"])) == ("m", "", 4)
    told = broker.cli("show", "m").stdout
    assert told.count("model-0000") == 4
    assert len(broker.cli_json("show", "m", "--tensors")["tensors"]) == 8
    assert len(broker.cli("ps").stdout.splitlines()) == 2
    broker.cli("unload", index, "--wait")
    assert broker.is_empty()


def test_weights_whose_files_are_gone_are_attached_by_the_path(
    broker: BrokerProcess, index: Path
) -> None:
    with broker.connect() as client:
        client.load(index)
        for file in index.parent.iterdir():
            file.unlink()
        assert len(client.attach(index)) == 8
        client.unload("llama")
        with pytest.raises(NotFoundError, match=r"index\.json"):
            client.attach(index)


# ---- what is not a whole set


def _rewrite(index: Path, weight_map: object) -> None:
    index.write_text(json.dumps({"weight_map": weight_map}))


def _too_many(folder: Path) -> None:
    for number in range(1024):
        (folder / f"other-{number}.sft").touch()


BAD: list[tuple[str, Callable[[Path, Path], object], type[ModelBrokerError], str]] = [
    ("not JSON", lambda i, _: i.write_text("{"), DataLossError, "not JSON"),
    ("no map", lambda i, _: i.write_text("{}"), DataLossError, "weight_map"),
    ("a path", lambda i, _: _rewrite(i, {"a": "../x"}), InvalidArgumentError, "plain names"),
    (
        "a missing file",
        lambda _, d: (d / "model-00002.safetensors").unlink(),
        NotFoundError,
        "00002",
    ),
    (
        "1,025 files",
        lambda i, _: _rewrite(i, {str(n): f"{n}.safetensors" for n in range(1025)}),
        InvalidArgumentError,
        "at most 1024",
    ),
    (
        "a tensor that is not there",
        lambda i, _: _rewrite(i, {"other": "model-00000.safetensors"}),
        DataLossError,
        "'other' is not in",
    ),
    (
        "a truncated file",
        lambda _, d: os.truncate(d / "model-00003.safetensors", 4096),
        DataLossError,
        "00003",
    ),
    (
        "another format",
        lambda _, d: (d / "model-00001.safetensors").write_bytes(b"GGUF" + bytes(100)),
        UnimplementedError,
        "00001",
    ),
    ("too many beside it", lambda _, d: _too_many(d), ResourceExhaustedError, "folder of its own"),
]


@pytest.mark.parametrize(
    ("spoil", "error", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_what_is_not_a_whole_set_is_refused(
    broker: BrokerProcess,
    index: Path,
    spoil: Callable[[Path, Path], object],
    error: type[ModelBrokerError],
    says: str,
) -> None:
    spoil(index, index.parent)
    with broker.connect() as client:
        open_files = []
        for ask in (client.attach, client.load, client.load):
            with pytest.raises(error, match=says):
                ask(index)
            open_files.append(len(os.listdir("/proc/self/fd")))
        assert open_files[1] == open_files[2]
        assert client.list() == []
        assert broker.is_empty()
