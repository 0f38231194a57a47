"""What every benchmark program needs: its arguments, a broker of its own, files, workers, an end.

A program is `harness.main(name, goal_id, __doc__, measure)`; `measure` gets a Run. Whatever way it
ends, Ctrl-C included, its broker, its blocks and its generated files are gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import modelbroker

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import generate_model  # noqa: E402  its folder is not on the path before
from figures import Figures  # noqa: E402
from host import StolenTime, machine, meminfo  # noqa: E402
from line_worker import LineWorker  # noqa: E402

_WORKER = str(Path(__file__).with_name("bench_worker.py"))
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
HUGE = 2 << 20
# The goals are about a file of this size; others are measured, not judged.
WHOLE = 2_600_000_000


# ---- the machine


def read_through(path: Path) -> None:
    """Fills the page cache as reads do."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass


def quantile(values: list[float] | np.ndarray[Any, Any], share: float) -> float:
    """A value that was measured, not one between two."""
    return float(np.quantile(np.asarray(values), share, method="lower"))


def parse_size(text: str) -> int:
    """ "200MB", "2.7GB", "1GiB"."""
    number = text.rstrip("BbKkMmGgIi")
    unit = text[len(number) :].upper() or "B"
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 200MB, 2.7GB, 1GiB") from None


# ---- processes


class Worker(LineWorker):
    """A process of bench_worker.py."""

    def __init__(self, *arguments: str, python: str = sys.executable) -> None:
        super().__init__([python, _WORKER, *arguments])


class Broker:
    """`modelbroker serve` in folders of its own: a broker of yours is not disturbed."""

    _count = 0

    def __init__(self, binary: str, flags: tuple[str, ...] = ()) -> None:
        Broker._count += 1
        self.binary, self.flags = binary, flags
        self.folder = Path(tempfile.mkdtemp(prefix="mb-"))  # short: it holds socket paths
        self.endpoint = f"ipc://{self.folder}/run/broker.sock"
        self.environment = {**os.environ, "MODELBROKER_ENDPOINT": self.endpoint}
        self.instance = f"bench-{os.getpid()}-{Broker._count}"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        run = ["--run-directory", str(self.folder / "run"), "--instance", self.instance]
        # Nothing else of the broker's is to read memory while figures are taken.
        return [self.binary, "serve", *run, "--scrub-rate", "0", *self.flags]

    def spawn(self, cores: set[int] | None = None, **environment: str) -> None:
        """Starts it and does not wait."""
        pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))] if cores else []
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*pinned, *self.command()],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self, cores: set[int] | None = None) -> None:
        """Returns when it answers."""
        self.spawn(cores)
        assert self.process is not None
        while True:
            try:
                return modelbroker.connect(self.endpoint, timeout=1).close()
            except modelbroker.UnavailableError as error:
                if self.process.poll() is not None:
                    log = (self.folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"the broker did not start: {error}\n{log}") from None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it; nothing of it stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        for path in Path("/dev/shm").glob(f"modelbroker.{os.geteuid()}.{self.instance}.*"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cli(self, *arguments: str | Path) -> Any:
        done = subprocess.run(
            [self.binary, *map(str, arguments), "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    def load(self, path: Path, name: str = "model") -> dict[str, Any]:
        loaded: dict[str, Any] = self.cli("load", path, "--name", name)
        return loaded

    def unload(self, name: str = "model") -> None:
        self.cli("unload", name, "--wait")


# ---- a run of one program


class Run:
    """What `measure` of a program works with."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, figures: Figures) -> None:
        self.arguments, self.folder, self.figures = arguments, folder, figures
        self.runs: int = arguments.runs
        self.stack = contextlib.ExitStack()

    def binary(self, name: str) -> str:
        """A C++ program of bench/."""
        return str(Path(self.arguments.binaries) / name)

    def tool(self, *command: str) -> str:
        """What a C++ program of bench/ printed."""
        name, *rest = command
        done = subprocess.run(
            [self.binary(name), *rest], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def samples(self, *command: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """What a C++ program measured: rows of its start (CLOCK_MONOTONIC) and length, in ns."""
        name, *rest = command
        done = subprocess.run([self.binary(name), *rest], stdout=subprocess.PIPE, check=True)
        return np.frombuffer(done.stdout, np.int64).reshape(-1, 2)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A C++ program of bench/ that goes on; killed at the end of the run if it still does."""
        name, *rest = command
        process = subprocess.Popen(
            [self.binary(name), *rest], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.stack.callback(_end_process, process)
        return process

    def worker(self, *arguments: str, python: str = sys.executable) -> Worker:
        """A worker; killed at the end of the run if it is still there."""
        worker = Worker(*arguments, python=python)
        self.stack.callback(worker.kill)
        return worker

    def new_broker(self, *flags: str) -> Broker:
        """Not yet started; stopped at the end of the run."""
        broker = Broker(self.arguments.broker, flags)
        self.stack.callback(broker.stop)
        return broker

    def broker(self, *flags: str, cores: set[int] | None = None) -> Broker:
        """A running broker; figures from now on tell its pages and kernel features."""
        broker = self.new_broker(*flags)
        broker.start(cores)
        self.describe(broker)
        return broker

    def describe(self, broker: Broker) -> None:
        status = broker.cli("status")
        self.figures.say_of_all(
            page_kind=status["page_kind"],
            features=sorted(word for word, on in status["features"].items() if on),
        )

    def wanted_size(self, copies: float) -> int:
        """--size, or what fits `copies` times: it may be more than the file of the goals."""
        if self.arguments.size is not None:
            return int(self.arguments.size)
        memory = min(meminfo("MemAvailable") / copies, shutil.disk_usage("/dev/shm").free / 2)
        return int(min(memory, shutil.disk_usage(self.folder).free / 4 + WHOLE * 1.1 / 4))

    def source(self, copies: float = 2.5) -> Path:
        """The file of the goals, or a smaller one: --size, or what fits `copies` times."""
        layers = generate_model.layers_for(self.wanted_size(copies))
        path = self.folder / f"model-{layers}.safetensors"
        if not path.exists():
            generate_model.write(path, layers)
        self.say_size(path)
        return path

    def say_size(self, path: Path) -> None:
        self.size = path.stat().st_size
        self.figures.say_of_all(size=self.size)

    @property
    def whole(self) -> bool:
        """Whether this is the file that the goals are about."""
        return self.size >= WHOLE

    def zipped(self, path: Path) -> Path:
        """The same tensors as torch.save writes them."""
        import safetensors.torch
        import torch

        out = path.with_suffix(".pt")
        if not out.exists():
            torch.save(safetensors.torch.load_file(path), out)
        return out

    def said(self, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
        """The one thing that a fresh worker says."""
        worker = self.worker(*arguments, python=python)
        heard = worker.hear()
        worker.end()
        return heard

    def echo(self, cores: set[int] | None = None) -> str:
        """The endpoint of a running zmq_echo_bench."""
        endpoint = f"ipc://{self._sockets()}/echo"
        server = self.start("zmq_echo_bench", "serve", endpoint)
        assert server.stdout is not None
        server.stdout.readline()
        if cores:
            for task in Path(f"/proc/{server.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)
        return endpoint

    def _sockets(self) -> str:
        folder = tempfile.mkdtemp(prefix="mb-")  # short: it holds socket paths
        self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def fresh(
        self, which: str, path: Path | str, endpoint: str = "", python: str = sys.executable
    ) -> float:
        """Seconds in one fresh worker to get at the weights and touch every page, no imports."""
        worker = self.worker("measure", which, str(path), endpoint, python=python)
        worker.hear()
        seconds = float(worker.ask()["seconds"])
        worker.end()
        return seconds


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@contextlib.contextmanager
def working_folder(given: str | None) -> Iterator[Path]:
    """On a disk, since cold figures are about one: below build/ where that is."""
    if given is not None:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    build = ROOT / "build"
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=build if build.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_on_signals() -> None:
    """SIGTERM and Ctrl-C unwind, also where a shell in the background had ignored the latter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What all programs take."""
    release = ROOT / "build/release/bin"
    parser.add_argument("--broker", default=str(release / "modelbroker"), help="the binary")
    parser.add_argument("--binaries", default=str(release), help="folder of the C++ bench programs")
    parser.add_argument(
        "--peers", default=str(ROOT / "build/peers"), help="made by install_peers.py"
    )
    parser.add_argument("--size", type=parse_size, help="of the file, e.g. 200MB (default: 2.7 GB)")
    parser.add_argument("--runs", type=int, default=5, help="of each; the best counts (default: 5)")
    parser.add_argument("--folder", help="generated files go there and stay (default: a new one)")
    parser.add_argument("--output", type=Path, help="JSON lines go there, not to standard output")
    parser.add_argument("--command", help="what the lines say was typed (default: the command)")


def typed_command() -> str:
    """The command without folders of this machine."""
    of_this_machine = ("--broker", "--binaries", "--peers", "--folder", "--output", "--command")
    words, skip = [f"bench/{Path(sys.argv[0]).name}"], False
    for word in sys.argv[1:]:
        if skip or word.split("=")[0] in of_this_machine:
            skip = not skip and "=" not in word
            continue
        words.append(word)
    return shlex.join(words)


def main(name: str, goal_id: str, about: str, measure: Callable[[Run], None]) -> int:
    """Runs one program."""
    examples = (
        f"Examples:\n  python bench/{name}_bench.py\n"
        f"  python bench/{name}_bench.py --size 200MB --runs 2 --output figures.jsonl"
    )
    parser = argparse.ArgumentParser(
        description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser)
    arguments = parser.parse_args()
    end_on_signals()
    with contextlib.ExitStack() as stack:
        out: TextIO = sys.stdout
        if arguments.output:
            out = stack.enter_context(arguments.output.open("w"))
        common: dict[str, Any] = {
            "bench": name,
            "goal_id": goal_id,
            "size": 0,
            "page_kind": "",
            "features": [],
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "command": arguments.command or typed_command(),
        }
        folder = stack.enter_context(working_folder(arguments.folder))
        run = Run(arguments, folder, Figures(out, common, StolenTime().share))
        stack.enter_context(run.stack)
        try:
            measure(run)
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 130
        print(run.figures.table(), file=sys.stderr)
    return 0
