"""Descriptors run out, in a worker or under the broker: a refusal that says so, and no more.

Connections without end: wire_floods_test.py; the C++ client: client_broker_test.cc.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, run_python, wait_until
from support.workers import assert_right_bytes, crcs

# Does something with so many descriptors left, and says how it went.
FEW = """
import os, resource, sys
import modelbroker

modelbroker.connect  # the package is lazy, and an import wants descriptors
usual = resource.getrlimit(resource.RLIMIT_NOFILE)

def told(left, act):
    lowest = os.dup(0)  # the lowest number that is free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, usual[1]))
    try:
        act()
        said = "done"
    except modelbroker.ModelBrokerError as error:
        said = f"{error.code}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    print(said, flush=True)
"""


def run(script: str, *arguments: str | Path, broker: BrokerProcess) -> list[str]:
    done = run_python(FEW + script, *map(str, arguments), environment=broker.environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def model(broker: BrokerProcess, tmp_path: Path) -> Path:
    path = files.write_random(tmp_path / "m.safetensors", 2)
    broker.cli("load", path, "--name", "m")
    return path


# Each in a process of its own: libzmq would abort it, or never connect.
EVERY_NUMBER = """
for left in range(18):
    if (child := os.fork()) == 0:
        told(left, lambda: modelbroker.connect(timeout=5).list())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, left
"""


def test_a_worker_with_few_descriptors_is_refused_or_connected(broker: BrokerProcess) -> None:
    for left, said in enumerate(run(EVERY_NUMBER, broker=broker)):
        assert said == "done" or (said.startswith("resource_exhausted: ") and "ulimit -n" in said)
        assert (said == "done") == (left > 16), left
    assert left == 17


USES = """
from modelbroker._deadline import Deadline

client = modelbroker.connect(timeout=30)
client.list()
for left in range(6):
    told(left, lambda: client.attach("m"))
told(0, lambda: client.load(sys.argv[1]))
held = client.attach("m")
client._link._pool.clear()  # what ends the lease needs a socket first

def release():
    held.release()
    client._link.settle(Deadline(1))

told(0, release)
told(0, client.list)
while client.list()[0].leases:
    pass
"""


def test_a_worker_out_of_descriptors_goes_on_when_it_has_some(
    broker: BrokerProcess, model: Path
) -> None:
    *attached, loaded, released, listed = run(USES, model, broker=broker)
    assert attached[0] != "done" != loaded
    assert attached[-1] == "done"
    for said in (
        *attached,
        loaded,
        released,
        listed,
    ):  # beside the keeper's thread, which opens some too
        assert said == "done" or (said.startswith("resource_exhausted: ") and "ulimit -n" in said)
    wait_until(lambda: broker.books()["leases"] == 0)


def test_a_broker_out_of_descriptors_takes_no_file_and_lives(
    broker: BrokerProcess, model: Path, tmp_path: Path
) -> None:
    other = files.write_random(tmp_path / "other.safetensors", 1)
    usual = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
    with broker.connect() as client:
        client.list()
        taken = {int(name) for name in os.listdir(f"/proc/{broker.pid}/fd")}
        lowest = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (lowest, usual[1]))
        with pytest.raises(modelbroker.ResourceExhaustedError, match="ulimit -n"):
            client.load(other, timeout=30)
        with client.attach("m") as weights:
            assert len(weights) == 4
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, usual)
        assert client.load(other).outcome == "loaded"
        assert_right_bytes(client, "m", crcs(model))
    wait_until(lambda: broker.books()["leases"] == 0)
