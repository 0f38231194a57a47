"""The report of a process at its exit: what was shared, what was not, and why.

On stderr for people, or as JSON lines, one a file and process, appended to a file. Imports torch.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from typing import Any

from . import imports, proof
from .ledger import FileRecord, ledger

STDERR = "-"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def at_exit(where: str) -> None:
    """Reports once this process ends; where it ends by a signal or os._exit, it does not."""
    atexit.register(write, where)
    # Children of multiprocessing end by os._exit, after what is registered with it.
    imports.when_imported("multiprocessing.util", lambda util: _in_its_children(util, where))


def _in_its_children(util: Any, where: str) -> None:
    def forked(_: object) -> None:
        util.Finalize(None, _write_of_a_child, (where,), exitpriority=-1000)

    util.register_after_fork(ledger, forked)


def _write_of_a_child(where: str) -> None:
    if ledger.records():  # many workers read nothing
        write(where)


def write(where: str) -> None:
    """Now; what cannot be written is told on stderr."""
    records = ledger.records()
    try:
        if where == STDERR:
            sys.stderr.write(_for_people(records))
        else:
            _append(where, "".join(json.dumps(as_json(record)) + "\n" for record in records))
    except Exception as error:
        sys.stderr.write(f"modelbroker: the report could not be written to {where!r}: {error}\n")


def as_json(record: FileRecord) -> dict[str, Any]:
    """A line of the report."""
    return {
        "pid": os.getpid(),
        "program": sys.argv[0] if sys.argv else "",
        "path": record.path,
        "bytes": record.size,
        "shared": record.shared,
        "why": "" if record.shared else record.why,
        "outcome": record.outcome,
        "handed_out_bytes": record.handed_out,
        "in_use_bytes": record.in_use,
        "written_bytes": record.written,
    }


def _append(path: str, lines: str) -> None:
    # One write: other processes append to the same file.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, lines.encode())
    finally:
        os.close(descriptor)


def _for_people(records: list[FileRecord]) -> str:
    shared = sum(record.shared for record in records)
    opened = f"{shared} of {len(records)} files shared" if records else "no weights were opened"
    head = f"modelbroker: {opened} (pid {os.getpid()})\n"
    return head + "".join(map(_line, records)) + "".join(map(_other_way, proof.other_ways()))


def _line(record: FileRecord) -> str:
    if not record.shared:
        return f"  stock   {size(record.size):>8}  {record.path}: {record.why}\n"
    how = "read by the broker now" if record.outcome == "loaded" else "was in memory"
    return (
        f"  shared  {size(record.size):>8}  {record.path}: {how}; {size(record.handed_out)} handed "
        f"out, {size(record.in_use)} in use, {size(record.written)} written\n"
    )


def _other_way(name: str) -> str:
    return f"  not seen here: {name}, which would read files for itself\n"


def size(count: int) -> str:
    """In the units of disks."""
    for unit, word in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count} B"
