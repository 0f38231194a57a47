"""Sessions that repeat, reorder and lie: each thing is done once, and the books stay exact."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.broker import wait_until
from support.raw_wire import (
    Socket,
    Town,
    call,
    code_of,
    dealer,
    frame,
    open_session,
    packet,
    packets,
    received,
)


def leases(town: Town) -> int:
    """Beside the worker's one."""
    return town.broker.books()["leases"] - 1


class Peer:
    """A session with both of its sockets."""

    def __init__(self, zmq_socket: Socket, fds: socket.socket) -> None:
        self.zmq, self.fds = zmq_socket, fds
        self.token = open_session(fds)
        self._ids = 0

    def call(self, type_: str, data: Any = None, request_id: str = "") -> dict[str, Any]:
        self._ids += 1
        return call(self.zmq, type_, data, request_id or f"i{self._ids}", session=self.token)

    def ok(self, type_: str, data: Any = None, request_id: str = "") -> dict[str, Any]:
        reply = self.call(type_, data, request_id)
        assert reply["success"], reply
        assert isinstance(reply["data"], dict)
        return reply["data"]

    def attach(self, request_id: str = "") -> int:
        return int(self.ok("model.attach", {"model": "m"}, request_id)["lease"])

    def packet(self, type_: str, data: Any, *fds: int) -> tuple[dict[str, Any], list[int]]:
        return packet(self.fds, frame(type_, data), *fds)


@contextmanager
def session(town: Town) -> Iterator[Peer]:
    with dealer(town.broker) as peer, packets(town.broker) as fds:
        yield Peer(peer, fds)


# ---- repeats and order


def test_a_repeated_attach_is_one_lease(town: Town) -> None:
    with session(town) as peer:
        numbers = [peer.attach("again") for _ in range(20)]
        assert len(set(numbers)) == 1
        assert leases(town) == 1
        raw = frame("model.attach", {"model": "m"}, "burst", session=peer.token)
        with dealer(town.broker) as second:
            for _ in range(50):
                peer.zmq.send(raw)
                second.send(raw)
            replies = [received(one.recv()) for _ in range(50) for one in (peer.zmq, second)]
        assert {reply["data"]["lease"] for reply in replies} == {numbers[0] + 1}
        assert leases(town) == 2
        assert peer.ok("model.detach", {"lease": numbers[0]}, "gone") == {"released": True}
        assert peer.ok("model.detach", {"lease": numbers[0]}, "gone") == {"released": True}
        assert peer.ok("model.detach", {"lease": numbers[0]}) == {"released": False}
        assert leases(town) == 1
    town.assert_unharmed()


def test_a_repeated_question_is_answered_by_what_is_true_then(town: Town) -> None:
    def leases_told(peer: Peer) -> int:
        return int(peer.ok("cache.status", {}, "books")["tiers"]["ram"]["leases"])

    with session(town) as peer:
        before = leases_told(peer)
        peer.attach("a")
        assert leases_told(peer) == before + 1
    town.assert_unharmed()


def test_the_same_request_id_in_two_sessions_is_two_requests(town: Town) -> None:
    with session(town) as first, session(town) as second:
        first.attach("same")
        second.attach("same")
        assert leases(town) == 2
    town.assert_unharmed()


def test_a_load_repeated_while_it_runs_is_done_once(town: Town, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "large.safetensors", 60)
    before = town.broker.books()["loads"]
    with session(town) as peer, ExitStack() as stack:
        others = [stack.enter_context(dealer(town.broker)) for _ in range(5)]
        raw = frame("model.load_model", {"path": str(path)}, "load", session=peer.token)
        for other in others:
            other.send(raw)
        answers = [received(other.recv()) for other in others]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0]["data"]["outcome"] == "loaded"
        assert peer.ok("model.load_model", {"path": str(path)}, "load") == answers[0]["data"]
        assert town.broker.books()["loads"] == before + 1
        peer.ok("model.unload_model", {"model": "large", "wait": True})
    town.assert_unharmed()


def test_a_load_that_everybody_repeats_under_new_ids_reads_the_file_once(
    town: Town, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "large.safetensors", 60)
    before = town.broker.books()["loads"]
    with session(town) as peer:
        for number in range(50):
            data = {"path": str(path), "name": f"n{number}"}
            peer.zmq.send(frame("model.load_model", data, f"l{number}", session=peer.token))
        replies = [received(peer.zmq.recv()) for _ in range(50)]
        assert len({reply["data"]["block"] for reply in replies}) == 1
        assert town.broker.books()["loads"] == before + 1
        peer.ok("model.unload_model", {"model": str(path), "wait": True})
    town.assert_unharmed()


def test_a_waiting_request_whose_peer_is_gone_leaves_nothing(town: Town, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "large.safetensors", 60)
    for _ in range(10):
        with session(town) as peer:
            peer.zmq.send(frame("model.load_model", {"path": str(path)}, session=peer.token))
            peer.zmq.send(frame("model.attach", {"model": str(path)}, "a", session=peer.token))
            peer.ok("session.ping")
    wait_until(lambda: town.broker.books()["reserved"] == 0)
    town.broker.cli("unload", path, "--wait", check=False)
    wait_until(lambda: len(town.broker.blocks()) == 1)
    town.assert_unharmed()


def test_requests_in_the_wrong_order_are_harmless(town: Town) -> None:
    with session(town) as peer:
        assert peer.ok("model.detach", {"lease": 1}) == {"released": False}
        assert code_of(peer.call("model.unload_model", {"model": "later"})) == "not_found"
        number = peer.attach()
        with session(town) as other:
            assert other.ok("model.detach", {"lease": number}) == {"released": False}
        assert leases(town) == 1
        assert peer.ok("session.bye") == {"released": 1}
        assert leases(town) == 0
        assert code_of(peer.call("session.bye")) == "failed_precondition"
        assert peer.fds.recv(1 << 16) == b""
    town.assert_unharmed()


# ---- descriptors


@contextmanager
def descriptors(kind: str, count: int = 1) -> Iterator[list[int]]:
    made: list[int] = []
    with ExitStack() as stack:
        for _ in range(count):
            if kind == "pipe":
                ends = os.pipe()
                stack.callback(os.close, ends[1])
                made.append(ends[0])
            elif kind == "socket":
                left, right = socket.socketpair()
                stack.callback(right.close)
                made.append(left.detach())
            elif kind in ("deleted", "read-write"):
                file, name = tempfile.mkstemp()
                made.append(file if kind == "read-write" else os.open(name, os.O_RDONLY))
                os.unlink(name)
                if kind == "deleted":
                    os.close(file)
            else:
                flags = {"write-only": os.O_WRONLY, "path": os.O_PATH}.get(kind, os.O_RDONLY)
                file, name = tempfile.mkstemp()
                os.close(file)
                stack.callback(os.unlink, name)
                special = {"directory": "/tmp", "device": "/dev/zero"}
                made.append(os.open(special.get(kind, name), flags))
            stack.callback(os.close, made[-1])
        yield made


@pytest.mark.parametrize("count", [0, 2, 3, 4, 5, 8, 200])
def test_a_wrong_number_of_descriptors_is_refused(town: Town, count: int) -> None:
    with session(town) as peer, descriptors("file", count) as some:
        for _ in range(20):
            assert code_of(peer.packet("file.offer", {}, *some)[0]) == "invalid_argument"
        reply, got = peer.packet("block.open", {"block": "x"}, *some)
        assert code_of(reply) == ("not_found" if count <= 4 else "invalid_argument")
        assert got == []
        assert peer.ok("session.ping")
    town.assert_unharmed()


@pytest.mark.parametrize(
    "kind",
    [
        "pipe",
        "socket",
        "directory",
        "device",
        "write-only",
        "read-write",
        "path",
        "file",
        "deleted",
    ],
)
def test_a_descriptor_of_the_wrong_kind_is_refused(town: Town, kind: str) -> None:
    """At the offer or at its use. An empty file, also a deleted one, is one that is damaged."""
    allowed = {"invalid_argument", "permission_denied"}
    allowed = {"data_loss"} if kind in ("file", "deleted") else allowed
    with session(town) as peer, descriptors(kind) as (one,):
        reply, _ = peer.packet("file.offer", {}, one)
        if reply["success"]:
            data = {"path": "/made/up", "file": reply["data"]["file"]}
            reply = peer.call("model.load_model", data)
            assert code_of(peer.call("model.load_model", data)) == "not_found"
        assert code_of(reply) in allowed, reply
    town.assert_unharmed()


def test_past_the_most_unused_offers_one_more_is_refused(town: Town) -> None:
    with town.path.open("rb") as file, session(town) as peer, session(town) as other:
        replies = [peer.packet("file.offer", {}, file.fileno())[0] for _ in range(1105)]
        kept = [reply for reply in replies if reply["success"]]
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 16384:  # where the broker has enough
            assert len(kept) == 1100
        refused = replies[len(kept) :]
        assert {code_of(reply) for reply in refused} == {"resource_exhausted"}
        assert f"{len(kept)} file offers" in refused[0]["error"]["message"]
        handles = [reply["data"]["file"] for reply in kept]
        assert len(set(handles)) == len(handles)
        theirs = other.call("model.load_model", {"path": "/x", "file": handles[0]})
        assert code_of(theirs) == "not_found"
        for handle in handles[:70]:  # none was dropped for another
            data = {"path": str(town.path), "file": handle}
            assert peer.ok("model.load_model", data)["outcome"] == "resident"
            assert code_of(peer.call("model.load_model", data)) == "not_found"
        for _ in range(70):
            assert peer.packet("file.offer", {}, file.fileno())[0]["success"]
        assert code_of(peer.packet("file.offer", {}, file.fileno())[0]) == "resource_exhausted"
    town.assert_unharmed()


def test_descriptors_that_nobody_asked_for_are_closed(town: Town) -> None:
    with descriptors("file", 4) as some:
        for _ in range(100):
            with packets(town.broker) as peer:
                packet(peer, b"\xc1", *some)
                assert packet(peer, frame("session.open"), *some)[0]["success"]
                packet(peer, frame("nonsense"), *some)
    town.assert_unharmed()


def test_a_block_is_opened_for_its_lessees_only_and_to_read_only(town: Town) -> None:
    (model,) = town.broker.cli_json("ps")
    with session(town) as peer:
        for name in (model["block"], "", "../" * 20 + "etc/passwd", "x" * 10_000, "."):
            reply, got = peer.packet("block.open", {"block": name})
            assert (code_of(reply), got) == ("not_found", [])
        assert code_of(peer.packet("block.open", {"block": 5})[0]) == "invalid_argument"
        number = peer.attach()
        reply, (block,) = peer.packet("block.open", {"block": model["block"]})
        try:
            assert os.fstat(block).st_size == reply["data"]["size"]
            assert os.pread(block, 8, 0) == b"MBROKER1"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(block, b"x")
            with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
                os.ftruncate(block, 0)
        finally:
            os.close(block)
        peer.ok("model.detach", {"lease": number})
        assert code_of(peer.packet("block.open", {"block": model["block"]})[0]) == "not_found"
        with dealer(town.broker) as plain:
            assert call(plain, "model.attach", {"model": "m"})["success"]
            assert code_of(peer.packet("block.open", {"block": model["block"]})[0]) == "not_found"
    town.assert_unharmed()


# ---- what was held before


NONSENSE: list[Any] = [
    None,
    5,
    "leases",
    {"leases": 1},
    {"leases": {}},
    {"leases": [1]},
    {"leases": [[]]},
    {"leases": [{"lease": -1, "model": "m", "blocks": []}]},
    {"leases": [{"lease": "1", "model": "m", "blocks": []}]},
    {"leases": [{"lease": 1, "model": "m", "blocks": "b"}]},
    {"leases": [{"lease": 1, "model": "m", "blocks": [1]}]},
    {"leases": [{"lease": 1, "model": "m", "blocks": [None]}]},
]


def test_restated_nonsense_is_refused_or_lost(town: Town) -> None:
    with session(town) as peer:
        for data in NONSENSE:
            assert code_of(peer.call("lease.restate", data)) == "invalid_argument", data
        for blocks in ([], ["nobody"], [""], ["../m"], ["x" * 1000], ["nobody"] * 1000):
            held = {"lease": 7, "model": "m" * 5000, "blocks": blocks}
            reply = peer.ok("lease.restate", {"leases": [held]})
            assert reply == {"restated": [], "lost": [7]}
        many = [{"lease": n, "model": "m", "blocks": ["nobody"]} for n in range(5000)]
        assert len(peer.ok("lease.restate", {"leases": many})["lost"]) == 5000
        assert leases(town) == 0
        assert peer.attach() > 7
        assert leases(town) == 1
    town.assert_unharmed()


def test_a_block_restated_again_and_again_is_one_lease(town: Town) -> None:
    (model,) = town.broker.cli_json("ps")
    with session(town) as peer:
        held = {"lease": 7, "model": "m", "blocks": [model["block"]] * 3}
        for _ in range(3):
            reply = peer.ok("lease.restate", {"leases": [held] * 5})
            assert (set(reply["restated"]), reply["lost"]) == ({7}, [])
            assert leases(town) == 1
        mixed = {"lease": 8, "model": "m", "blocks": [model["block"], "nobody"]}
        assert peer.ok("lease.restate", {"leases": [mixed]})["lost"] == [8]
        assert peer.ok("model.detach", {"lease": 7}) == {"released": True}
        assert leases(town) == 0
    town.assert_unharmed()


@pytest.mark.parametrize("number", [2**64 - 1, 2**64 - 2, 2**63])
def test_a_restated_lease_of_the_highest_number_spoils_no_other(town: Town, number: int) -> None:
    (model,) = town.broker.cli_json("ps")
    with session(town) as peer:
        numbers = [peer.attach(), peer.attach(), number]
        held = {"lease": number, "model": "m", "blocks": [model["block"]]}
        reply = peer.call("lease.restate", {"leases": [held]})
        if not reply["success"]:
            assert code_of(reply) == "invalid_argument"
            numbers.pop()
        numbers += [peer.attach() for _ in range(4)]
        assert len(set(numbers)) == len(numbers), numbers
        assert leases(town) == len(numbers)
    town.assert_unharmed()


def test_packets_cut_from_their_descriptors_do_no_harm(town: Town) -> None:
    """Ancillary data of other kinds, and descriptors on packets of one byte."""
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    credentials = struct.pack("iII", os.getpid(), os.geteuid(), os.getegid())
    for _ in range(50):
        with (
            packets(town.broker) as peer,
            closing(os.fdopen(os.dup(0), "rb", closefd=True)) as file,
        ):
            rights = struct.pack("i", file.fileno())
            kinds = [
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights),
                (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials),
            ]
            peer.sendmsg([source.choice([b"\0", frame("file.offer")])], source.sample(kinds, 2))
            assert not received(peer.recv(1 << 16))["success"], seed
    town.assert_unharmed()
