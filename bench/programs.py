"""Programs as their users start them: by `python`, and by `python -m modelbroker.run`.

The programs themselves know nothing of modelbroker; one that is started by `python` never imports
it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import Broker, Run
from line_worker import LineWorker

STOCK = (sys.executable,)
SHARED = (sys.executable, "-m", "modelbroker.run")
EITHER = {"stock": STOCK, "shared": SHARED}


def environment(broker: Broker) -> dict[str, str]:
    """Of a program that finds this broker, with modules compiled as an installation has them."""
    of_ours = ("PYTHONDONTWRITEBYTECODE", "MODELBROKER_AUTO")
    kept = {name: x for name, x in broker.environment.items() if name not in of_ours}
    # torch makes this folder at some imports; the broker's goes at the end.
    return {**kept, "TORCHINDUCTOR_CACHE_DIR": str(broker.folder / "inductor")}


def start(run: Run, broker: Broker, way: str, script: str, *arguments: str | Path) -> LineWorker:
    """A program of this folder that answers lines; killed at the end of the run if still there."""
    path = Path(__file__).with_name(script)
    command = [*EITHER[way], str(path), *map(str, arguments)]
    worker = LineWorker(command, environment(broker))
    run.stack.callback(worker.kill)
    return worker


def seconds(broker: Broker, command: tuple[str, ...], folder: Path) -> float:
    """From the start of a program to its end, with `folder` as its working folder."""
    began = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env=environment(broker),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began
