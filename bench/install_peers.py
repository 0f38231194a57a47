"""Makes the environment of `make bench-peers`: the libraries beside the torch of this environment.

  install_peers.py FOLDER           installs what packaging/peers/*.lock name: one file a library
  install_peers.py FOLDER --lock    resolves them and writes those files

What is installed here already is seen there by a .pth file. The locks hold what is missing beside
it, so nothing is resolved when they are installed, and torch is never fetched. A library that
cannot be installed is named with pip's reason in FOLDER/failed; the benchmark then says so. The
exit status is 0 all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# Pinned, so that figures of different days are of the same programs.
PEERS = ("tensorizer==2.12.1", "runai-model-streamer==0.17.0", "fastsafetensors==0.5.0")
LOCKS = Path(__file__).parent.parent / "packaging/peers"
# What must stay as it is here: torch is large, and both are compiled for each other.
KEPT = ("torch", "numpy")


def make(folder: Path) -> Path:
    """The environment's interpreter."""
    venv.create(folder, with_pip=True, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = folder / "lib" / version / "site-packages" / "beside.pth"
    beside.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def lock_of(peer: str) -> Path:
    return LOCKS / f"{peer.split('==')[0]}.lock"


def pip(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing that pip called an error."""
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return said[-1] if said else f"pip ended with {done.returncode}"


def install(folder: Path) -> dict[str, str]:
    """By name the libraries that could not be installed, and why."""
    python = make(folder)
    failed = {}
    for peer in PEERS:
        done = pip(python, "--no-deps", "--requirement", str(lock_of(peer)))
        if done.returncode != 0:
            failed[peer.split("==")[0]] = reason(done)
            print(f"{peer} cannot be installed: {reason(done)}", file=sys.stderr)
    return failed


def lock(folder: Path) -> None:
    """What pip would install beside what is here; a newer version of that may be shadowed."""
    python = make(folder)
    constraints = folder / "constraints.txt"
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-m", "pip", "list", "--format=json"],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    kept = [f"{each['name']}=={each['version']}\n" for each in listed if each["name"] in KEPT]
    constraints.write_text("".join(kept))
    for peer in PEERS:
        done = pip(python, "--dry-run", "--report", "-", "--constraint", str(constraints), peer)
        if done.returncode != 0:
            sys.exit(f"{peer} cannot be resolved: {reason(done)}")
        found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
        wanted = {each["name"].lower(): each["version"] for each in found}
        wanted.pop("setuptools", None)  # torch asks for it; what torch needs is here
        if taken := wanted.keys() & set(KEPT):
            sys.exit(f"{peer} wants another {', '.join(sorted(taken))} than is installed here")
        lines = [f"{name}=={version}\n" for name, version in sorted(wanted.items())]
        lock_of(peer).write_text(
            f"# {peer} and what it needs beside packaging/python.lock. Made by 'make lock'.\n"
            + "".join(lines)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", action="store_true", help="write packaging/peers/*.lock")
    arguments = parser.parse_args()
    if arguments.lock:
        lock(arguments.folder)
    else:
        failed = install(arguments.folder)
        (arguments.folder / "failed").write_text(json.dumps(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
