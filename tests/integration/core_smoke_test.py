"""The main way through: load, attach, compute, kill, come back, unload."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from support import files
from support.broker import BrokerProcess, wait_until
from support.features import needs


@needs("write_lease")  # else an adopted block is not freed at once
def test_loads_attaches_survives_a_kill_and_is_empty_again(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "model.safetensors", 20)
    broker.cli("load", path, "--name", "m")
    before = broker.cli_json("ps")
    with broker.connect() as client:
        weights = client.attach("m")
        tensors = weights.state_dict()
        stock = safetensors.torch.load_file(path)
        assert tensors.keys() == stock.keys()
        broker.kill()
        for name, tensor in stock.items():
            assert torch.equal(tensors[name].view(torch.int16), tensor.view(torch.int16))
        path.unlink()
        broker.start()
        wait_until(lambda: broker.books()["leases"] == 1)
        after = broker.cli_json("ps")
        for field in ("name", "block", "generation", "bytes"):
            assert after[0][field] == before[0][field]
        assert broker.bytes_in_ram() == broker.books()["made"]
        del tensors
        weights.release()
        broker.cli("unload", "m")
        assert broker.is_empty()
