"""The tensors of an adapter's file: over the broker's block, or read here where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .._broker import Broker, absolute
from .._errors import (
    BrokerHangsError,
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from .._sharing.attacher import attacher
from .._weights import flat_runs
from .words import shown

Tensors: TypeAlias = "dict[str, Any]"

_CONFIG = "adapter_config.json"
_IN_FOLDERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_LARGEST_CONFIG = 10_000_000
# Where the broker cannot serve: the file is read here, which costs memory and works.
_WITHOUT_BROKER = (UnavailableError, BrokerHangsError, ResourceExhaustedError)


@dataclass(frozen=True)
class Source:
    """What `add` was asked for: a file (and a PEFT folder's configuration), or a broker's name."""

    label: str
    file: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    identity: tuple[Any, ...] = ()  # by which it is the same one when it is added again


@dataclass(frozen=True)
class AdapterFile:
    """Its tensors, which keep the block."""

    label: str
    identity: tuple[Any, ...]
    tensors: Tensors
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    blocks: tuple[tuple[int, int], ...] = ()  # (first, end) addresses of shared memory
    all_shared: bool = False  # all tensors are over these
    runs: tuple[Any, ...] = ()  # only then: their numbers, as few flat tensors

    def is_shared(self, tensor: Any) -> bool:
        """Whether its bytes are the broker's."""
        if tensor.device.type != "cpu":
            return False
        address = tensor.data_ptr()
        return any(first <= address < end for first, end in self.blocks)


def find(path_or_name: str | os.PathLike[str]) -> Source:
    """Without reading it. A word that is no file or folder is taken for a name at the broker."""
    text: Any = os.fspath(path_or_name) if isinstance(path_or_name, os.PathLike) else path_or_name
    if not isinstance(text, str) or not text:
        raise InvalidArgumentError(f"{path_or_name!r:.120} is not the path or name of an adapter")
    try:
        if os.path.isdir(text):
            return _folder(Path(absolute(text)))
        if os.path.exists(text):
            return _found(Path(absolute(text)))
    except ValueError as error:  # a zero byte in it
        raise InvalidArgumentError(f"{shown(text)}: {error}") from None
    is_path = not isinstance(path_or_name, str) or text.startswith(("/", "./", "../", "~"))
    if is_path or text.endswith((".safetensors", ".sft")) or "://" in text:
        raise NotFoundError(f"{shown(text)}: there is no such file or folder")
    return Source(shown(text), identity=("name", text))


def _found(path: Path) -> Source:
    """PEFT's file has its configuration beside it."""
    is_peft = path.name == _IN_FOLDERS[0]
    return _file(str(path), _config(path.parent / _CONFIG) if is_peft else {})


def _file(path: str, config: Mapping[str, Any]) -> Source:
    found = os.stat(path)
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return Source(shown(path), path, config, ("file", *identity, json.dumps(config)))


def _folder(folder: Path) -> Source:
    files = [folder / name for name in _IN_FOLDERS if (folder / name).is_file()]
    files = files or sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidArgumentError(
            f"{shown(str(folder))} holds {len(files)} .safetensors files, and none that is "
            f"called {' or '.join(_IN_FOLDERS)}: name the file"
            if files
            else f"{shown(str(folder))} holds no .safetensors file"
        )
    return _file(str(files[0]), _config(folder / _CONFIG))


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{shown(str(path))} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{shown(str(path))} holds no JSON object")
    return config


def open_source(source: Source, broker: Broker | None) -> AdapterFile:
    """By this broker, or by the one that programs which share use."""
    try:
        return _attached(source, broker)
    except _WITHOUT_BROKER as error:
        if source.file:
            return _read_here(source, error)
        raise type(error)(
            f"{source.label} is not a file or folder here, and the broker: {error}"
        ) from None
    except NotFoundError as error:
        if source.file:
            raise
        raise NotFoundError(f"{source.label} is not a file or folder here; {error}") from None


def _attached(source: Source, broker: Broker | None) -> AdapterFile:
    usual = attacher(os.environ.get("MODELBROKER_ENDPOINT") or None)
    if not source.file:
        weights = (broker or usual.broker()).attach(source.identity[1])
    elif broker is not None:
        weights = broker.attach(Path(source.file))
    else:
        with open(source.file, "rb", opener=_opener) as file:
            weights = usual.attach(file.fileno(), source.file, load=True)
    identity = source.identity if source.file else (*source.identity, weights.generation)
    blocks = tuple((memory.address, memory.address + memory.size) for memory, _ in weights.blocks())
    return AdapterFile(
        source.label,
        identity,
        weights.state_dict(),
        weights.metadata,
        source.config,
        blocks,
        all_shared=True,
        runs=tuple(flat_runs(weights)),
    )


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # a fifo does not hold us up


def _read_here(source: Source, why: ModelBrokerError) -> AdapterFile:
    try:
        import safetensors
    except ImportError:
        raise why from None
    try:
        with safetensors.safe_open(source.file, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidArgumentError(
            f"{source.label} is not a whole safetensors file: {error}"
        ) from None
    return AdapterFile(source.label, source.identity, tensors, metadata, source.config)
