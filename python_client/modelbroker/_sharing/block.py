"""`with sharing():`: the door, opened for one block of code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from . import context, imports
from .settings import Settings, bytes_of


@contextmanager
def sharing(
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    min_size: int | str | None = None,
    resident_only: bool | None = None,
    endpoint: str | None = None,
) -> Iterator[None]:
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
    """
    if os.environ.get("MODELBROKER_AUTO") == "0":
        yield
        return
    settings = context.current() or Settings.from_environment()
    given: dict[str, Any] = {
        "only": tuple(only) or None,
        "skip": tuple(skip) or None,
        "min_size": None if min_size is None else bytes_of(min_size),
        "resident_only": resident_only,
        "endpoint": endpoint,
    }
    settings = replace(settings, **{key: x for key, x in given.items() if x is not None})
    imports.when_imported("torch", _open_the_door)
    with context.entered(settings):
        yield


def _open_the_door(_: object) -> None:
    from .door import install  # it imports torch

    install()
