"""Threads run out, in a worker, a command or under the broker: a refusal that says so, and no more.

As a user of its own, since the kernel counts per user and lets root have more; the C++ client:
client_broker_test.cc.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

import modelbroker
from support import files
from support.broker import BINARY, BrokerProcess, wait_until
from support.users import GROUP, User, as_user, needs_root
from support.workers import assert_right_bytes, crcs

pytestmark = needs_root

RESOURCE_EXHAUSTED = 15
LONELY = User(50_000 + os.getpid() % 10_000, GROUP)  # with no other process


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where everybody may look."""
    made = Path(tempfile.mkdtemp(prefix="mb-open-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[BrokerProcess]:
    """Of root, with a model that everybody may attach."""
    started = BrokerProcess("--group", str(GROUP))
    started.folder.chmod(0o755)
    started.start()
    path = files.write_random(folder / "m.safetensors", 2)
    path.chmod(0o644)
    started.cli("load", path, "--name", "m")
    yield started
    started.stop()


def allow(left: int) -> None:
    """So many threads more from now on; for a process that is its user's only one."""
    limit_threads(len(os.listdir("/proc/self/task")) + left)


def limit_threads(most: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (hard if most is None else most, hard))


def told(act: Callable[[], object]) -> str:
    try:
        act()
    except modelbroker.ModelBrokerError as error:
        return f"{error.code}: {error}"
    return "done"


def is_refusal(said: str) -> bool:
    words = ("ulimit -u", "TasksMax=", "pids.max")
    return said.startswith("resource_exhausted: ") and all(word in said for word in words)


# ---- a worker


def list_models(client: modelbroker.Broker, _path: Path) -> None:
    client.list()


def attach(client: modelbroker.Broker, _path: Path) -> None:
    with client.attach("m") as weights:
        assert len(weights) == 4


def attach_a_path(client: modelbroker.Broker, path: Path) -> None:
    with client.attach(path) as weights:
        assert len(weights) == 4


def listen(client: modelbroker.Broker, _path: Path) -> None:
    with client.events(timeout=30) as events:
        assert next(events).type == "snapshot"


@pytest.mark.parametrize("act", [list_models, attach, attach_a_path, listen])
@pytest.mark.parametrize("left", range(4))
def test_a_worker_with_few_threads_is_refused_or_served(
    broker: BrokerProcess, folder: Path, act: Callable[[Any, Path], None], left: int
) -> None:
    """libzmq would abort it."""
    path = folder / "m.safetensors"

    def work() -> tuple[str, str]:
        allow(left)
        client = modelbroker.connect(broker.endpoint, timeout=30)
        few = told(lambda: act(client, path))
        limit_threads(None)
        enough = told(lambda: act(client, path))
        client.close()
        return few, enough

    few, enough = as_user(LONELY, work)
    assert few == "done" or is_refusal(few)
    assert (few == "done") == (left >= 3)
    assert enough == "done"
    wait_until(lambda: broker.books()["leases"] == 0)


def test_a_load_without_a_thread_for_its_progress_is_refused(
    broker: BrokerProcess, folder: Path
) -> None:
    path = folder / "m.safetensors"

    def work() -> tuple[str, str]:
        client = modelbroker.connect(broker.endpoint, timeout=30)
        client.list()
        allow(0)
        few = told(lambda: client.load(path, progress=lambda _read, _total: None))
        limit_threads(None)
        enough = told(lambda: client.load(path, progress=lambda _read, _total: None))
        client.close()
        return few, enough

    few, enough = as_user(LONELY, work)
    assert is_refusal(few)
    assert enough == "done"


@pytest.mark.parametrize("left", range(4))
def test_a_forked_child_with_few_threads_is_refused_or_served(
    broker: BrokerProcess, left: int
) -> None:
    def work() -> str:
        client = modelbroker.connect(broker.endpoint, timeout=30)
        attach(client, Path())
        readable, writable = os.pipe()
        if os.fork() == 0:
            parents = len(os.listdir(f"/proc/{os.getppid()}/task"))
            limit_threads(parents + 1 + left)
            os.write(writable, told(lambda: attach(client, Path())).encode())
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            said = pipe.read().decode()
        os.wait()
        return said

    said = as_user(LONELY, work)
    assert said == "done" or is_refusal(said)
    assert (said == "done") == (left >= 3)


def test_an_attach_whose_keeper_gets_no_thread_leaves_no_lease(broker: BrokerProcess) -> None:
    def work() -> tuple[str, int]:
        client = modelbroker.connect(broker.endpoint, timeout=30)
        client.list()  # libzmq has its threads
        allow(0)
        few = told(lambda: client.attach("m"))
        return few, client.status().tiers["ram"].leases

    few, leases = as_user(LONELY, work)
    assert is_refusal(few)
    assert leases == 0


# ---- a command, and the broker


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    """Where that user can execute it."""
    copied = folder / "modelbroker"
    shutil.copy(BINARY, copied)
    copied.chmod(0o755)
    return copied


def start(
    program: Path, left: int, *words: str, endpoint: str, output: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program, *words],
        user=LONELY.uid,
        group=LONELY.gid,
        extra_groups=[],
        preexec_fn=lambda: allow(left),
        # A sanitizer's look for leaks wants a thread too.
        env={**os.environ, "MODELBROKER_ENDPOINT": endpoint, "ASAN_OPTIONS": "detect_leaks=0"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
    )


@pytest.mark.parametrize("words", [["ls"], ["load", "PATH", "--name", "mine"], ["show", "m"]])
@pytest.mark.parametrize("left", range(5))
def test_a_command_with_few_threads_is_refused_or_done(
    broker: BrokerProcess, folder: Path, program: Path, left: int, words: list[str]
) -> None:
    path = files.write_random(folder / "mine.safetensors", 1, seed=1)
    os.chown(path, LONELY.uid, LONELY.gid)
    real = [str(path) if word == "PATH" else word for word in words]
    command = start(program, left, *real, endpoint=broker.endpoint)
    _, error = command.communicate(timeout=60)
    # Without a thread for its progress a load goes on.
    assert command.returncode == (0 if left >= 2 else RESOURCE_EXHAUSTED), error
    assert left >= 2 or "ulimit -u" in error


@pytest.mark.parametrize("left", range(6))
def test_events_with_few_threads_are_refused_or_shown(
    broker: BrokerProcess, program: Path, left: int
) -> None:
    command = start(program, left, "events", "--snapshot", endpoint=broker.endpoint)
    out, error = command.communicate(timeout=60)
    assert command.returncode == (0 if left >= 4 else RESOURCE_EXHAUSTED), error
    assert ("snapshot" in out) == (left >= 4)
    assert left >= 4 or "ulimit -u" in error


@pytest.fixture
def make_own(program: Path) -> Iterator[Callable[[int], BrokerProcess]]:
    """Starts a broker of that user with so many threads beside its first; it may refuse."""
    made: list[BrokerProcess] = []

    def make(left: int) -> BrokerProcess:
        own = BrokerProcess()
        made.append(own)
        os.chown(own.folder, LONELY.uid, LONELY.gid)
        with own.log.open("w") as log:
            command = start(
                program, left, *own.serve_command()[1:], endpoint=own.endpoint, output=log
            )
        own.process = command  # type: ignore[assignment]  # of text: nothing comes by its pipes
        return own

    yield make
    for own in made:
        own.stop()
        for path in Path("/dev/shm").glob(f"modelbroker.{LONELY.uid}.{own.instance}.*"):
            path.unlink()


def connects(own: BrokerProcess) -> bool:
    try:
        modelbroker.connect(own.endpoint, timeout=0.05).close()
    except modelbroker.ModelBrokerError:
        return False
    return True


@pytest.mark.parametrize("left", [0, 1, 4, 8, 9, 12])
def test_a_broker_with_few_threads_refuses_to_start_or_serves(
    make_own: Callable[[int], BrokerProcess], folder: Path, left: int
) -> None:
    own = make_own(left)
    assert own.process is not None
    wait_until(lambda: not own.alive() or connects(own))
    if left < 9:
        assert own.process.wait(60) == RESOURCE_EXHAUSTED
        assert "ulimit -u" in own.output()
        own.process = None
        return
    path = files.write_random(folder / "m.safetensors", 2)
    with own.connect() as client:
        client.load(path)
        assert_right_bytes(client, "m", crcs(path))
    assert own.terminate() == 0


def test_a_broker_that_gets_no_more_threads_refuses_what_wants_one_and_lives(
    make_own: Callable[[int], BrokerProcess], folder: Path
) -> None:
    paths = [files.write_random(folder / f"m{n}.safetensors", 1, n) for n in range(8)]
    own = make_own(1000)
    wait_until(lambda: not own.alive() or connects(own))
    tasks = len(os.listdir(f"/proc/{own.pid}/task"))

    def limit(most: int) -> None:
        hard = resource.prlimit(own.pid, resource.RLIMIT_NPROC)[1]
        resource.prlimit(own.pid, resource.RLIMIT_NPROC, (most, hard))

    as_user(LONELY, lambda: limit(tasks))
    with own.connect() as client:
        refused = told(lambda: client.load(paths[0], timeout=30))
        assert is_refusal(refused)
        assert client.list() == []
        client.status()
        as_user(LONELY, lambda: limit(tasks + 1))
        client.load(paths[0], timeout=30)
        with ThreadPoolExecutor(8) as threads:  # one thread of the broker's does them all
            loads = [threads.submit(client.load, path, timeout=60) for path in paths]
            assert {load.result().outcome for load in loads} <= {"loaded", "resident"}
        for n, path in enumerate(paths):
            assert_right_bytes(client, f"m{n}", crcs(path))
        client.scrub(timeout=60)
    assert own.alive()


def test_looking_for_threads_leaves_none(broker: BrokerProcess) -> None:
    def work() -> tuple[int, list[str]]:
        with modelbroker.connect(broker.endpoint, timeout=30) as client:
            client.list()
        return len(os.listdir("/proc/self/task")), [t.name for t in threading.enumerate()]

    tasks, names = as_user(LONELY, work)
    assert (tasks, len(names)) == (3, 1)  # libzmq's two
