"""`with sharing():`: the door, opened for one block of code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .._endpoint import parse
from . import context, imports
from .settings import Settings, bytes_of


class sharing:  # noqa: N801  used as a function
    """What is opened inside attaches to the broker's memory instead of being loaded.

        with modelbroker.sharing():
            pipe = DiffusionPipeline.from_pretrained(folder)

    Around a program's own loading: `from_pretrained`, `from_single_file`, `load_file` and all else
    that reads safetensors files into torch tensors on the CPU. What cannot be shared is loaded as
    ever, and one line in the log of "modelbroker" says why. A file that was opened inside is shared
    wherever it is read, threads that are started inside count as inside, other threads do not.

    `only` and `skip`: patterns of paths, as in "*/unet/*". `min_size`: smaller files are loaded as
    ever (1 MiB; bytes or "500MB"). `resident_only`: attach to what is in memory, load nothing.
    `endpoint`: another broker than the usual one. What is not given is as `modelbroker.run` and its
    variables say; MODELBROKER_AUTO=0 switches this off too.

    An object of it may be entered again and again, also within itself.
    """

    def __init__(
        self,
        *,
        only: str | Iterable[str] = (),
        skip: str | Iterable[str] = (),
        min_size: int | str | None = None,
        resident_only: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        if endpoint is not None:
            parse(endpoint)  # or its error
        given: dict[str, Any] = {
            "only": _globs(only) or None,
            "skip": _globs(skip) or None,
            "min_size": None if min_size is None else bytes_of(min_size),
            "resident_only": resident_only,
            "endpoint": endpoint,
        }
        self._given = {key: x for key, x in given.items() if x is not None}

    def __enter__(self) -> None:
        if os.environ.get("MODELBROKER_AUTO") == "0":
            context.enter_unchanged()
            return
        settings = context.current() or Settings.from_environment()
        imports.when_imported("torch", _open_the_door)
        context.enter(replace(settings, **self._given))

    def __exit__(self, *_: object) -> None:
        context.leave()


def _globs(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _open_the_door(_: object) -> None:
    from .door import install  # it imports torch

    install()
