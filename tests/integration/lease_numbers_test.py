"""Leases whose numbers the client chooses: docs/protocol.md, "Lease numbers"."""

from __future__ import annotations

from pathlib import Path

from support import files
from support.broker import BrokerProcess, wait_until
from support.hanging_files import hanging_file
from support.users import Caller

READS = 20  # then some of a load's pages exist


def attach_number(caller: Caller, **data: object) -> int:
    return int(caller.ok("model.attach", **{"model": "m", **data})["lease"])


def test_a_number_is_good_once_in_a_session(loaded: BrokerProcess) -> None:
    with Caller(loaded) as one, Caller(loaded) as other:
        assert attach_number(one) == 1  # without a number, or 0, the broker counts
        assert attach_number(one, lease=0) == 2
        assert attach_number(one, lease=7) == 7
        assert attach_number(other, lease=7) == 7
        assert attach_number(one) == 8
        assert one.code("model.attach", model="nothing", lease=9) == "not_found"
        assert one.ok("model.detach", lease=7) == {"released": True}
        for number in (1, 7, 8, 9):
            assert one.code("model.attach", model="m", lease=number) == "already_exists"
        assert attach_number(one, lease=2**62) == 2**62
        assert one.code("model.attach", model="m", lease=2**62 + 1) == "invalid_argument"
        assert loaded.books()["leases"] == 5


def test_a_number_that_was_stated_again_is_used(loaded: BrokerProcess) -> None:
    with Caller(loaded) as before, Caller(loaded) as after:
        block = before.ok("model.attach", model="m")["blocks"][0]["block"]
        held = [{"lease": number, "model": "m", "blocks": [block]} for number in (5, 1000)]
        lost = {"lease": 2000, "model": "gone", "blocks": ["gone"]}
        reply = after.ok("lease.restate", leases=[*held, lost])
        assert reply == {"restated": [5, 1000], "lost": [2000]}
        for number in (5, 1000, 2000):
            assert after.code("model.attach", model="m", lease=number) == "already_exists"
        assert attach_number(after, lease=6) == 6
        assert attach_number(after) == 2001


def test_a_detach_that_comes_first_refuses_its_attach(loaded: BrokerProcess) -> None:
    with Caller(loaded) as caller:
        for number in (20, 20, 0, 2**62 + 1):
            assert caller.ok("model.detach", lease=number) == {"released": False}
        assert caller.code("model.attach", model="m", lease=20) == "already_exists"
        assert loaded.books()["leases"] == 0
        assert attach_number(caller, lease=19) == 19
        assert attach_number(caller) == 21


def test_a_detach_cancels_the_attach_that_waits_for_a_load(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    with (
        hanging_file(tmp_path / "fuse", content, READS) as slow,
        Caller(broker) as one,
        Caller(broker) as other,
    ):
        model = str(slow.path)
        ours, theirs = one.offer(slow.path), other.offer(slow.path)  # before all hangs
        joined = other.send("model.attach", model=model, file=theirs, lease=5)
        assert slow.hanging.wait(60)
        asked = one.send("model.attach", model=model, file=ours, lease=5)
        detached = one.send("model.detach", lease=5)
        answers = {reply["request_id"]: reply for reply in (one.answer(), one.answer())}
        assert answers[asked]["error"]["code"] == "cancelled"
        assert "lease 5" in answers[asked]["error"]["message"]
        assert answers[detached]["data"] == {"released": False}
        assert one.code("model.attach", model=model, lease=5) == "already_exists"
        slow.go_on()
        reply = other.answer()
        assert (reply["request_id"], reply["data"]["lease"]) == (joined, 5)
        assert broker.books()["leases"] == 1
        assert attach_number(one, model=slow.path.stem, lease=6) == 6


def test_a_detach_ends_the_load_that_nobody_else_waits_for(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 40).read_bytes()
    with hanging_file(tmp_path / "fuse", content, READS) as slow, Caller(broker) as one:
        file = one.offer(slow.path)
        one.send("model.attach", model=str(slow.path), file=file, lease=5)
        assert slow.hanging.wait(60)
        one.send("model.detach", lease=5)
        assert {one.answer()["success"], one.answer()["success"]} == {True, False}
        slow.go_on()
        wait_until(broker.is_empty)
        assert broker.books()["leases"] == 0
