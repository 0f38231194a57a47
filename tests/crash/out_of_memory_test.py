"""The kernel's OOM killer ends a broker: the next one has every block."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until

MIB = 1 << 20
MakeBroker = Callable[..., BrokerProcess]

# Grows until the control group is full; the killer must take another one.
EATER = """
import sys
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
eaten = []
while True:
    eaten.append(b"x" * (1 << 20))
"""


def is_empty(folder: Path) -> bool:
    return not (folder / "cgroup.procs").read_text().split()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 160 MiB."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        folder = root / f"modelbroker-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if not (folder / limit).exists():
            folder.rmdir()
            continue
        (folder / limit).write_text(str(160 * MIB))
        yield folder
        wait_until(functools.partial(is_empty, folder))
        folder.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here")


def test_a_broker_that_was_killed_for_memory_comes_back_with_every_block(
    make_broker: MakeBroker, tmp_path: Path, group: Path
) -> None:
    source = files.write_random(tmp_path / "m.safetensors", 40)
    broker = make_broker("--memory-reserve", "1MiB").start()
    (group / "cgroup.procs").write_text(str(broker.pid))
    Path(f"/proc/{broker.pid}/oom_score_adj").write_text("1000")
    with broker.connect() as client:
        client.load(source)
        weights = client.attach("m")
        before = weights.numpy()["t0"].tobytes()
        eater = subprocess.Popen([sys.executable, "-c", EATER, str(group)])
        try:
            assert broker.process is not None
            assert broker.process.wait(120) == -9, "the kernel killed it"
        finally:
            eater.kill()
            eater.wait()
        broker.process = None
        broker.start()
        assert [model.name for model in client.list()] == ["m"]
        assert weights.numpy()["t0"].tobytes() == before
        assert client.load(source).outcome == "resident"
        assert client.status().tiers["ram"].loads == 0
