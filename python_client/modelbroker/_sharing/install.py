"""Makes this whole process share, once it imports torch. What modelbroker.run and its children do.

Imports nothing else of this package before that: most programs never import torch.
"""

import os

from .imports import when_imported

TYPE_CHECKING = False  # as type checkers know it; typing takes long to import

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_NEEDED = ("msgpack", "numpy", "zmq")

_own: "dict[str, str]" = {}
_installed = False


def install_for_this_process(own: "Mapping[str, str] | None" = None) -> None:
    """`own`: variables for this process alone, stronger than those of the environment."""
    global _installed
    _own.update(own or {})
    if not _installed:
        _installed = True
        when_imported("torch", _open_the_door)


def _open_the_door(_: "ModuleType") -> None:
    variables = {**os.environ, **_own}
    if variables.get("MODELBROKER_AUTO") == "0":  # by the program itself, before it imported torch
        return
    if missing := _missing():
        from logging import getLogger

        getLogger("modelbroker").info("weights are not shared: no %s here", ", ".join(missing))
        return
    from . import door
    from .settings import Settings

    door.install(Settings.from_environment(variables))


def _missing() -> "list[str]":
    """What our client needs and this interpreter lacks: a child may be another one than ours."""
    from importlib.util import find_spec

    return [name for name in _NEEDED if find_spec(name) is None]
