"""Loads and attaches of one big file, each a ratio against a baseline of the same run.

One JSON line a figure on standard output (or in --output), then a table with the goals on standard
error. Baselines: a bare loop of page-making, pread and XXH3 (load_floor_bench), safetensors and
torch.load in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demo
import generate_model


class Figures:
    """Collects figures, writes each as a JSON line, and the table at the end."""

    def __init__(self, output: Path | None, page_kind: str) -> None:
        self._file = output.open("w") if output else None
        self._page_kind = page_kind
        self._rows: list[tuple[str, ...]] = [("figure", "value", "baseline", "", "ratio", "goal")]

    def add(
        self, metric: str, value: float, baseline: str, against: float, runs: int, goal: str
    ) -> None:
        """`ratio` is the baseline's time over ours: above 1 we are faster."""
        ratio = against / value
        line = json.dumps(
            {
                "bench": "core",
                "metric": metric,
                "value": value,
                "unit": "s",
                "baseline": baseline,
                "baseline_value": against,
                "ratio": ratio,
                "runs": runs,
                "machine": demo.machine(),
                "page_kind": self._page_kind,
            }
        )
        print(line, file=self._file or sys.stdout, flush=True)
        cells = (metric, f"{value:.4f} s", baseline, f"{against:.4f} s", f"{ratio:.2f}", goal)
        self._rows.append(cells)

    def table(self) -> None:
        """On standard error, so that standard output stays JSON lines."""
        widths = [max(len(row[i]) for row in self._rows) for i in range(len(self._rows[0]))]
        for row in self._rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip(), file=sys.stderr)


def floor(program: str, source: Path, how: str, runs: int) -> float:
    """The best of the bare loop's runs."""
    target = f"/dev/shm/modelbroker-bench.{os.getpid()}"
    done = subprocess.run(
        [program, str(source), target, how, str(runs)], capture_output=True, text=True, check=True
    )
    return min(float(line) for line in done.stdout.split())


def loads(
    broker: demo.DemoBroker, path: Path, runs: int, before: Callable[[], None]
) -> dict[str, Any]:
    """The best of some loads, each of a file that is not resident."""
    best: dict[str, Any] = {"seconds": float("inf")}
    for _ in range(runs):
        before()
        loaded = broker.cli("load", str(path), "--name", "big")
        best = min(best, loaded, key=lambda reply: float(reply["seconds"]))
        broker.cli("unload", "big", "--wait")
    return best


def read_through(path: Path) -> None:
    """Fills the page cache."""
    with path.open("rb") as file:
        while file.read(16 << 20):
            pass


def bench(broker: demo.DemoBroker, program: str, path: Path, runs: int, out: Path | None) -> None:
    read_through(path)
    warm = loads(broker, path, runs, lambda: None)
    figures = Figures(out, str(warm["page_kind"]))
    warm_floor = floor(program, path, "warm", runs)
    figures.add("load_warm", warm["seconds"], "bare loop", warm_floor, runs, ">= 0.87")
    cold = loads(broker, path, runs, lambda: demo.forget_cached(path))
    cold_floor = floor(program, path, "cold", runs)
    figures.add("load_cold", cold["seconds"], "bare loop", cold_floor, runs, ">= 0.95")

    broker.cli("load", str(path), "--name", "big")
    ours = demo.time_in_processes("broker", "big", broker, runs)
    demo.forget_cached(path)
    first = demo.time_in_processes("safetensors", path, broker, 1)
    figures.add("load_cold", cold["seconds"], "safetensors mmap, touched", first, 1, "> 1")
    faulted = demo.time_in_processes("safetensors", path, broker, runs)
    figures.add("attach_touch", ours, "safetensors, cache from faults", faulted, runs, ">= 5")
    demo.forget_cached(path)
    read_through(path)
    large = demo.time_in_processes("safetensors", path, broker, runs)
    figures.add("attach_touch", ours, "safetensors, cache from reads", large, runs, "")
    figures.table()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="modelbroker", help="the binary")
    parser.add_argument("--floor", default="load_floor_bench", help="the bare loop's binary")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, help="of the file, 53 MB each (default: what fits)")
    parser.add_argument("--output", type=Path, help="JSON lines go here")
    arguments = parser.parse_args()
    with demo.temporary_folder(None) as folder:
        broker = demo.DemoBroker(arguments.broker, folder)
        path = folder / "big.safetensors"
        generate_model.write(path, arguments.layers or demo.choose_layers(folder))
        try:
            broker.start()
            bench(broker, arguments.floor, path, arguments.runs, arguments.output)
        finally:
            broker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
