"""A user's first day, by the Python that has the wheel: serve, load, attach, kill -9, adopt.

    scenario.py FILE SUM COMMAND...     COMMAND: modelbroker, or python3 -m modelbroker

SUM: of the file's tensors, as unsigned bytes. Prints the libraries that the broker has mapped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy

import modelbroker

FILE, SUM, *COMMAND = sys.argv[1:]


def serve() -> subprocess.Popen[bytes]:
    broker = subprocess.Popen([*COMMAND, "serve"])
    modelbroker.connect(timeout=30).close()
    return broker


def ask(*words: str) -> Any:
    done = subprocess.run([*COMMAND, *words, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def total(weights: modelbroker.Weights) -> int:
    views = weights.numpy().values()
    return sum(int(view.view(numpy.uint8).sum(dtype=numpy.uint64)) for view in views)


first = serve()
ask("load", FILE, "--name", "m")
broker = modelbroker.connect()
weights = broker.attach("m")
assert total(weights) == int(SUM)

os.kill(first.pid, signal.SIGKILL)
assert first.wait() == -signal.SIGKILL
assert total(weights) == int(SUM)

second = serve()
assert ask("show", "m")["name"] == "m"
assert total(broker.attach("m")) == int(SUM)
with open(f"/proc/{second.pid}/maps") as maps:
    libraries = sorted({line.split()[-1] for line in maps if ".so" in line})
print(json.dumps({"program": os.readlink(f"/proc/{second.pid}/exe"), "libraries": libraries}))
broker.close()
ask("stop")
assert second.wait() == 0
