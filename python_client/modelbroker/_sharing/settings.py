"""What is shared, and how: the options of modelbroker.run and the variables of the same names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import InvalidArgumentError
from .sizes import bytes_of as bytes_of

_log = logging.getLogger("modelbroker")

_SEPARATOR = ":"
_YES = ("true", "yes", "on", "1")
_NO = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Settings:
    """How a process shares. The defaults are those of every variable that is not set."""

    only: tuple[str, ...] = ()
    """Globs: no other path is shared. Empty: all are."""
    skip: tuple[str, ...] = ()
    """Globs: these paths are not shared."""
    min_size: int = 1 << 20
    """Bytes: smaller files are not shared."""
    resident_only: bool = False
    """Attach to what is in memory; never load."""
    endpoint: str | None = None
    """The broker's; None: where connect() looks."""
    report: str | None = None
    """None: no report; "-": to stderr at exit; otherwise the file to append JSON lines to."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Settings:
        """From MODELBROKER_*. A variable with a wrong value is logged, and its default holds."""
        found: dict[str, Any] = {}
        for field, (name, read, _) in _VARIABLES.items():
            text = (os.environ if variables is None else variables).get(name, "")
            if not text:
                continue
            try:
                found[field] = read(text)
            except InvalidArgumentError as error:
                _log.warning("%s is ignored: %s", name, error)
        return cls(**found)

    def to_environment(self) -> dict[str, str]:
        """The variables that say the same to a child. What is as by default is not in it."""
        return {
            name: write(getattr(self, field))
            for field, (name, _, write) in _VARIABLES.items()
            if getattr(self, field) != getattr(Settings, field)
        }


def _globs(text: str) -> tuple[str, ...]:
    return tuple(glob for glob in text.split(_SEPARATOR) if glob)


def _written_globs(globs: tuple[str, ...]) -> str:
    for glob in globs:
        if not glob or _SEPARATOR in glob:
            raise InvalidArgumentError(
                f"the glob {glob!r} cannot be passed to children: it must not be empty nor contain "
                f"{_SEPARATOR!r}; '?' matches any one character"
            )
    return _SEPARATOR.join(globs)


def _switch(text: str) -> bool:
    if text not in _YES + _NO:
        raise InvalidArgumentError(f"{text[:64]!r} is neither 1 nor 0")
    return text in _YES


def _report_file(text: str) -> str:
    """Absolute: the report is written at the exit, wherever the program is then."""
    return text if text == "-" else os.path.abspath(text)


_VARIABLES: dict[str, tuple[str, Callable[[str], Any], Callable[[Any], str]]] = {
    "only": ("MODELBROKER_ONLY", _globs, _written_globs),
    "skip": ("MODELBROKER_SKIP", _globs, _written_globs),
    "min_size": ("MODELBROKER_MIN_SIZE", bytes_of, str),
    "resident_only": ("MODELBROKER_RESIDENT_ONLY", _switch, lambda on: "1" if on else "0"),
    "endpoint": ("MODELBROKER_ENDPOINT", str, str),
    "report": ("MODELBROKER_REPORT", _report_file, str),
}
