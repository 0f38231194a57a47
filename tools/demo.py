"""Shows the main job on real input, and says what it showed.

A broker of the demo's own loads a real sentence-embedding model and a generated file of 2.7 GB.
Workers, in Python and C++, attach, compute, are killed; the broker is killed; unmodified programs
share; everything is measured in this run. Exit status 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compiled_model
import demo_cpp
import demo_lora
import demo_sharing
import generate_model
from demo_broker import DemoBroker
from demo_parts import Claims, Worker, say
from host import forget_cached, machine, meminfo

_WORKERS, _QUICK_WORKERS = 4, 2
_ROUNDS = 5
_COLD_ROUNDS = 3


# ---- the machine


def choose_layers(folder: Path) -> int:
    """A block, four copies of torch.load and the page cache must fit; so must two files on disk."""
    memory = min(meminfo("MemAvailable") / (_WORKERS + 2.5), shutil.disk_usage("/dev/shm").free / 2)
    disk = shutil.disk_usage(folder).free / 2.5
    return generate_model.layers_for(int(min(memory, disk)))


# ---- the acts


def embed_everywhere(broker: DemoBroker, folder: Path, claims: Claims, count: int) -> list[Worker]:
    """So many workers and a stock one embed the same sentences."""
    model = folder / "minilm"
    shutil.copytree(compiled_model.demo_model(), model)
    loaded = broker.cli("load", str(model / "model.safetensors"), "--name", "minilm")
    say(f"  minilm: {loaded['payload_bytes'] / 1e6:.0f} MB in {loaded['seconds']:.3f} s")
    stock = Worker("embed", "stock", str(model), broker.endpoint)
    stock.hear()
    expected = stock.ask()
    stock.end()
    workers = [Worker("embed", "broker", str(model), broker.endpoint) for _ in range(count)]
    for worker in workers:
        worker.hear()
    answers = [worker.ask() for worker in workers]
    same = all(answer == expected for answer in answers)
    claims.check(same, f"{count} workers embed bit-identically to a stock transformers load")
    return workers


def time_in_processes(which: str, path: Path | str, broker: DemoBroker, rounds: int) -> float:
    """The best of some fresh processes: seconds to get at the weights and touch every page."""
    best = float("inf")
    for _ in range(rounds):
        worker = Worker("measure", which, str(path), broker.endpoint)
        best = min(best, worker.hear()["seconds"])
        worker.end()
    return best


def memory_of(count: int, which: str, path: Path | str, broker: DemoBroker) -> int:
    workers = [Worker("measure", which, str(path), broker.endpoint) for _ in range(count)]
    for worker in workers:
        worker.hear()
    total = sum(int(worker.ask()["memory"]) for worker in workers)
    for worker in workers:
        worker.end()
    return total


def compare(
    broker: DemoBroker, folder: Path, claims: Claims, count: int, quick: bool
) -> dict[str, Any]:
    """Times and memory beside safetensors and torch.load, in this run."""
    import safetensors.torch
    import torch

    layers, rounds = (2, 1) if quick else (choose_layers(folder), _ROUNDS)
    path, zipped = folder / "big.safetensors", folder / "big.pt"
    size = generate_model.write(path, layers)
    whole = layers == generate_model.layers_for(1 << 60)
    why = "" if whole else " (--quick)" if quick else " (memory or disk is short)"
    say(f"  generated {path.name}: {size / 1e9:.2f} GB, SDXL-shaped{why}")
    torch.save(safetensors.torch.load_file(path), zipped)

    # The page cache as safetensors itself fills it, the way its users meet it.
    rows: dict[str, dict[str, float]] = {"cold": {}, "warm": {}, "attach": {}, "memory": {}}
    cold: dict[str, list[float]] = {"broker": [], "safetensors": [], "torch": []}
    for _ in range(min(_COLD_ROUNDS, rounds)):
        for which, file in (("torch", zipped), ("safetensors", path)):
            forget_cached(file)
            cold[which].append(time_in_processes(which, file, broker, 1))
        forget_cached(path)
        cold["broker"].append(broker.cli("load", str(path), "--name", "big")["seconds"])
        broker.cli("unload", "big", "--wait")
    rows["cold"] = {which: min(seconds) for which, seconds in cold.items()}
    time_in_processes("safetensors", path, broker, 1)
    warm = []
    for _ in range(rounds):
        loaded = broker.cli("load", str(path), "--name", "big")
        warm.append(float(loaded["seconds"]))
        broker.cli("unload", "big", "--wait")
    rows["warm"]["broker"] = min(warm)
    loaded = broker.cli("load", str(path), "--name", "big")
    # In turns: what else the machine does meets both.
    attach: dict[str, list[float]] = {"broker": [], "safetensors": []}
    for _ in range(rounds):
        attach["broker"].append(time_in_processes("broker", "big", broker, 1))
        attach["safetensors"].append(time_in_processes("safetensors", path, broker, 1))
    rows["attach"] = {which: min(seconds) for which, seconds in attach.items()}
    rows["attach"]["torch"] = time_in_processes("torch", zipped, broker, min(2, rounds))
    rows["memory"]["broker"] = memory_of(count, "broker", "big", broker)
    rows["memory"]["safetensors"] = memory_of(count, "safetensors", path, broker)
    rows["memory"]["torch"] = memory_of(count, "torch", zipped, broker)
    zipped.unlink()

    print_table(rows, count)
    gain = rows["attach"]["safetensors"] / rows["attach"]["broker"]
    if loaded["page_kind"] == "2MiB" and not quick:
        claims.check(gain > 1, f"attach is {gain:.1f} times faster than safetensors' mmap")
    else:
        why = "a small file" if quick else "4 KiB pages here"
        say(f"  [--] {why}: attach is {gain:.1f} times faster than safetensors' mmap")
    ours, one = rows["memory"]["broker"], float(size)
    claims.check(0.95 * one < ours < 1.1 * one, f"{count} workers hold {ours / one:.2f} copies")
    held = rows["memory"]["torch"] / ours
    claims.check(held > 0.875 * count, f"{count} torch.load workers hold {held:.1f} times as much")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": "make demo",
        "machine": machine(),
        "size": size,
        "page_kind": loaded["page_kind"],
        **rows,
    }


def print_table(rows: dict[str, dict[str, float]], count: int) -> None:
    def seconds(row: str, which: str) -> str:
        return f"{rows[row][which]:.3f} s" if which in rows[row] else "-"

    def gigabytes(which: str) -> str:
        return f"{rows['memory'][which] / 1e9:.2f} GB"

    columns = ("broker", "safetensors", "torch")
    lines: list[tuple[str, ...]] = [("", "modelbroker", "safetensors mmap", "torch.load")]
    lines.append(("first load, file not in memory", *(seconds("cold", c) for c in columns)))
    lines.append(("first load, file in page cache", seconds("warm", "broker"), "-", "-"))
    lines.append(("each worker: attach, touch all", *(seconds("attach", c) for c in columns)))
    lines.append((f"weights of {count} workers in RAM", *(gigabytes(c) for c in columns)))
    say()
    for line in lines:
        say("  " + "".join(f"{cell:<{34 if i == 0 else 18}}" for i, cell in enumerate(line)))
    say()
    say(
        "  safetensors shares too, by the page cache: one copy, for as long as the kernel keeps it."
    )
    say("  Best of several fresh processes each; times without imports.")
    say()


def kill_the_broker(
    broker: DemoBroker, workers: list[Worker], folder: Path, claims: Claims
) -> None:
    """SIGKILL while they compute; the files are gone, so nothing can be read again."""
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    before = broker.cli("ps")
    expected = [worker.ask() for worker in workers]
    rounds = 20
    for worker in workers:
        for _ in range(rounds):
            worker.prompt()
    broker.kill()
    seconds = broker.start()
    answers = [[worker.hear() for _ in range(rounds)] for worker in workers]
    claims.check(
        answers == [[own] * rounds for own in expected],
        f"broker SIGKILLed: {len(workers) * rounds} embeddings computed meanwhile, bits as before",
    )
    after = broker.cli("ps")
    fields = ("name", "block", "generation", "bytes")
    kept = [[model[field] for field in fields] for model in before]
    claims.check(
        kept == [[model[field] for field in fields] for model in after],
        f"a new broker adopted {len(after)} blocks in {seconds:.2f} s, source files deleted",
    )
    claims.check(broker.wait_for_leases(len(workers)), f"{len(workers)} leases stated again")


def kill_a_worker(broker: DemoBroker, workers: list[Worker], claims: Claims) -> None:
    workers[0].kill()
    gone = broker.wait_for_leases(len(workers) - 1)
    claims.check(gone, "a worker SIGKILLed: its lease is gone, the others keep theirs")
    on = all("digest" in worker.ask() for worker in workers[1:])
    claims.check(on, "the other workers compute on")


def clean_up(broker: DemoBroker, workers: list[Worker], claims: Claims) -> None:
    for worker in workers[1:]:
        worker.end()
    for name in ("minilm", "big"):
        broker.cli("unload", name, "--wait")
    books = broker.cli("status")["tiers"]["ram"]
    left = {word: books[word] for word in ("made", "draining", "reserved", "leases")}
    claims.check(not any(left.values()), "all unloaded: no byte and no lease is left")


@contextlib.contextmanager
def temporary_folder(parent: str | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="modelbroker-demo-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="modelbroker", help="the binary")
    parser.add_argument("--examples", type=Path, help="what 'make examples' made: build/examples")
    parser.add_argument("--folder", help="where the demo's files go for the while (needs 6 GB)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--quick", action="store_true", help="a small file, fewer workers, no claim about speed"
    )
    arguments = parser.parse_args()
    claims, count = Claims(), _QUICK_WORKERS if arguments.quick else _WORKERS
    with temporary_folder(arguments.folder) as folder:
        broker = DemoBroker(arguments.broker, folder)
        workers: list[Worker] = []
        try:
            broker.start()
            say(
                f"Load once, attach from {count} processes (CPU only: no VRAM tier in this version)"
            )
            workers = embed_everywhere(broker, folder, claims, count)
            workers += demo_cpp.embed(broker.endpoint, folder, workers, arguments.examples, claims)
            claims.check(
                broker.leases() == len(workers), f"the broker counts {len(workers)} leases"
            )
            say("Against safetensors and torch.load")
            figures = compare(broker, folder, claims, count, arguments.quick)
            say("Kill the broker while the workers compute")
            kill_the_broker(broker, workers, folder, claims)
            say("Kill a worker, then let go")
            kill_a_worker(broker, workers, claims)
            clean_up(broker, workers, claims)
            say("Programs that know nothing of modelbroker (one thread each)")
            pipeline = demo_sharing.show(arguments.broker, folder, claims, arguments.quick)
            say("Styles (LoRA) over shared weights, switched while a picture is painted")
            demo_lora.show(arguments.broker, folder, pipeline, claims, arguments.quick)
        finally:
            for worker in workers:
                worker.kill()
            broker.stop()
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    say()
    say("Everything held." if not claims.failed else f"{claims.failed} claims FAILED.")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
