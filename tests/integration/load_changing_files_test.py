"""Files that change while they are loaded: refused, or loaded whole; never a mixture."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelbroker import DataLossError, ModelBrokerError
from support import files
from support.broker import BrokerProcess, wait_until

SIZE = 128 << 20
FILE_CLOCK_TICK = 0.01  # seconds, generously
ROUNDS = 3


def assert_unharmed(broker: BrokerProcess, folder: Path) -> None:
    """It lives, its books are at zero, and an honest file loads with the right bytes."""
    assert broker.alive(), broker.output()
    assert broker.is_empty(), (broker.books(), broker.blocks())
    path = files.write_random(folder / "honest.safetensors", 0.1, tensors=1)
    with broker.connect() as client:
        client.load(path)
        with client.attach("honest") as weights:
            assert path.read_bytes().endswith(weights.raw("t0").tobytes())
        client.unload("honest")
    wait_until(broker.is_empty)


@pytest.fixture(scope="module")
def versions() -> tuple[bytes, bytes]:
    """The data of an old and of a new file of the same header."""
    source = np.random.SFC64(5)
    return source.random_raw(SIZE // 8).tobytes(), source.random_raw(SIZE // 8).tobytes()


@pytest.fixture(scope="module")
def allowed(versions: tuple[bytes, bytes]) -> set[str]:
    """Digests of what a load may give: one of them whole."""
    return {hashlib.sha1(data).hexdigest() for data in versions}


def header_of(size: int) -> bytes:
    return files.encode({"t": files.entry("U8", [size], 0, size)})


def rewrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(len(header_of(SIZE)))
        file.write(data)


def replace(path: Path, data: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(header_of(SIZE) + data)
    other.replace(path)


def rewrite_backwards(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        for at in reversed(range(0, SIZE, 1 << 20)):
            file.seek(len(header_of(SIZE)) + at)
            file.write(data[at : at + (1 << 20)])


def rewrite_and_restore_mtime(path: Path, data: bytes) -> None:
    before = path.stat()
    rewrite(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data[: 1 << 20])


CHANGES: dict[str, Callable[[Path, bytes], object]] = {
    "replaced": replace,
    "rewritten": rewrite,
    "rewritten backwards": rewrite_backwards,
    "truncated": lambda path, _: os.truncate(path, SIZE // 2),
    "emptied": lambda path, _: os.truncate(path, 0),
    "grown": grow,
    "deleted": lambda path, _: path.unlink(),
    "restored with its old mtime": rewrite_and_restore_mtime,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_while_it_loads_is_refused_or_whole(
    shared: BrokerProcess,
    tmp_path: Path,
    versions: tuple[bytes, bytes],
    allowed: set[str],
    change: str,
) -> None:
    old, new = versions
    outcomes: list[str] = []
    with shared.connect() as client, shared.connect() as looker:

        def load(path: Path) -> None:
            try:
                client.load(path, "m")
                with client.attach("m") as weights:
                    digest = hashlib.sha1(weights.raw("t").data).hexdigest()
                outcomes.append("whole" if digest in allowed else "A MIXTURE")
                client.unload("m", timeout=60)
            except DataLossError:
                outcomes.append("refused")
            except ModelBrokerError as error:
                outcomes.append(f"{type(error).__name__}: {error}")

        for round_ in range(ROUNDS):
            path = tmp_path / f"m{round_}.safetensors"
            path.write_bytes(header_of(SIZE) + old)
            loader = threading.Thread(target=load, args=(path,))
            loader.start()

            def has_begun(loader: threading.Thread = loader) -> bool:
                reading = any(model.loaded_bytes > 0 for model in looker.list())
                return reading or not loader.is_alive()

            wait_until(has_begun, every=0.0005)
            CHANGES[change](path, new)
            loader.join()
            path.unlink(missing_ok=True)
    assert len(outcomes) == ROUNDS
    assert set(outcomes) <= {"whole", "refused"}, outcomes
    wait_until(shared.is_empty)
    assert_unharmed(shared, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pwrite", "mmap"])
def test_loads_of_a_file_that_is_written_all_the_time_never_mix_versions(
    shared: BrokerProcess, tmp_path: Path, how: str
) -> None:
    """Many loads against one writer: also the moments around a write's end are hit.

    A store into a page that is mapped and dirty changes no mtime and no ctime.
    """
    size = 8 << 20
    path = tmp_path / "busy.safetensors"
    path.write_bytes(header_of(size) + bytes(size))
    stop = threading.Event()
    # A writer that was stalled within one write leaves a file at rest, half new: nobody can tell.
    stalled: set[int] = set()

    def write() -> None:
        pause = random.Random(3)
        start = len(header_of(size))
        with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
            for value in range(1, 1_000_000):
                if stop.wait(pause.uniform(0, 0.04)):
                    return
                data = bytes([value % 251]) * size
                began = time.monotonic()
                for at in (start, start + size // 2):  # with a stall that is none yet
                    if how == "mmap":
                        memory[at : at + size // 2] = data[: size // 2]
                    else:
                        os.pwrite(file.fileno(), data[: size // 2], at)
                    if at == start:
                        time.sleep(FILE_CLOCK_TICK / 2)
                if time.monotonic() - began > FILE_CLOCK_TICK:
                    stalled.add(value % 251)

    writer = threading.Thread(target=write)
    writer.start()
    outcomes = {"whole": 0, "refused": 0}
    mixtures: list[list[int]] = []
    try:
        with shared.connect() as client:
            for _ in range(150):
                try:
                    client.load(path, "busy")
                except DataLossError:
                    outcomes["refused"] += 1
                    continue
                with client.attach("busy") as weights:
                    values = np.unique(weights.raw("t"))
                del weights
                outcomes["whole"] += 1
                if len(values) != 1 and stalled.isdisjoint(values.tolist()):
                    mixtures.append(values.tolist())
                client.unload("busy", wait=True)
    finally:
        stop.set()
        writer.join()
    assert not mixtures, (outcomes, mixtures)
    assert all(outcomes.values()), f"one of the outcomes was never tried: {outcomes}"
    assert_unharmed(shared, tmp_path)
