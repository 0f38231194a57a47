"""The broker's advice in the caller's language.

The broker does not know whom it answers: its messages name commands and flags of the command line
(`--name`). Here a flag becomes the keyword argument of the same name, and a quoted command the
method, if Broker has them; what a method does not have is the broker's own, or only for the shell,
and stays as it is. So a message, a flag or a method that is added needs nothing here.
"""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from typing import NamedTuple

_COMMAND = re.compile(r"'modelbroker ([a-z]+)((?: [^']*)?)'(?!\w)")
# Not within a path or a name.
_FLAG = re.compile(r"(?<![\w/.'\"-])--([a-z]+(?:-[a-z]+)*)(?![\w-]|[./]\w)")


class _Keyword(NamedTuple):
    switch: bool  # True or False
    name: str


def in_python(message: str) -> str:
    """The message for a caller of this package."""
    return _FLAG.sub(_as_keyword, _COMMAND.sub(_as_call, message))


def _as_keyword(flag: re.Match[str]) -> str:
    keyword = _keywords().get(flag[1])
    if keyword is None:
        return flag[0]
    return f"{keyword.name}=True" if keyword.switch else f"{keyword.name}="


def _as_call(command: re.Match[str]) -> str:
    verb = {"ls": "list", "ps": "list"}.get(command[1], command[1])
    try:
        words = shlex.split(command[2])
    except ValueError:
        return command[0]
    if verb not in _methods():
        return command[0]
    arguments = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
        elif (keyword := _keywords().get(word[2:])) is None:
            return command[0]
        elif keyword.switch:
            arguments.append(f"{keyword.name}=True")
        else:
            arguments.append(f"{keyword.name}={words.pop(0) if words else '...'}")
    return f"{verb}({', '.join(arguments)})"


@functools.cache
def _methods() -> dict[str, inspect.Signature]:
    from ._broker import Broker  # it raises errors, so it comes after this module

    return {
        name: inspect.signature(method)
        for name, method in vars(Broker).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


@functools.cache
def _keywords() -> dict[str, _Keyword]:
    """By flag. Any method's will do: the message is about what was asked."""
    return {
        name.replace("_", "-"): _Keyword(isinstance(parameter.default, bool), name)
        for signature in _methods().values()
        for name, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
