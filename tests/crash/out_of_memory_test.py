"""Memory limits of a control group, of either version: kept to, and what the OOM killer leaves."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelbroker import ResourceExhaustedError
from support import files
from support.broker import BINARY, BrokerProcess, wait_until

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


class Limited(BrokerProcess):
    """In that control group from its first moment."""

    group = Path()

    def serve_command(self) -> list[str]:
        return in_group(self.group, super().serve_command())


def in_group(group: Path, command: list[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]


def limit_to(group: Path, size: int) -> None:
    for limit in (group / "memory.max", group / "memory.limit_in_bytes"):
        if limit.exists():
            limit.write_text(str(size))


@pytest.mark.parametrize("flags", [[], ["--ram-budget", "1GiB"]], ids=["default", "given"])
def test_no_load_passes_the_limit_of_its_group(
    tmp_path: Path, group: Path, flags: list[str]
) -> None:
    limit_to(group, 640 * MIB)  # 512 MiB of it are kept free
    source = tmp_path / "m.safetensors"
    size = 500 * MIB
    source.write_bytes(files.encode({"t": files.entry("U8", [size], 0, size)}))
    os.truncate(source, source.stat().st_size + size)
    broker = Limited(*flags)
    broker.group = group
    try:
        broker.start()
        doctor = subprocess.run(
            in_group(group, [BINARY, "doctor", "--json"]),
            env=broker.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
        assert "left to this control group" in checks["cgroup_memory"]["found"]
        assert "memory.limit_in_bytes" in checks["cgroup_memory"]["remedy"]
        with broker.connect() as client:
            if not flags:
                assert broker.books()["limit"] < 130 * MIB
            with pytest.raises(ResourceExhaustedError) as refused:
                client.load(source)
            assert ("control group" in str(refused.value)) == bool(flags)
            wait_until(broker.is_empty)
    finally:
        broker.stop()
