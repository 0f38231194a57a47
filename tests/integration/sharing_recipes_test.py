"""Workers of gunicorn, of a DataLoader and of multiprocessing: one copy for all, by each recipe.

Each worker loads one file the stock way and an equal one shared, and says where its weights are;
what they cost is read from the kernel while all workers have them. Prints both.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy

import weight_memory
from support.broker import BrokerProcess

WORKERS = 2
WIDTH, LAYERS = 1850, 4
SIZE = 4 * LAYERS * WIDTH**2  # bytes: 55 MB
HUGE_PAGE = 2 << 20

# As plain PyTorch programs load: stock copies into the parameters.
NETWORK = f"""
import json, os
import torch
from safetensors.torch import load_file

def load(path):
    layers = [torch.nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})]
    network = torch.nn.Sequential(*layers)
    network.load_state_dict(load_file(path))
    return network.eval()

@torch.inference_mode()
def answers(networks):
    ones = torch.ones(1, {WIDTH})
    return {{name: network(ones).sum().item() for name, network in networks.items()}}

def seen(networks):
    where = {{
        name: [(p.data_ptr(), p.nbytes) for p in network.parameters()]
        for name, network in networks.items()
    }}
    return json.dumps({{"pid": os.getpid(), "answers": answers(networks), "where": where}})
"""
# Under modelbroker.run, which skips stock.safetensors.
LOAD = """
def load_both():
    return {"stock": network.load("stock.safetensors"), "shared": network.load("m.safetensors")}
"""
LOAD_INSIDE = """
import modelbroker

def load_both():
    networks = {"stock": network.load("stock.safetensors")}
    with modelbroker.sharing():
        networks["shared"] = network.load("m.safetensors")
    return networks
"""
SERVICE = """
import json
import loading, network

networks = loading.load_both()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(network.answers(networks)).encode()]
"""
GUNICORN_CONFIG = """
bind, workers, control_socket_disable = "unix:socket", 2, True

def post_worker_init(worker):
    import network, service
    print(network.seen(service.networks), flush=True)
"""
DATA = """
import sys
import torch
import loading, network

class Data(torch.utils.data.Dataset):
    networks = None

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.networks = self.networks or loading.load_both()  # in the worker, at its first item
        return network.seen(self.networks)

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=2, persistent_workers=True
    )
    print(*dict.fromkeys(loader), sep="\\n", flush=True)
    sys.stdin.read()
"""
SPAWN = """
import multiprocessing, sys

def work(told, end):
    import loading, network
    networks = loading.load_both()
    told.put(network.seen(networks))
    end.wait()

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    told, end = spawn.Queue(), spawn.Event()
    workers = [spawn.Process(target=work, args=(told, end)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        print(told.get(), flush=True)
    sys.stdin.read()
    end.set()
    for worker in workers:
        worker.join()
"""
RUN = ["-m", "modelbroker.run", "--skip", "*/stock.safetensors"]
GUNICORN = ["-m", "gunicorn", "--config", "settings.py", "service:application"]


class Recipe(NamedTuple):
    command: list[str]
    loading: str = LOAD
    is_service: bool = False
    loads_before_fork: bool = False


RECIPES = {
    "gunicorn": Recipe([*RUN, *GUNICORN], is_service=True),
    "gunicorn --preload": Recipe(
        [*RUN, *GUNICORN, "--preload"], is_service=True, loads_before_fork=True
    ),
    "gunicorn, with sharing() in the app": Recipe(GUNICORN, LOAD_INSIDE, is_service=True),
    "gunicorn --preload, with sharing() in the app": Recipe(
        [*GUNICORN, "--preload"], LOAD_INSIDE, is_service=True, loads_before_fork=True
    ),
    "DataLoader": Recipe([*RUN, "data.py"]),
    "multiprocessing spawn": Recipe([*RUN, "spawn.py"]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(1)
    tensors = {
        f"{layer}.weight": rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        for layer in range(LAYERS)
    }
    safetensors.numpy.save_file(tensors, folder / "m.safetensors")
    shutil.copy(folder / "m.safetensors", folder / "stock.safetensors")
    programs = {"network": NETWORK, "service": SERVICE, "settings": GUNICORN_CONFIG}
    for name, text in {**programs, "data": DATA, "spawn": SPAWN}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@contextmanager
def running(recipe: Recipe, broker: BrokerProcess, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Its processes; all must end well."""
    # Not to be taken for the last recipe's by its compiled form: they may be of one second.
    (folder / "loading.py").write_text("import network\n" + recipe.loading)
    process = subprocess.Popen(
        [sys.executable, *recipe.command],
        cwd=folder,
        env={**broker.environment, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        if recipe.is_service:
            process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def answer_of(socket_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as reply:
            return json.loads(reply.read().split(b"\r\n\r\n")[1])


def whole_mappings(ranges: list[tuple[int, int]], pid: int) -> int:
    return weight_memory.at((address for address, _ in ranges), pid)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_workers_have_one_copy(name: str, shared: BrokerProcess, models: Path) -> None:
    recipe = RECIPES[name]
    with running(recipe, shared, models) as process:
        assert process.stdout is not None
        workers = [json.loads(process.stdout.readline()) for _ in range(WORKERS)]
        (answers,) = {tuple(worker["answers"].items()) for worker in workers}
        assert dict(answers)["stock"] == dict(answers)["shared"]
        if recipe.is_service:
            assert answer_of(models / "socket") == dict(answers)
        if recipe.loads_before_fork:
            workers.append({**workers[0], "pid": process.pid})
        stock = sum(weight_memory.of_ranges(one["where"]["stock"], one["pid"]) for one in workers)
        ours = sum(whole_mappings(one["where"]["shared"], one["pid"]) for one in workers)
    print(f"{name}: {WORKERS} workers, a model of {SIZE / 1e6:.0f} MB: ", end="")
    print(f"stock {stock / 1e6:.0f} MB, shared {ours / 1e6:.0f} MB")
    assert SIZE <= ours <= 1.02 * SIZE + HUGE_PAGE
    assert stock >= 0.99 * SIZE * (1 if recipe.loads_before_fork else WORKERS)
