"""Which pages are this process's own, asked of pagemap, and of smaps and the block without it."""

from __future__ import annotations

import itertools
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import modelbroker
from modelbroker import _intervals as intervals
from modelbroker import _memory
from modelbroker import _pages as pages
from modelbroker._dtypes import Bytes
from support import files
from support.broker import BrokerProcess

PAGE = mmap.PAGESIZE


def closed(*_: object) -> int:
    raise PermissionError


def ending() -> int:
    """A pagemap that ends too soon."""
    return os.open("/dev/null", os.O_RDONLY)


def silent() -> str:
    """An smaps that tells no more than where the mappings are, as some kernels' do."""
    return Path("/proc/self/maps").read_text()


WAYS: dict[str, dict[str, Callable[..., object]]] = {
    "pagemap": {},
    "no pagemap": {"open_pagemap": closed},
    "a pagemap that ends": {"open_pagemap": ending},
    "no pagemap, a silent smaps": {"open_pagemap": closed, "read_smaps": silent},
    "nothing but the block": {"open_pagemap": closed, "read_smaps": closed},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, instead in WAYS[request.param].items():
        monkeypatch.setattr(pages, name, instead)
    return str(request.param)


@pytest.fixture
def weights(broker: BrokerProcess, tmp_path: Path) -> Iterator[modelbroker.Weights]:
    path = files.write_random(tmp_path / "m", 6, tensors=1)
    with broker.connect() as client, client.attach(path) as attached:
        yield attached


def memory_of(weights: modelbroker.Weights) -> tuple[_memory.Memory, Bytes]:
    memory = _memory.find(weights.raw("t0").__array_interface__["data"][0])
    assert memory is not None
    return memory, np.asarray(memory)


def test_own_pages_are_those_that_were_written(weights: modelbroker.Weights, way: str) -> None:
    memory, everything = memory_of(weights)
    assert way in WAYS

    def found() -> list[intervals.Range]:
        ranges = pages.written_ranges(memory.address, memory.size)
        return [(start - memory.address, end - memory.address) for start, end in ranges]

    everything.max()
    assert found() == []
    assert pages.written_bytes(memory.address, memory.size) == 0
    count = memory.size // PAGE
    chosen = sorted({1, 2, 3, count // 2, 255, 256, 257, count - 1, *range(600, 700, 7)})
    for page in chosen:
        everything[page * PAGE + page % PAGE] ^= 1
    expected = intervals.merged((page * PAGE, (page + 1) * PAGE) for page in chosen)
    assert found() == expected
    assert pages.written_bytes(memory.address, memory.size) == PAGE * len(chosen)
    start = memory.address + 3 * PAGE + 17
    assert pages.written_ranges(start, 1) == [(start - 17, start - 17 + PAGE)]
    assert pages.written_bytes(start, PAGE) == PAGE  # the next one is nobody's
    assert pages.written_ranges(start + PAGE, 5 * PAGE) == []
    assert pages.written_ranges(start, 0) == []
    assert pages.written_bytes(start, 0) == 0


def test_runs_longer_than_one_reading_are_one_run(
    weights: modelbroker.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_AT_ONCE", 100)
    memory, everything = memory_of(weights)
    everything[50 * PAGE : 350 * PAGE] ^= 1
    assert pages.written_ranges(memory.address, memory.size) == [
        (memory.address + 50 * PAGE, memory.address + 350 * PAGE)
    ]


def test_sets_of_ranges_are_what_sets_of_numbers_are() -> None:
    source = random.Random(1)

    def some() -> list[intervals.Range]:
        starts = [source.randrange(60) for _ in range(source.randrange(6))]
        return [(start, start + source.randrange(12)) for start in starts]

    def numbers(ranges: list[intervals.Range]) -> set[int]:
        return {number for start, end in ranges for number in range(start, end)}

    for _ in range(2000):
        loose, one, other = some(), intervals.merged(some()), intervals.merged(some())
        assert numbers(intervals.merged(loose)) == numbers(loose)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(one))
        assert numbers(intervals.intersected(one, other)) == numbers(one) & numbers(other)
        assert numbers(intervals.subtracted(one, other)) == numbers(one) - numbers(other)
        assert intervals.size(one) == len(numbers(one))
        covered, known = intervals.Covered(), set[int]()
        for start, end in loose + one + other:
            new = set(range(start, end))
            assert covered.add(start, end) == len(new - known)
            known |= new
