"""The program `modelbroker`, which the wheel for Linux on x86-64 has in this folder.

The console script `modelbroker` and `python -m modelbroker` come here and become the program, with
the same pid. Neither imports the client. The wheel for other platforms has the client alone.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

# As shells say it.
_CANNOT_RUN = 126
_NOT_FOUND = 127


def bundled() -> str:
    """Where the program of this package lies, if the package has one."""
    return os.path.join(os.path.dirname(__file__), "modelbroker")


def main() -> NoReturn:
    """Becomes the program, with this process's arguments."""
    program = bundled()
    # Python ignores these two, and a program inherits what is ignored.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, ["modelbroker", *sys.argv[1:]])
    except FileNotFoundError:
        from .absent import explanation

        _end(_NOT_FOUND, explanation(program))
    except OSError as error:
        _end(_CANNOT_RUN, f"cannot run '{program}': {error.strerror}")


def _end(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"modelbroker: {message}\n")
    raise SystemExit(status)
