"""What becomes of a running load when its session ends, and when its asker only waits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import HangingFile, hanging_file
from support.listener import listening, sparse_model
from support.raw_wire import call, code_of, dealer, frame, received


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[HangingFile]:
    content = files.write_random(tmp_path / "content", 5).read_bytes()
    with hanging_file(tmp_path / "fuse", content) as file:
        yield file


def test_a_load_whose_session_says_bye_is_cancelled(
    broker: BrokerProcess, slow: HangingFile
) -> None:
    with dealer(broker) as asker, dealer(broker) as leaver:
        asker.send(frame("model.load_model", {"path": str(slow.path)}, "load"))
        assert slow.hanging.wait(60)
        assert call(leaver, "session.bye")["success"]  # of the same process: of one session
        reply = received(asker.recv())
    assert (reply["request_id"], code_of(reply)) == ("load", "cancelled")
    assert "session" in reply["error"]["message"]
    slow.go_on()
    wait_until(broker.is_empty)


def test_a_scrub_whose_session_says_bye_is_cancelled(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", sparse_model(tmp_path / "m", 1024))
    with listening(broker) as ear, dealer(broker) as asker, dealer(broker) as leaver:
        asker.send(frame("cache.scrub", {}, "scrub"))
        ear.until("model.scrubbing")
        assert call(leaver, "session.bye")["success"]
        reply = received(asker.recv())
    assert (reply["request_id"], code_of(reply)) == ("scrub", "cancelled")
    assert "session" in reply["error"]["message"]


class Contained(BrokerProcess):
    """In a pid namespace of its own: it sees no pid of who asks."""

    def serve_command(self) -> list[str]:
        return [*self.way(), *super().serve_command()]

    @staticmethod
    def way() -> list[str]:
        way = ["unshare", "--pid", "--fork", "--kill-child"]
        done = subprocess.run([*way, "true"], capture_output=True, check=False, timeout=60)
        if done.returncode != 0:
            pytest.skip("no pid namespace can be made here")
        return way


@pytest.fixture
def contained() -> Iterator[Callable[..., BrokerProcess]]:
    made: list[BrokerProcess] = []

    def make(*flags: str) -> BrokerProcess:
        made.append(Contained(*flags))
        return made[-1].start()

    yield make
    for broker in made:
        broker.stop()


def test_who_waits_for_a_load_is_not_silent(
    contained: Callable[..., BrokerProcess], slow: HangingFile
) -> None:
    broker = contained("--hung", "1s")
    with dealer(broker) as asker:
        asker.send(frame("model.load_model", {"path": str(slow.path)}, "load"))
        assert slow.hanging.wait(60)
        assert asker.poll(4000) == 0, received(asker.recv())
        slow.go_on()
        reply = received(asker.recv())
        assert reply["success"], reply
        # From now on it is.
        wait_until(lambda: broker.cli_json("status")["sessions"] == 1)
