#!/usr/bin/env python3
"""What a GPU host really allows: the facts that the VRAM tier's design stands on.

  python3 tests/gpu/probe.py                        every question, about three minutes
  python3 tests/gpu/probe.py --only upload,streams  some of them
  python3 tests/gpu/probe.py --out results          results/gpu-probe.json

Needs cuda-bindings and numpy, and torch for some questions. Each question runs in a process of its
own with a time limit, so that none hides another. Prints one JSON line a question. Exit code 77: no
usable GPU. Nothing is changed on the host; it uses a few GiB of device memory, RAM and /dev/shm.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import host, roles, sharing, speed
from gpu.device import cuda, ok

PROBES = {
    f.__name__: f
    for f in (
        host.device,
        host.kernel,
        sharing.descriptors,
        sharing.releases,
        sharing.second_uploader,
        sharing.isolation,
        sharing.legacy,
        sharing.other_handles,
        sharing.swap,
        sharing.contexts,
        speed.extents,
        speed.upload,
        speed.registration,
        speed.streams,
        speed.beside_compute,
        speed.wrapping,
        speed.torch_ipc,
    )
}


def run(name: str, gib: int, limit: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--gib", str(gib)]
    start = time.time()
    result: dict[str, Any]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        result = json.loads(lines[-1][7:]) if lines else {"failed": done.stderr[-1500:]}
        result["exit_code"] = done.returncode
    except subprocess.TimeoutExpired as error:
        said = error.stderr
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        result = {"failed": f"took longer than {limit:.0f} s", "stderr": text[-500:]}
    result["seconds"] = round(time.time() - start, 2)
    return result


def device_count() -> int:
    try:
        ok(cuda().cuInit(0))
        return int(ok(cuda().cuDeviceGetCount()))
    except Exception as error:
        print(f"no usable GPU: {error}", file=sys.stderr)
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default=".", help="folder of gpu-probe.json (.)")
    parser.add_argument("--only", default="", help=f"of {', '.join(PROBES)}")
    parser.add_argument("--gib", type=int, default=4, help="bytes that are shared, in GiB (4)")
    parser.add_argument(
        "--limit", type=float, default=150, help="seconds a question may take (150)"
    )
    parser.add_argument("--one", choices=PROBES, help=argparse.SUPPRESS)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        roles.ROLES[options.role[0]](socket.socket(fileno=os.dup(0)), *options.role[1:])
        return 0
    if options.one:
        print("RESULT " + json.dumps(PROBES[options.one](options.gib)), flush=True)
        return 0
    wanted = [name for name in options.only.split(",") if name] or list(PROBES)
    if unknown := [name for name in wanted if name not in PROBES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PROBES)}")
    if device_count() == 0:
        return 77
    results = {}
    for name in wanted:
        results[name] = run(name, options.gib, options.limit)
        print(json.dumps({name: results[name]}), flush=True)
    os.makedirs(options.out, exist_ok=True)
    path = Path(options.out) / "gpu-probe.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(1)
