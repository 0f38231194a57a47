"""The list of this process's mappings, and another mapping of the same block."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import modelbroker
from modelbroker import _memory
from support import files
from support.broker import BrokerProcess, run_python


def address_of(weights: modelbroker.Weights, name: str) -> int:
    address: int = weights.raw(name).__array_interface__["data"][0]
    return address


def memory_of(weights: modelbroker.Weights, name: str) -> _memory.Memory:
    memory = _memory.find(address_of(weights, name))
    assert memory is not None
    return memory


def test_a_mapping_is_found_by_every_address_in_it_while_it_lives(
    loaded: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "other", 3)
    with loaded.connect() as client:
        one, two = client.attach("m"), client.attach(path)
        first, second = memory_of(one, "t0"), memory_of(two, "t0")
        assert first is not second
        assert {first, second} <= set(_memory.live())
        for memory in (first, second):
            inside = [memory.address, memory.address + memory.size - 1]
            assert [_memory.find(address) for address in inside] == [memory, memory]
            assert _memory.find(memory.address - 1) is not memory
            assert _memory.find(memory.address + memory.size) is not memory
        assert set(first.entries()) == set(one)
        assert first.header is not None
        address = first.address + first.header.payload + first.entries()["t1"][3]
        assert address == address_of(one, "t1")
        start = first.address
        del first, memory, one
        gc.collect()
        assert _memory.find(start) is None
        assert memory_of(two, "t3") is second


def test_mappings_that_come_and_go_in_threads_are_never_confused(loaded: BrokerProcess) -> None:
    wrong: list[str] = []

    def come_and_go(client: modelbroker.Broker) -> None:
        for _ in range(60):
            weights = client.attach("m")
            found = _memory.find(address_of(weights, "t2"))
            again = found.again() if found is not None else None
            if again is None or _memory.find(again.address + 5) is not again:
                wrong.append("not found")
            if found not in _memory.live():
                wrong.append("not listed")

    with loaded.connect() as client:
        before = len(_memory.live())
        threads = [threading.Thread(target=come_and_go, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        assert wrong == []
        assert len(_memory.live()) == before


def test_another_mapping_has_the_blocks_own_bytes_and_keeps_the_lease(
    loaded: BrokerProcess,
) -> None:
    with loaded.connect() as client:
        weights = client.attach("m")
        right = weights.raw("t1").copy()
        weights.raw("t1")[:] = 0
        memory = memory_of(weights, "t1")
        offset = address_of(weights, "t1") - memory.address
        again = memory.again()
        del memory
        weights.release()
        gc.collect()
        assert client.status().tiers["ram"].leases == 1
        fresh = np.asarray(again)[offset : offset + len(right)]
        assert again.writable
        assert np.array_equal(fresh, right)
        fresh[:] = 1
        assert not (np.asarray(again.again())[offset : offset + len(right)] == 1).all()
        del again, fresh
        assert client.status().tiers["ram"].leases == 0


@pytest.mark.parametrize("other", ["nothing", "another file"])
def test_a_path_that_leads_elsewhere_is_answered_by_the_broker(
    loaded: BrokerProcess, tmp_path: Path, other: str
) -> None:
    with loaded.connect() as client:
        weights = client.attach("m")
        memory = memory_of(weights, "t0")
        (model,) = client.list()
        block = Path(model.block_path)
        if other == "another file":
            (tmp_path / "other").write_bytes(bytes(memory.size))
        memory._path = str(tmp_path / "other")
        again = memory.again()
        assert bytes(np.asarray(again)) == block.read_bytes()
        loaded.kill()
        with pytest.raises(modelbroker.ModelBrokerError):
            memory.again(timeout=0.05)
        memory._path = str(block)
        assert bytes(np.asarray(memory.again())) == block.read_bytes()
        loaded.start()


CHILD = """
import os, signal, sys, warnings
import modelbroker
from modelbroker import _memory

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
weights = modelbroker.connect(timeout=30).attach("m")
address = weights.raw("t0").__array_interface__["data"][0]
parents = _memory.find(address)
right = bytes(weights.raw("t0"))
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    status = 1
    try:
        assert _memory.find(address) is parents
        weights.raw("t0")[:] = 0
        again = parents.again()
        assert _memory.find(again.address + 1) is again
        assert len(_memory.live()) == 2
        import numpy
        offset = address - parents.address
        assert bytes(numpy.asarray(again)[offset : offset + len(right)]) == right
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(_memory.live()) == 1
assert bytes(weights.raw("t0")) == right
assert "torch" not in sys.modules
"""


def test_a_forked_child_finds_its_parents_mappings_and_makes_its_own(
    loaded: BrokerProcess,
) -> None:
    done = run_python(CHILD, environment={**os.environ, **loaded.environment})
    assert (done.returncode, done.stderr) == (0, "")
