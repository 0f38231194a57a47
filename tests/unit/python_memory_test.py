"""The mapping, as the kernel describes it: aligned, shared, and nowhere copied."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from support import files
from support.broker import BrokerProcess, run_python
from support.workers import line_of, workers

MODES: list[Literal["private", "readonly"]] = ["private", "readonly"]


@dataclass
class Area:
    """A block of /proc/<pid>/smaps; sizes in bytes."""

    start: int
    end: int
    access: str
    sizes: dict[str, int] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def areas_of(block: str, pid: int | str = "self") -> list[Area]:
    areas: list[Area] = []
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            inside = block in rest
            if inside:
                start, end = (int(part, 16) for part in word.split("-"))
                areas.append(Area(start, end, rest.split()[0]))
        elif inside and word == "VmFlags:":
            areas[-1].flags = rest.split()
        elif inside and rest.endswith("kB"):
            areas[-1].sizes[word[:-1]] = int(rest.split()[0]) * 1024
    return areas


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("megabytes", [0.01, 1, 12])
def test_the_address_is_aligned_and_nobody_accounts_for_it(
    broker: BrokerProcess, tmp_path: Path, megabytes: float, mode: Literal["private", "readonly"]
) -> None:
    path = files.write_random(tmp_path / "m", megabytes)
    with broker.connect() as client, client.attach(path, mode=mode) as weights:
        (model,) = client.list()
        (area,) = areas_of(model.block)
        assert area.start % (2 << 20) == 0
        assert area.end - area.start == Path(model.block_path).stat().st_size
        assert area.access == {"private": "rw-p", "readonly": "r--s"}[mode]
        # NORESERVE, so that a machine without overcommit can map it
        assert ("nr" in area.flags) == (mode == "private")
        for name in weights:
            address = weights.raw(name).__array_interface__["data"][0]
            assert area.start < address < area.end
    del weights
    assert areas_of(model.block) == []


# Touches every byte in every form, then applies them to a module; prints what that cost.
TOUCH = """
import json, sys
import modelbroker
import torch

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

client = modelbroker.connect(timeout=30)
module = torch.nn.Linear(1000, 25000, bias=False, device="meta")
torch.ones(4).sum()
before = anonymous()
weights = client.attach("m")
total = int(weights.raw("weight").max())
tensor = weights.state_dict()["weight"]
report = weights.apply_to(module)
assert not report.missing and not report.still_on_meta
assert module.weight.data_ptr() == tensor.data_ptr()
print("ready", flush=True)
print(json.dumps({"anonymous": anonymous() - before}), flush=True)
sys.stdin.readline()
"""


def weight_file(path: Path) -> Path:
    """50 MB: far more than what an interpreter's heap moves by itself."""
    return files.write(path, {"weight": ("F16", [25000, 1000], bytes(range(250)) * 200_000)})


def test_attaching_touching_and_applying_copies_nothing(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", weight_file(tmp_path / "m"), "--name", "m")
    (model,) = broker.cli_json("ps")
    with workers(broker, 1, TOUCH) as [worker]:
        assert json.loads(line_of(worker))["anonymous"] < 10_000_000
        (area,) = areas_of(model["block"], worker.pid)
        assert area.sizes["Rss"] >= 50_000_000
        assert area.sizes["Anonymous"] == 0
        assert broker.bytes_in_ram() == broker.books()["made"] < 60_000_000


def test_two_workers_share_every_page(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", weight_file(tmp_path / "m"), "--name", "m")
    (model,) = broker.cli_json("ps")
    with workers(broker, 2, TOUCH) as two:
        for worker in two:
            (area,) = areas_of(model["block"], worker.pid)
            assert area.sizes["Rss"] >= 50_000_000
            assert area.sizes["Pss"] == pytest.approx(area.sizes["Rss"] / 2, rel=0.05)
            assert area.sizes["Anonymous"] == 0
            assert area.sizes["Private_Dirty"] == area.sizes["Private_Clean"] == 0


def test_a_private_write_costs_the_pages_that_it_touches(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m", 40)
    with broker.connect() as client, client.attach(path) as weights:
        (model,) = client.list()
        raw = weights.raw("t1")
        raw[::4096].sum()
        (area,) = areas_of(model.block)
        assert area.sizes["Anonymous"] == 0
        for page in range(5):
            raw[page * 1_000_000] ^= 1
        (area,) = areas_of(model.block)
        assert area.sizes["Anonymous"] == 5 * 4096


MAPS_LITTLE = """
import resource, sys
import modelbroker

client = modelbroker.connect(timeout=30)
client.list()
with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20), resource.RLIM_INFINITY))
try:
    client.attach("m")
except modelbroker.ResourceExhaustedError as error:
    assert "ulimit -v" in str(error), error
else:
    raise AssertionError("it was mapped")
resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20), resource.RLIM_INFINITY))
assert client.status().tiers["ram"].leases == 0
with client.attach("m") as weights:
    print(int(weights.raw("weight")[249]))
"""


def test_no_address_space_is_an_error_that_leaves_no_lease(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", weight_file(tmp_path / "m"), "--name", "m")
    done = run_python(MAPS_LITTLE, environment=broker.environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "249", "")
