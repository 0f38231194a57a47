"""The benchmarks' workers: each runs in a process of its own and answers by JSON lines.

measure WHICH PATH ENDPOINT          for a line "memory": what it has; for another one: gets at
                                     the weights, touches them, says how long
attach|dict NAME ENDPOINT COUNT      quantiles of attaches, of attaches and state_dict
open|load PATH COUNT                 the same with safetensors: safe_open, load_file
tensorize PATH OUT                   writes a file of tensorizer's
ping ENDPOINT COUNT                  quantiles of round trips to the broker
echo ENDPOINT COUNT                  the same to zmq_echo_bench, by pyzmq and msgpack
churn PATH ENDPOINT                  loads and unloads until its input ends
attach_often NAME ENDPOINT           attaches 50 times a second until its input ends
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_PAGE = 4096
_A_SECOND = 50


def say(**words: object) -> None:
    """One JSON line."""
    print(json.dumps(words), flush=True)


# ---- ways to get at the weights of a file; each keeps what it returned alive


def _broker(path: str, endpoint: str) -> Any:
    import modelbroker

    return modelbroker.connect(endpoint).attach(path).state_dict()


def _safetensors(path: str, _: str) -> Any:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def _torch(path: str, _: str) -> Any:
    import torch

    return torch.load(path, weights_only=True)


def _torch_mmap(path: str, _: str) -> Any:
    import torch

    return torch.load(path, weights_only=True, mmap=True)


def _tensorizer(path: str, _: str) -> Any:
    import tensorizer

    readers = os.cpu_count() or 1
    return dict(tensorizer.TensorDeserializer(path, device="cpu", num_readers=readers))


def _runai(path: str, _: str) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    streamer = SafetensorsStreamer()
    _kept.append(streamer.__enter__())
    streamer.stream_file(path)
    return dict(streamer.get_tensors())


def _fastsafetensors(path: str, _: str) -> Any:
    import fastsafetensors

    loader = fastsafetensors.SafeTensorsFileLoader(fastsafetensors.SingleGroup(), "cpu", nogds=True)
    _kept.append(loader)
    loader.add_filenames({0: [path]})
    # Its default block leaves one file to one thread.
    block = -(-os.path.getsize(path) // (os.cpu_count() or 1))
    buffer = loader.copy_files_to_device(max_copy_block_size=block)
    _kept.append(buffer)
    return {name: buffer.get_tensor(name) for name in loader.get_keys()}


_kept: list[Any] = []
_WAYS = {
    "broker": (_broker, "modelbroker"),
    "safetensors": (_safetensors, "safetensors.torch"),
    "torch": (_torch, "torch"),
    "torch_mmap": (_torch_mmap, "torch"),
    "tensorizer": (_tensorizer, "tensorizer"),
    "runai": (_runai, "runai_model_streamer"),
    "fastsafetensors": (_fastsafetensors, "fastsafetensors"),
}


def touch(tensors: dict[str, Any]) -> int:
    """Reads a byte of every page."""
    import torch

    found = 0
    for tensor in tensors.values():
        bytes_ = tensor.detach().view(-1).view(torch.uint8).numpy()
        found |= int(np.bitwise_or.reduce(bytes_[::_PAGE]))
    return found


def memory() -> int:
    """PSS of this process: what is shared counts by its share."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Pss")


def measure(which: str, path: str, endpoint: str) -> None:
    """Imports first, so that they are in no figure."""
    import torch

    way, module = _WAYS[which]
    __import__(module)
    torch.set_num_threads(1)
    touch({"": torch.zeros(_PAGE)})
    say(ready=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            say(memory=memory())
            continue
        began = time.perf_counter()
        tensors = way(path, endpoint)
        opened = time.perf_counter()
        touch(tensors)
        say(opened=opened - began, seconds=time.perf_counter() - began)


def tensorize(path: str, out: str) -> None:
    """tensorizer reads no format but its own."""
    import safetensors.torch
    import tensorizer

    serializer = tensorizer.TensorSerializer(out)
    serializer.write_state_dict(safetensors.torch.load_file(path))
    serializer.close()
    say(written=True)


# ---- calls, one after another


def repeat(once: Callable[[], object], count: int) -> None:
    """Says quantiles of its seconds. What it returns goes before the next one, unmeasured."""
    for _ in range(min(10, count // 5)):
        once()
    seconds = np.empty(count)
    for i in range(count):
        began = time.perf_counter()
        kept = once()
        seconds[i] = time.perf_counter() - began
        del kept
    p50, p99 = (float(np.quantile(seconds, q, method="lower")) for q in (0.5, 0.99))
    say(p50=p50, p99=p99)


def attach(name: str, endpoint: str, count: str) -> None:
    """A handle: nothing is touched."""
    import modelbroker

    broker = modelbroker.connect(endpoint)
    repeat(lambda: broker.attach(name), int(count))


def attach_dict(name: str, endpoint: str, count: str) -> None:
    """A handle and all of its tensors."""
    import modelbroker

    broker = modelbroker.connect(endpoint)
    repeat(lambda: broker.attach(name).state_dict(), int(count))


def open_file(path: str, count: str) -> None:
    """The nearest thing to a handle that safetensors has."""
    import safetensors

    repeat(lambda: safetensors.safe_open(path, "pt"), int(count))


def load_file(path: str, count: str) -> None:
    """All tensors, mapped; of a folder, those of all its files, as transformers reads a set."""
    import safetensors.torch

    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]

    def load() -> dict[str, Any]:
        state: dict[str, Any] = {}
        for file in files:
            state |= safetensors.torch.load_file(file)
        return state

    repeat(load, int(count))


def ping(endpoint: str, count: str) -> None:
    """The shortest request there is, the way every verb goes."""
    import modelbroker

    broker = modelbroker.connect(endpoint)
    repeat(lambda: broker._call("session.ping", {}, 30.0), int(count))


def echo(endpoint: str, count: str) -> None:
    """What any Python client of such a protocol must do at least."""
    import msgpack
    import zmq

    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    frame = {"v": 2, "request_id": "x" * 20, "type": "session.ping", "session": "x" * 32}

    def once() -> object:
        socket.send(msgpack.packb({**frame, "data": {}, "deadline_ms": 30000}))
        return msgpack.unpackb(socket.recv())

    repeat(once, int(count))


# ---- what goes on beside a measurement


def _input_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def churn(path: str, endpoint: str) -> None:
    """Loads and unloads."""
    import modelbroker

    broker = modelbroker.connect(endpoint)
    say(ready=True)
    rounds = 0
    while not _input_ended():
        broker.load(path, "churn")
        broker.unload("churn", wait=True)
        rounds += 1
    say(rounds=rounds)


def attach_often(name: str, endpoint: str) -> None:
    """Attaches at a steady rate; what it could not do in time it leaves out."""
    import modelbroker

    broker = modelbroker.connect(endpoint)
    say(ready=True)
    rounds, due = 0, time.monotonic()
    while not _input_ended():
        broker.attach(name).release()
        rounds += 1
        due = max(due + 1 / _A_SECOND, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    say(rounds=rounds)


_WHAT: dict[str, Callable[..., None]] = {
    "measure": measure,
    "tensorize": tensorize,
    "attach": attach,
    "dict": attach_dict,
    "open": open_file,
    "load": load_file,
    "ping": ping,
    "echo": echo,
    "churn": churn,
    "attach_often": attach_often,
}


def main() -> None:
    """The first word says what."""
    what, *rest = sys.argv[1:]
    _WHAT[what](*rest)


if __name__ == "__main__":
    main()
