"""Every test file is run: each *_test.cc has its program, each *_test.py is collected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def missing_programs(root: Path, build: Path) -> list[str]:
    """C++ test files without a program in <build>/bin."""
    files = sorted((root / "tests").rglob("*_test.cc"))
    return [
        f"{path.relative_to(root)}: not built (add it to tests/CMakeLists.txt)"
        for path in files
        if not (build / "bin" / path.stem).exists()
    ]


def misnamed(root: Path) -> list[str]:
    """Files among the tests that hold tests and that no runner would pick up."""
    signs = {".cc": "\nTEST", ".py": "\ndef test_"}
    return [
        f"{path.relative_to(root)}: holds tests and is not named *_test{path.suffix}"
        for path in sorted((root / "tests").rglob("*"))
        if path.suffix in signs and not path.stem.endswith("_test")
        if signs[path.suffix] in "\n" + path.read_text()
    ]


def uncollected(root: Path) -> list[str]:
    """Python test files from which pytest takes no test."""
    done = subprocess.run(
        # Those of `make torture` too, which the settings leave out.
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-m", "", "tests"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    collected = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    files = [path.relative_to(root).as_posix() for path in (root / "tests").rglob("*_test.py")]
    return [f"{name}: pytest collects nothing from it" for name in files if name not in collected]


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: check_tests_built.py BUILD_FOLDER", file=sys.stderr)
        return 2
    root = Path(__file__).resolve().parent.parent
    found = missing_programs(root, Path(sys.argv[1])) + misnamed(root) + uncollected(root)
    print("\n".join(found) if found else "tests: every file is built and collected")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
