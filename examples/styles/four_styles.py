"""Four workers over one pipeline, each with a style of its own, switched while they paint.

Each is a style_worker.py: a process with a StableDiffusionXLPipeline whose weights are the
broker's, as are the styles' files. What this prints was measured in this run: memory, switches,
and the times of diffusers' load_lora_weights, set_adapters and delete_adapters on one of the
pipelines. Exit status 1 if a picture is not the same, bit for bit, after all switches.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_WORKER = str(Path(__file__).with_name("style_worker.py"))
_QUIET = {"TQDM_DISABLE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
_PAUSE = 0.02  # seconds between the switches of a worker
_EXAMPLES = """examples:
  modelbroker serve &
  four_styles.py PIPELINE ink.safetensors oil.safetensors pen.safetensors wax.safetensors
  four_styles.py PIPELINE ink.safetensors oil.safetensors --workers 2 --pictures pictures

without a pipeline or styles at hand, for small ones of random numbers:
  python tools/small_models.py FOLDER pipeline --wide 3
  python tools/make_adapters.py FOLDER/pipeline FOLDER/ink.safetensors FOLDER/oil.safetensors
"""


class Worker:
    """A style_worker.py, asked by lines."""

    def __init__(self, number: int, arguments: argparse.Namespace) -> None:
        self.styles = [path.stem for path in arguments.styles]
        self.own = self.styles[number % len(self.styles)]
        self.picture = arguments.pictures / f"{number + 1}-{self.own}.png"
        styles = [f"--style={path.stem}={path}" for path in arguments.styles]
        self.process = subprocess.Popen(
            [sys.executable, _WORKER, arguments.pipeline, *styles, f"--steps={arguments.steps}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_QUIET},
        )

    def hear(self) -> dict[str, Any]:
        """Its next answer."""
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"error": "it died"}')
        if "error" in heard:
            raise RuntimeError(f"worker {self.process.pid}: {heard['error']}")
        return heard

    def hear_adds(self) -> list[float]:
        """When it has added its styles, and is ready: milliseconds of each."""
        times = [self.hear()["ms"] for _ in self.styles]
        self.hear()
        return times

    def tell(self, *words: str | Path) -> None:
        """A command; does not wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{shlex.join(map(str, words))}\n")
        self.process.stdin.flush()

    def ask(self, *words: str | Path) -> dict[str, Any]:
        self.tell(*words)
        return self.hear()

    def paint(self) -> str:
        """In the style of its own: a hash of the picture."""
        self.ask("style", self.own)
        painted: str = self.ask("paint", self.picture)["sha256"]
        return painted

    def switch_while_painting(self) -> list[float]:
        """Through all styles, for as long as one picture takes: milliseconds of each switch."""
        self.tell("paint", self.picture.with_suffix(".switched.png"))
        times: list[float] = []
        number = 0
        while "painted" not in (heard := self.ask("style", self.styles[number])):
            if heard["step"]:  # of the picture: it is being painted
                times.append(heard["ms"])
            number = (number + 1) % len(self.styles)
            time.sleep(_PAUSE)
        self.hear()  # of the switch that came too late
        return times

    def block_bytes(self) -> int:
        """What the broker's memory costs it: what n processes map counts as 1/n (PSS)."""
        total, is_block = 0, False
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                is_block = "/modelbroker." in line
            elif is_block and words[0] == "Pss:":
                total += int(words[1]) * 1024
        return total

    def end(self) -> None:
        self.process.communicate()  # it ends at the end of its input


def each(workers: Sequence[Worker], ask: Callable[[Worker], Any]) -> list[Any]:
    """All at once."""
    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(ask, workers))


def show(workers: Sequence[Worker], size: int) -> bool:
    """`size`: of the files. Whether each picture was painted again, bit for bit."""
    adds = [ms for times in each(workers, Worker.hear_adds) for ms in times]
    print(f"{len(workers)} workers, {len(workers[0].styles)} styles in each:")
    print(f"  a style was added in {statistics.median(adds):.1f} ms")
    first = each(workers, Worker.paint)
    switches = [ms for times in each(workers, Worker.switch_while_painting) for ms in times]
    same: bool = each(workers, Worker.paint) == first
    print(
        f"  {len(switches)} switches while they painted, {statistics.median(switches):.3f} ms each"
    )
    print("  each picture painted again:", "the same, bit for bit" if same else "ANOTHER ONE")
    blocks = sum(worker.block_bytes() for worker in workers)
    checks = [worker.ask("check") for worker in workers]
    own = sum(check["private_bytes"] for check in checks)
    print(f"  memory of all: {blocks / 1e6:.1f} MB of the broker's blocks (PSS) for files of")
    print(f"    {size / 1e6:.1f} MB; {own} bytes of tensors that are a worker's own")
    return same


def show_times(times: dict[str, dict[str, float]]) -> None:
    """The table."""
    print("on one pipeline, by turns (medians):")
    print(f"  {'':<26}{'modelbroker':>14}{'diffusers':>14}")
    for row, key in (("add", "add_ms"), ("switch", "switch_ms"), ("remove", "remove_ms")):
        cells = [f"{times[way][key]:.3f} ms" for way in ("modelbroker", "diffusers")]
        print(f"  {row + ' a style':<26}{cells[0]:>14}{cells[1]:>14}")
    sizes = [f"{times[way]['private_bytes'] / 1e6:.1f} MB" for way in ("modelbroker", "diffusers")]
    print(f"  {'own memory of two styles':<26}{sizes[0]:>14}{sizes[1]:>14}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", help="a folder with a Stable Diffusion XL pipeline")
    parser.add_argument("styles", nargs="+", type=Path, metavar="style", help="a LoRA file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of each picture")
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison with diffusers")
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), help="where they go")
    arguments = parser.parse_args()
    if min(arguments.workers, arguments.steps, arguments.rounds) < 1 or len(arguments.styles) < 2:
        parser.error("give two styles or more, and one or more of all else")
    if len({path.stem for path in arguments.styles}) < len(arguments.styles):
        parser.error("styles are called as their files: give each file another name")
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    files = [*Path(arguments.pipeline).rglob("*.safetensors"), *arguments.styles]
    workers = [Worker(number, arguments) for number in range(arguments.workers)]
    try:
        same = show(workers, sum(file.stat().st_size for file in files))
        show_times(workers[0].ask("compare", str(arguments.rounds)))
    except RuntimeError as error:  # a worker's answer: a style of another family, for example
        sys.exit(f"four_styles.py: {error}")
    finally:
        for worker in workers:
            worker.end()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
