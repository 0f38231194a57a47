"""The interpreter's exit with everything still alive: status 0, and not a word on stderr."""

from __future__ import annotations

import pytest

from support.broker import BrokerProcess, run_python, start_python, wait_until

SCRIPTS = {
    "globals": """
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
tensors = weights.state_dict()
arrays = weights.numpy()
""",
    "globals, released and closed": """
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
tensors = weights.numpy()
weights.release()
client.close()
""",
    "nothing but a client": """
import modelbroker
client = modelbroker.connect(timeout=30)
client.list()
""",
    "a client that nobody keeps": """
import modelbroker
modelbroker.connect(timeout=30).attach("m")
modelbroker.connect(timeout=30)
""",
    "an older module that holds them, and goes after the package": """
import json
import modelbroker
json.client = modelbroker.connect(timeout=30)
json.weights = json.client.attach("m")
json.arrays = json.weights.numpy()
json.events = json.client.events()
""",
    "cycles": """
import modelbroker
class Node:
    pass
for _ in range(3):
    node = Node()
    node.self = node
    node.client = modelbroker.connect(timeout=30)
    node.weights = node.client.attach("m")
    node.tensors = node.weights.numpy()
del node
""",
    "an atexit handler made before the package was imported": """
import atexit
def last():
    assert tensors["t1"].view("u1").sum() == total
    weights.release()
atexit.register(last)
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
tensors = weights.numpy()
total = tensors["t1"].view("u1").sum()
""",
    "an atexit handler made after it, with calls": """
import atexit
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
def last():
    assert [model.name for model in client.list()] == ["m"]
    with client.attach("m") as more:
        assert (more.raw("t0") == weights.raw("t0")).all()
    client.close()
atexit.register(last)
""",
    "a class with a destructor": """
import modelbroker
class Owner:
    def __init__(self):
        self.client = modelbroker.connect(timeout=30)
        self.weights = self.client.attach("m")
        self.array = self.weights.raw("t0")
    def __del__(self):
        assert self.array[0] == self.weights.raw("t0")[0]
        self.weights.release()
        self.client.close()
owner = Owner()
""",
    "daemon threads that compute": """
import threading
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
started = threading.Barrier(3)
def work():
    arrays = [weights.raw(name) for name in weights]
    started.wait()
    while True:
        for array in arrays:
            array.sum()
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
started.wait()
""",
    "daemon threads that call": """
import threading
import modelbroker
client = modelbroker.connect(timeout=30)
started = threading.Barrier(4)
def work():
    client.list()
    started.wait()
    try:
        while True:
            with client.attach("m") as weights:
                weights.raw("t0").sum()
            client.list()
    except modelbroker.FailedPreconditionError:
        pass  # the connection is closed at exit
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
started.wait()
""",
    "an ordinary thread that outlives the main one": """
import threading
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
def work():
    threading.main_thread().join()
    assert [model.name for model in client.list()] == ["m"]
    weights.raw("t0").sum()
threading.Thread(target=work).start()
""",
    "a module that was never closed": """
import modelbroker, torch
client = modelbroker.connect(timeout=30)
module = torch.nn.ParameterDict({f"t{i}": torch.empty(250000, device="meta") for i in range(4)})
print(client.attach("m").apply_to(module).still_on_meta)
""",
    "sys.exit within a with": """
import sys
import modelbroker
with modelbroker.connect(timeout=30) as client, client.attach("m") as weights:
    tensors = weights.state_dict()
    sys.exit(0)
""",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_the_interpreter_leaves_in_silence_and_the_lease_ends(
    loaded: BrokerProcess, what: str
) -> None:
    with_torch = "torch" in SCRIPTS[what] or "state_dict" in SCRIPTS[what]
    if with_torch:
        pytest.importorskip("torch")
    for _ in range(3 if "threading" in SCRIPTS[what] else 1):  # these are a race at exit
        done = run_python(SCRIPTS[what], environment=loaded.environment)
        assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: loaded.books()["leases"] == 0)
    loaded.cli("unload", "m")
    wait_until(loaded.is_empty)


LEAVES_LATER = """
import sys
import modelbroker
client = modelbroker.connect(timeout=30)
weights = client.attach("m")
tensors = weights.numpy()
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    "more", ["", "weights.release()", "client.close()", "del tensors, weights"]
)
@pytest.mark.parametrize("state", ["dead", "stopped"])
def test_the_interpreter_leaves_though_the_broker_does_not_answer(
    loaded: BrokerProcess, state: str, more: str
) -> None:
    worker = start_python(LEAVES_LATER + more, environment=loaded.environment)
    assert worker.stdout is not None
    assert worker.stdin is not None
    try:
        assert worker.stdout.readline() == "ready\n"
        if state == "dead":
            loaded.kill()
            worker.communicate("go\n", timeout=60)
            loaded.start()
        else:
            with loaded.frozen():
                worker.communicate("go\n", timeout=60)
        assert worker.returncode == 0
    finally:
        worker.kill()
        worker.communicate()
    wait_until(lambda: loaded.books()["leases"] == 0)
