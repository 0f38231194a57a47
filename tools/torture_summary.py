"""Prints what `make torture` ran, from the files that pytest wrote: one line for each run."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

_COUNTS = ("tests", "failures", "errors", "skipped")


def main(folder: Path) -> int:
    bad = 0
    print(f"{'run':<28} {'tests':>6} {'failed':>7} {'skipped':>8} {'minutes':>8}")
    for path in sorted(folder.glob("*.xml")):
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
        tests, failures, errors, skipped = (
            sum(int(suite.get(word, 0)) for suite in suites) for word in _COUNTS
        )
        minutes = sum(float(suite.get("time", 0)) for suite in suites) / 60
        bad += failures + errors
        name = path.stem.replace("without-", "without ")
        print(f"{name:<28} {tests:>6} {failures + errors:>7} {skipped:>8} {minutes:>8.1f}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
