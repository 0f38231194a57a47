"""A full budget: who goes, who never does, and books that equal the kernel's count."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelbroker
from modelbroker import NotFoundError, ResourceExhaustedError
from support import files
from support.broker import BrokerProcess, wait_until
from support.features import needs

MIB = 1 << 20
MODELS, ROOM = 12, 4
MODEL_MB = 5.0  # 4.8 MiB of bytes: a block of 8 MiB with its header
ACCESSES = 1000

MakeBroker = Callable[..., BrokerProcess]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [
        files.write_random(folder / f"m{i}.safetensors", MODEL_MB, seed=i, tensors=2)
        for i in range(MODELS)
    ]


def payload(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def held(weights: modelbroker.Weights) -> bytes:
    arrays = weights.numpy()
    return b"".join(np.asarray(arrays[name]).tobytes() for name in sorted(arrays))


def block_bytes(make_broker: MakeBroker, source: Path) -> int:
    broker = make_broker().start()
    with broker.connect() as client:
        made = client.load(source).bytes
    broker.terminate()
    return made


def assert_exact(broker: BrokerProcess, client: modelbroker.Broker) -> modelbroker.Tier:
    """Nothing is under way: the books say what the kernel says."""
    for _ in range(200):  # a drained block may be unlinked between two looks
        before = broker.bytes_in_ram()
        books = client.status().tiers["ram"]
        if before == books.made + books.draining == broker.bytes_in_ram():
            assert books.reserved + books.made + books.draining <= books.limit
            return books
    raise AssertionError(f"books say {books}, the kernel {broker.bytes_in_ram()}")


@pytest.fixture
def tight(make_broker: MakeBroker, sources: list[Path]) -> BrokerProcess:
    """A broker with room for 4 of the 12 models."""
    each = block_bytes(make_broker, sources[0])
    return make_broker("--ram-budget", str(ROOM * each)).start()


@pytest.mark.parametrize("order", ["random", "cyclic"])
def test_four_of_twelve_models_a_thousand_accesses(
    tight: BrokerProcess, sources: list[Path], order: str
) -> None:
    right = [payload(source) for source in sources]
    pick = random.Random(7)
    with tight.connect() as client:
        for step in range(ACCESSES):
            i = pick.randrange(MODELS) if order == "random" else step % MODELS
            with client.attach(sources[i]) as weights:
                assert held(weights) == right[i]
            books = assert_exact(tight, client)
            assert books.models <= ROOM
            if order == "cyclic":  # no more went than had to
                assert books.models == min(step + 1, ROOM)
    assert books.misses == books.loads
    assert books.hits + books.misses == ACCESSES
    assert books.evictions == books.loads - books.models
    if order == "cyclic":  # least recently used is at its worst: each access is a miss
        assert books.hits == 0
    else:  # a third is resident at any time
        assert ACCESSES / 5 < books.hits < ACCESSES / 2
    assert len(tight.blocks()) == ROOM


def test_what_was_used_last_stays(tight: BrokerProcess, sources: list[Path]) -> None:
    with tight.connect() as client:
        for source in sources[:ROOM]:
            client.load(source)
        client.attach("m0").release()
        client.load(sources[4])
        assert {model.name for model in client.list()} == {"m0", "m2", "m3", "m4"}


def test_a_pinned_and_a_leased_model_are_never_taken(
    tight: BrokerProcess, sources: list[Path]
) -> None:
    with tight.connect() as client:
        client.load(sources[0], pin=True)
        client.load(sources[1])
        with client.attach("m1") as weights:
            for _ in range(3):
                for source in sources[2:]:
                    client.load(source)
                    names = {model.name for model in client.list()}
                    assert {"m0", "m1"} <= names
            assert held(weights) == payload(sources[1])
        assert_exact(tight, client)


def test_when_all_is_held_the_refusal_has_the_numbers(
    tight: BrokerProcess, sources: list[Path]
) -> None:
    with tight.connect() as client:
        each = client.load(sources[0], pin=True).bytes
        client.load(sources[1], pin=True)
        leases = [client.attach(source) for source in sources[2:4]]
        with pytest.raises(ResourceExhaustedError) as caught:
            client.load(sources[4])
        assert caught.value.details == {
            "needed": each,
            "limit": ROOM * each,
            "available": 0,
            "made": ROOM * each,
            "reserved": 0,
            "draining": 0,
            "pinned": 2 * each,
            "leased": 2 * each,
            "evictable": 0,
            "foreign": 0,
        }
        for lease in leases:
            lease.release()
        assert client.load(sources[4]).outcome == "loaded"


def test_a_model_larger_than_the_budget_evicts_nobody(
    tight: BrokerProcess, sources: list[Path], tmp_path: Path
) -> None:
    large = files.write_random(tmp_path / "large.safetensors", 60)
    with tight.connect() as client:
        for source in sources[:ROOM]:
            client.load(source)
        for timeout in (None, 5.0):  # no deadline makes it fit
            with pytest.raises(ResourceExhaustedError, match="budget"):
                client.load(large, timeout=timeout)
        assert len(client.list()) == ROOM
        assert assert_exact(tight, client).evictions == 0


def test_an_evicted_model_is_loaded_again_by_its_name(
    tight: BrokerProcess, sources: list[Path]
) -> None:
    with tight.connect() as client:
        client.load(sources[0], name="first")
        for source in sources[1 : ROOM + 1]:
            client.load(source)
        assert "first" not in {model.name for model in client.list()}
        with client.attach("first") as weights:
            assert held(weights) == payload(sources[0])
        assert assert_exact(tight, client).evictions == 2


def test_an_evicted_model_whose_file_is_gone_says_so(
    tight: BrokerProcess, sources: list[Path], tmp_path: Path
) -> None:
    source = files.write_random(tmp_path / "gone.safetensors", MODEL_MB, seed=99)
    with tight.connect() as client:
        client.load(source)
        for other in sources[:ROOM]:
            client.load(other)
        source.unlink()
        with pytest.raises(NotFoundError, match="gone"):
            client.attach("gone")


def test_a_large_model_makes_several_go_and_no_more_than_needed(
    make_broker: MakeBroker, sources: list[Path], tmp_path: Path
) -> None:
    each = block_bytes(make_broker, sources[0])
    broker = make_broker("--ram-budget", str(ROOM * each)).start()
    large = files.write_random(tmp_path / "large.safetensors", 2 * each / 1e6 - 3)
    with broker.connect() as client:
        for source in sources[:ROOM]:
            client.load(source)
        need = client.load(large).bytes
        gone = -(-need // each)
        assert len(client.list()) == ROOM - gone + 1
        assert_exact(broker, client)


def test_books_count_the_pages_of_a_load_while_they_are_made(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    """A load only grows: what the books say lies between two looks at the files."""
    source = files.write_random(tmp_path / "big.safetensors", 300, tensors=3)
    broker = make_broker("--load-threads", "1").start()
    with broker.connect() as client, broker.connect() as other:
        done = threading.Event()

        def load() -> None:
            try:
                client.load(source)
            finally:
                done.set()

        loading = threading.Thread(target=load)
        loading.start()
        seen = set()
        while not done.is_set():
            before = broker.bytes_in_ram()
            books = other.status().tiers["ram"]
            after = broker.bytes_in_ram()
            assert before <= books.made + books.draining <= after
            assert books.reserved + books.made <= books.limit
            seen.add(books.made)
        loading.join()
        assert len(seen) > 2, "the load was seen growing"
        assert_exact(broker, other)


@needs("write_lease")  # else nothing adopted goes within grace
def test_after_a_crash_what_nobody_holds_may_go_at_once_and_what_is_held_may_not(
    tight: BrokerProcess, sources: list[Path]
) -> None:
    """During grace the books know no lease; the kernel knows who has a block."""
    client = tight.connect()
    weights = client.attach(sources[0])
    for source in sources[1:ROOM]:
        client.load(source)
    worker = weights  # its mapping is what the kernel sees
    tight.kill()
    tight.start()
    with tight.connect() as other:
        for source in sources[ROOM : 2 * ROOM]:
            other.load(source)
        assert "m0" in {model.name for model in other.list()}
        assert held(worker) == payload(sources[0])
        assert_exact(tight, other)
    weights.release()
    client.close()


def test_keep_alive_ends_what_nobody_uses_and_nothing_else(
    make_broker: MakeBroker, sources: list[Path]
) -> None:
    broker = make_broker().start()
    with broker.connect() as client:
        client.load(sources[0], keep_alive=0.5)
        client.load(sources[1], keep_alive=0.5, pin=True)
        client.load(sources[2])
        client.load(sources[3], keep_alive=0.5)
        with client.attach("m3") as weights:
            wait_until(lambda: "m0" not in {model.name for model in client.list()})
            assert {model.name for model in client.list()} == {"m1", "m2", "m3"}
            model = next(model for model in client.list() if model.name == "m3")
            assert (model.keep_alive, model.expires_at) == (0.5, None)
            assert held(weights) == payload(sources[3])
        wait_until(lambda: {model.name for model in client.list()} == {"m1", "m2"})
        client.unpin("m1")
        wait_until(lambda: {model.name for model in client.list()} == {"m2"})
        assert_exact(broker, client)


def test_keep_alive_also_ends_while_a_load_is_being_answered(
    broker: BrokerProcess, sources: list[Path]
) -> None:
    with broker.connect() as client:
        client.attach(sources[0]).release()
        assert client.load(sources[0], keep_alive=0).outcome == "resident"
        wait_until(lambda: client.list() == [])


def test_keep_alive_outlives_the_broker(make_broker: MakeBroker, sources: list[Path]) -> None:
    broker = make_broker("--grace", "1s").start()
    with broker.connect() as client:
        client.load(sources[0], keep_alive=3600)
        client.load(sources[1], keep_alive=1)
        broker.kill()
        broker.start()
        kept = {model.name: model.keep_alive for model in client.list()}
        assert kept in ({"m0": 3600}, {"m0": 3600, "m1": 1})
        wait_until(lambda: {model.name for model in client.list()} == {"m0"})


@pytest.mark.parametrize("value", ["soon", "1x", "nan", "inf"])
def test_a_keep_alive_that_cannot_be_is_refused(
    broker: BrokerProcess, sources: list[Path], value: str
) -> None:
    done = broker.cli("load", sources[0], "--keep-alive", value, check=False)
    assert done.returncode != 0
    assert "keep" in done.stderr
    assert broker.is_empty()
