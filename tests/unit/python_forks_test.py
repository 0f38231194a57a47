"""One Broker in processes that were forked from the one that connected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.broker import BrokerProcess, run_python, wait_until

# What every script begins with. A child that hangs is killed by its alarm. Python warns of forks
# with threads; here they are the point.
PRELUDE = """
import os, signal, sys, threading, warnings, zlib
import modelbroker

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")

def checksum(weights):
    return sum(zlib.crc32(weights.raw(name).data) for name in weights)

def child(work):
    "Forks and works there; os._exit, so that nothing of the parent's runs twice."
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid

def join(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def until(condition):
    while not condition():
        pass

def leases():
    return client.status().tiers["ram"].leases

client = modelbroker.connect(timeout=30)
weights = client.attach("m")
right = checksum(weights)
assert leases() == 1
"""


def assert_runs(broker: BrokerProcess, script: str) -> None:
    done = run_python(PRELUDE + script, environment=broker.environment)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: broker.books()["leases"] == 0)


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_forked_child_reads_on_and_its_exit_ends_nothing_of_the_parents(
    loaded: BrokerProcess, leave: str
) -> None:
    assert_runs(
        loaded,
        f"""
tensors = weights.numpy()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    assert checksum(weights) == right
    weights.raw("t0")[0] ^= 1
    assert checksum(weights) != right
    {leave}
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == (-9 if "kill" in {leave!r} else 0), status
assert leases() == 1
assert checksum(weights) == right
""",
    )


def test_a_childs_calls_are_of_a_session_of_its_own(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
def work():
    assert leases() == 1
    assert [model.name for model in client.list()] == ["m"]
    with client.attach("m") as mine:
        assert checksum(mine) == right
        assert leases() == 2
        holders = {holder.pid for holder in client.list()[0].leases}
        assert holders == {os.getpid(), os.getppid()}, holders
    del mine
    assert leases() == 1
    weights.release()
    assert leases() == 1  # it was the parent's
    client.close()

for _ in range(3):
    join(child(work))
    assert leases() == 1
    assert checksum(weights) == right
until(lambda: client.status().sessions == 1)
""",
    )


def test_what_a_child_collects_is_still_the_parents(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
import gc
def work():
    global weights, client
    del weights
    gc.collect()
    del client
    gc.collect()
    with modelbroker.connect(timeout=30) as own:
        assert own.status().tiers["ram"].leases == 1

join(child(work))
assert leases() == 1
weights.release()
del weights
assert leases() == 0
""",
    )


def test_a_child_that_was_forked_with_a_closed_or_an_unused_broker_goes_on(
    loaded: BrokerProcess,
) -> None:
    assert_runs(
        loaded,
        """
unused = modelbroker.connect(timeout=30)
closed = modelbroker.connect(timeout=30)
tensors = closed.attach("m").numpy()
closed.close()

def work():
    assert [model.name for model in unused.list()] == ["m"]
    assert tensors["t0"].view("u1").any()
    try:
        closed.list()
    except modelbroker.FailedPreconditionError:
        pass
    else:
        raise AssertionError("it was closed")

join(child(work))
assert leases() == 2
""",
    )


def test_a_fork_while_another_thread_is_inside_a_call_hangs_nobody(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
thread = threading.Thread(target=client.unload, args=("m",), kwargs={"wait": True, "timeout": None})
thread.start()
observer = modelbroker.connect(timeout=30)
until(lambda: observer.status().tiers["ram"].draining > 0)

def work():
    assert client.list() == []
    assert checksum(weights) == right

for _ in range(5):
    join(child(work))
assert thread.is_alive()
weights.release()
del weights
thread.join(60)
assert not thread.is_alive()
assert client.list() == []
""",
    )


def test_forks_at_any_moment_of_other_threads_calls_hang_nobody(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
stopping = False
failures = []

def call():
    try:
        while not stopping:
            client.list()
            with client.attach("m") as more:
                more.raw("t0")[:10].sum()
    except BaseException as error:
        failures.append(error)
        raise

def work():
    assert [model.name for model in client.list()] == ["m"]
    with client.attach("m") as mine:
        assert checksum(mine) == checksum(weights) == right

threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(40):
    join(child(work))
stopping = True
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
assert not failures
""",
    )


def test_a_thread_may_fork(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
statuses = []

def work():
    assert checksum(weights) == right
    assert [model.name for model in client.list()] == ["m"]

def fork():
    join(child(work))
    statuses.append(0)

threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(90)
assert statuses == [0] * 4
assert leases() == 1
""",
    )


def test_a_grandchild_works_when_the_child_is_gone(loaded: BrokerProcess) -> None:
    assert_runs(
        loaded,
        """
mine, theirs = os.pipe()
answer, answers = os.pipe()
parent = os.getpid()

def grandchild():
    assert os.read(mine, 1) == b"!"  # by now the child is gone
    assert checksum(weights) == right
    assert [holder.pid for holder in client.list()[0].leases] == [parent]
    with client.attach("m") as own:
        assert checksum(own) == right
    os.write(answers, b"done")

join(child(lambda: (client.list(), child(grandchild))))
os.write(theirs, b"!")
os.close(answers)
assert os.read(answer, 10) == b"done"
until(lambda: leases() == 1)
""",
    )


def test_the_leases_of_a_child_are_restated_as_its_own(loaded: BrokerProcess) -> None:
    script = """
import sys
def work():
    with client.attach("m") as mine:
        os.write(theirs, b"!")
        sys.stdin.readline()
        assert checksum(mine) == right

mine, theirs = os.pipe()
pid = child(work)
os.read(mine, 1)
print("ready", flush=True)
join(pid)
"""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script],
        env=loaded.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        before = {holder["pid"] for holder in loaded.cli_json("ps")[0]["leases"]}
        assert len(before) == 2
        loaded.kill()
        loaded.start()
        wait_until(lambda: loaded.books()["leases"] == 2)
        assert {holder["pid"] for holder in loaded.cli_json("ps")[0]["leases"]} == before
        parent.communicate("go\n", timeout=60)
        assert parent.returncode == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_workers_attach_whatever_started_them(
    loaded: BrokerProcess, tmp_path: Path, method: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing, warnings, zlib
import modelbroker

def checksum(weights):
    return sum(zlib.crc32(weights.raw(name).data) for name in weights)

def work(number):
    with modelbroker.connect(timeout=30) as own, own.attach("m") as weights:
        return checksum(weights)

if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    client = modelbroker.connect(timeout=30)
    weights = client.attach("m")
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert set(pool.map(work, range(6))) == {{checksum(weights)}}
        pool.close()
        pool.join()
    assert client.status().tiers["ram"].leases == 1
""")
    done = subprocess.run(
        [sys.executable, program],
        env=loaded.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: loaded.books()["leases"] == 0)
