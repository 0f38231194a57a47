"""Fixtures of the Python tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import files
from support.broker import BrokerProcess

if TYPE_CHECKING:
    from support.adapters import Studio
    from support.raw_wire import Town

# A shell that runs us in the background ignores SIGINT for us and for all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _imports_stay() -> None:
    """What importing torch and diffusers made stays: no collection of garbage walks it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_broker() -> Iterator[Callable[..., BrokerProcess]]:
    """Makes brokers (not started); all are gone at the test's end."""
    made: list[BrokerProcess] = []

    def make(*flags: str, environment: dict[str, str] | None = None) -> BrokerProcess:
        made.append(BrokerProcess(*flags, environment=environment))
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture
def broker(make_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker of this test's own."""
    return make_broker().start()


@pytest.fixture
def loaded(broker: BrokerProcess, tmp_path: Path) -> BrokerProcess:
    """With one model, "m", of 2 MB."""
    broker.cli("load", files.write_random(tmp_path / "m", 2), "--name", "m")
    return broker


@pytest.fixture(scope="module")
def shared() -> Iterator[BrokerProcess]:
    """One broker for all cases of a file: what one leaves behind, the next sees."""
    broker = BrokerProcess("--ram-budget", "1GiB").start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    """A broker with a model and a worker that must not notice what is done to it."""
    from support.raw_wire import new_town  # wants safetensors, which not every interpreter has

    with new_town() as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A small pipeline over shared weights, adapters for it, and a broker that connect() finds."""
    from support.adapters import studio  # wants diffusers

    with studio(tmp_path_factory.mktemp("studio")) as made:
        yield made


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch's, so that networks of several tests do not wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_numbers(one_thread: None) -> Iterator[None]:  # noqa: ARG001  what it does
    """Of torch's generator, in every run; without gradients."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        yield
