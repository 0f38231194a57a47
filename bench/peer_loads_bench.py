"""P1 and P2 beside the libraries that load fast: tensorizer, Run:ai's streamer, fastsafetensors.

Each in fresh processes of an environment of their own, every page touched, imports not counted, on
the CPU. tensorizer reads a file of its own format, converted before. A library that could not be
installed is named with the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import host
import loads
from figures import FASTER

_PEERS = {
    "tensorizer": "tensorizer",
    "runai": "runai-model-streamer",
    "fastsafetensors": "fastsafetensors",
}
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def installed(run: harness.Run, python: str) -> dict[str, str]:
    """Name and version of those that are there; the others are told of."""
    marker = Path(run.arguments.peers) / "failed"
    if not marker.exists():
        raise RuntimeError(f"{run.arguments.peers}: make it with bench/install_peers.py")
    failed = json.loads(marker.read_text())
    found = {}
    for which, package in _PEERS.items():
        if package in failed:
            run.figures.leave_out(package, failed[package])
            continue
        done = subprocess.run(
            [python, "-c", _VERSION, package], stdout=subprocess.PIPE, text=True, check=True
        )
        found[which] = f"{package} {done.stdout.strip()}"
    return found


def measure(run: harness.Run) -> None:
    python = str(Path(run.arguments.peers) / "bin/python")
    peers = installed(run, python)
    path = run.source(copies=3)
    files = dict.fromkeys(peers, path)
    if "tensorizer" in peers:
        files["tensorizer"] = path.with_suffix(".tensors")
        run.said("tensorize", str(path), str(files["tensorizer"]), python=python)
    broker = run.broker()

    def best(ready: Callable[[Path], None]) -> dict[str, float]:
        def ours() -> float:
            ready(path)
            return loads.load(run, broker, path)

        def theirs(which: str) -> Callable[[], float]:
            def once() -> float:
                ready(files[which])
                return run.fresh(which, files[which], python=python)

            return once

        ways = {"ours": ours, **{which: theirs(which) for which in peers}}
        return loads.best_of(run.runs, ways, loads.memory_of(path))

    cases = (("cold_load", "P1", host.forget_cached), ("warm_load", "P2", harness.read_through))
    for metric, goal_id, ready in cases:
        seconds = best(ready)
        for which, words in peers.items():
            run.figures.add(
                metric,
                seconds["ours"],
                words,
                seconds[which],
                runs=run.runs,
                goal=FASTER if goal_id == "P1" else None,
                goal_id=goal_id,
                applies=run.whole,
            )


if __name__ == "__main__":
    sys.exit(harness.main("peer_loads", "P1", __doc__, measure))
