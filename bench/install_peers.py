"""Makes the environment of `make bench-peers`: the libraries beside the torch of this environment.

What is installed here already is seen there by a .pth file and is pinned, so nothing of it changes
or is fetched twice. A library that cannot be installed is named with pip's reason in FOLDER/failed;
the benchmark then says so. The exit status is 0 all the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# Pinned, so that figures of different days are of the same programs.
PEERS = ("tensorizer==2.12.1", "runai-model-streamer==0.17.0", "fastsafetensors==0.5.0")


def make(folder: Path) -> Path:
    """The environment's interpreter."""
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = folder / "lib" / version / "site-packages" / "beside.pth"
    beside.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def installed() -> str:
    """Constraints: everything that is here, as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=json", "--exclude-editable"],
        stdout=subprocess.PIPE,
        check=True,
    )
    left = ("pip", "setuptools")
    return "".join(
        f"{package['name']}=={package['version']}\n"
        for package in json.loads(done.stdout)
        if package["name"] not in left
    )


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("usage: install_peers.py FOLDER")
    folder = Path(sys.argv[1])
    python = make(folder)
    constraints = folder / "constraints.txt"
    constraints.write_text(installed())
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    failed = {}
    for peer in PEERS:
        done = subprocess.run(
            [*pip, "--constraint", str(constraints), peer],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = said[-1] if said else f"pip ended with {done.returncode}"
            failed[peer.split("==")[0]] = reason
            print(f"{peer} cannot be installed: {reason}", file=sys.stderr)
    (folder / "failed").write_text(json.dumps(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
