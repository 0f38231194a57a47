"""Makes this whole process share, once it imports torch. What modelbroker.run and its children do.

Imports nothing else of this package before that: most programs never import torch.
"""

import os
import sys

from .imports import when_imported

TYPE_CHECKING = False  # as type checkers know it; typing takes long to import

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEEDED = ("msgpack", "numpy", "zmq")

_own: "dict[str, str]" = {}
_installed = False


def install_for_this_process(
    own: "Mapping[str, str] | None" = None, is_child: bool = False
) -> None:
    """`own`: variables for this process alone, stronger than those of the environment.

    `is_child`: it may be the interpreter of another environment, which lacks what we need.
    """
    global _installed
    _own.update(own or {})
    if not _installed:
        _installed = True
        when_imported("torch", lambda _: _open_the_door(is_child))


def _open_the_door(is_child: bool) -> None:
    variables = {**os.environ, **_own}
    if variables.get("MODELBROKER_AUTO") == "0":  # by the program itself, before it imported torch
        return
    if missing := [name for name in _NEEDED if _is_missing(name)]:
        from logging import INFO, WARNING, getLogger

        why = "weights are not shared: %s cannot be imported: pip install modelbroker here"
        getLogger("modelbroker").log(INFO if is_child else WARNING, why, ", ".join(missing))
        return
    from . import door
    from .settings import Settings

    door.install(Settings.from_environment(variables))


def _is_missing(name: str) -> bool:
    from importlib.util import find_spec

    return sys.modules[name] is None if name in sys.modules else find_spec(name) is None
