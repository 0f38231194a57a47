"""Runs the benchmarks one after another, keeps their JSON lines, and prints one table.

Exit status 1 if a program failed; a goal that is missed is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import figures
import harness

PROGRAMS = {
    "cold_load": "P1",
    "warm_load": "P2",
    "attach_touch": "P3",
    "four_workers": "P4",
    "attach_latency": "P5",
    "round_trip": "P6",
    "lora": "P9",
    "restart": "P10",
    "unload": "P12",
    "sharing_door": "P13",
    "sharing_programs": "P13",
}
# Beside libraries that `make bench-peers` installs; not one of `make bench`.
PEERS = {"peer_loads": "P1, P2"}
_EXAMPLES = """Examples:
  make bench                                   all, on the file of 2.7 GB
  make bench SIZE=200MB RUNS=2                 quickly: whether they work
  make bench ONLY="round_trip restart"         these
  python bench/run_all.py --only unload --output unload.jsonl
"""


def start(name: str, arguments: argparse.Namespace, folder: Path, lines: Path) -> list[str]:
    """The command of one program."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}_bench.py"))]
    command += ["--broker", arguments.broker, "--binaries", arguments.binaries]
    command += ["--peers", arguments.peers]
    command += ["--folder", str(folder), "--runs", str(arguments.runs), "--output", str(lines)]
    command += ["--command", arguments.command or harness.typed_command()]
    if arguments.size is not None:
        command += ["--size", str(arguments.size)]
    return command


def run(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[int, str]:
    """Exit status and lines of one program; it is given time to clean up when we are stopped."""
    lines = folder / f"{name}.jsonl"
    process = subprocess.Popen(start(name, arguments, folder, lines), stderr=subprocess.PIPE)
    try:
        _, said = process.communicate()
    except KeyboardInterrupt:
        process.terminate()  # the second one after a Ctrl-C of a terminal does no harm
        process.wait()
        raise
    if process.returncode != 0:
        sys.stderr.write(said.decode(errors="replace"))
    return process.returncode, lines.read_text() if lines.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [*PROGRAMS, *PEERS]
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    harness.common_arguments(parser)
    arguments = parser.parse_args()
    harness.end_on_signals()
    failed: list[str] = []
    kept: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(harness.working_folder(arguments.folder))
        try:
            for name in arguments.only or PROGRAMS:
                began = time.monotonic()
                print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
                status, lines = run(name, arguments, folder)
                kept.append(lines)
                if status != 0:
                    failed.append(name)
                print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        finally:
            text = "".join(kept)
            if arguments.output:
                arguments.output.write_text(text)
    print(figures.table(figures.parse_lines(text)))
    for name in failed:
        print(f"FAILED: {name}: what it said is above")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
