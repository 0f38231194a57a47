"""Peers that send rubbish, too much, too little, or nothing: nobody else notices."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, closing
from typing import Any

import msgpack
import pytest
import zmq

from support.raw_wire import (
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
from support.workers import assert_right_bytes

# ---- frames that are none


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


GOOD = frame("model.list")
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "never used byte": b"\xc1",
    "truncated": GOOD[:-1],
    "one byte": GOOD[:1],
    "trailing byte": GOOD + b"\0",
    "twice": GOOD + GOOD,
    "an array": msgpack.packb([1]),
    "a number": msgpack.packb(7),
    "nil": msgpack.packb(None),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "an empty map": msgpack.packb({}),
    "arrays nested 50,000 deep": b"\x91" * 50_000,
    "maps nested 10,000 deep": b"\x81\xa1a" * 10_000 + b"\x01",
    "data nested 100 deep": frame("model.list", nested(100)),
    "a map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "an array of 2^32-1": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a string of 2^32-1": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "a binary of 2^32-1": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an ext of 2^32-1": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a key twice": b"\x82" + msgpack.packb("type") + msgpack.packb("model.list") + (
        msgpack.packb("type") + msgpack.packb("model.list")
    ),
    "a key twice in data": GOOD[:-1] + b"\x82" + 2 * (msgpack.packb("model") + msgpack.packb("m")),
    "a number as key": msgpack.packb({"v": 2, "type": "model.list", "request_id": "r", 1: 2}),
    "binary": frame("model.get", {"model": b"m"}),
    "an ext": frame("model.get", {"model": msgpack.ExtType(5, b"m")}),
    "no UTF-8": frame("model.get", {"model": "m?"}).replace(b"m?", b"\xff\xfe"),
    "half a UTF-16 pair": frame("model.get", {"model": "m??"}).replace(b"m??", b"\xed\xa0\x80"),
    "50,000 elements": frame("model.get", {"model": "m", "x": [0] * 50_000, "y": [0] * 50_000}),
    "v is 3": frame("model.list", v=3),
    "v is text": frame("model.list", v="2"),
    "v is nil": frame("model.list", v=None),
    "no request_id": frame("model.list", request_id=...),
    "request_id is a number": frame("model.list", request_id=5),
    "request_id is empty": frame("model.list", request_id=""),
    "request_id is long": frame("model.list", request_id="r" * 65),
    "no type": frame(...),
    "type is a number": frame(5),
    "type is empty": frame(""),
    "deadline is negative": frame("model.list", deadline_ms=-1),
    "deadline is text": frame("model.list", deadline_ms="1"),
    "session is a number": frame("model.list", session=5),
}  # fmt: skip
BAD_FIELDS: dict[str, bytes] = {
    "data is an array": frame("model.get", [1]),
    "data is text": frame("model.get", "m"),
    "model is missing": frame("model.attach"),
    "model is a number": frame("model.attach", {"model": 5}),
    "model is nil": frame("model.attach", {"model": None}),
    "model is empty": frame("model.attach", {"model": ""}),
    "lease is negative": frame("model.detach", {"lease": -1}),
    "lease is a float": frame("model.detach", {"lease": 1.0}),
    "pin is text": frame("model.load_model", {"path": "/m", "pin": "yes"}),
    "path is missing": frame("model.load_model"),
    "path is relative": frame("model.load_model", {"path": "m.safetensors"}),
    "path has a zero": frame("model.load_model", {"path": "/m\0.safetensors"}),
    "path is long": frame("model.load_model", {"path": "/" + "m" * 5000}),
    "name has a control character": frame("model.load_model", {"path": "/m", "name": "a\n"}),
    "name begins with a slash": frame("model.load_model", {"path": "/m", "name": "/a"}),
    "name is long": frame("model.load_model", {"path": "/m", "name": "a" * 256}),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, str]] = {
    **{case: (raw, "invalid_argument") for case, raw in {**MALFORMED, **BAD_FIELDS}.items()},
    "unknown type": (frame("model.explode"), "unimplemented"),
    "a type of the other socket": (frame("session.open"), "unimplemented"),
    "a long type": (frame("x" * 100_000), "unimplemented"),
    "device": (frame("model.attach", {"model": "m", "device": "cuda:0"}), "unimplemented"),
    "component": (frame("model.attach", {"model": "m", "component": "x"}), "unimplemented"),
    "unknown model": (frame("model.attach", {"model": "nobody"}), "not_found"),
    "unknown handle": (frame("model.load_model", {"path": "/m", "file": "f1"}), "not_found"),
    "unknown session": (frame("model.list", session="0" * 32), "failed_precondition"),
}


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ], ids=["DEALER", "REQ"])
def test_a_bad_request_is_refused_by_its_code(town: Town, kind: int) -> None:
    wrong = {}
    with dealer(town.broker, kind) as peer:
        for case, (raw, expected) in REFUSED.items():
            peer.send(raw)
            reply = received(peer.recv())
            if reply["success"] or code_of(reply) != expected:
                wrong[case] = reply
            assert call(peer, "session.ping")["success"], case
    assert not wrong
    town.assert_unharmed()


def test_a_bad_packet_is_refused_by_its_code(town: Town) -> None:
    wrong = {}
    with packets(town.broker) as peer:
        for case, raw in MALFORMED.items():
            if not 0 < len(raw) <= 1 << 16:
                continue  # no packet, or one of those below
            reply, _ = packet(peer, raw)
            if reply["success"] or code_of(reply) != "invalid_argument":
                wrong[case] = reply
        assert code_of(packet(peer, frame("model.list"))[0]) == "unimplemented"
        assert code_of(packet(peer, frame("file.offer"), 0)[0]) == "failed_precondition"
        assert code_of(packet(peer, b"\x81" * 65_537)[0]) == "invalid_argument"
        assert open_session(peer)
        assert code_of(packet(peer, frame("session.open"))[0]) == "failed_precondition"
        peer.send(b"")
        assert peer.recv(1 << 16) == b""
    assert not wrong
    town.assert_unharmed()


def test_an_unknown_session_says_so_in_its_details(town: Town) -> None:
    with dealer(town.broker) as peer, packets(town.broker) as ended:
        token = open_session(ended)
        assert call(peer, "session.ping", session=token)["success"]
        assert call(peer, "session.bye", None, "bye", session=token)["success"]
        for wrong in (token, token.upper(), "x", "0" * 32, "s" * 100_000):
            reply = call(peer, "model.attach", {"model": "m"}, session=wrong)
            assert code_of(reply) == "failed_precondition"
            assert reply["error"]["details"] == {"unknown_session": 1}
    town.assert_unharmed()


def test_thousands_of_mutated_frames_get_one_answer_each(town: Town) -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    data = {"model": "m", "lease": 1, "leases": [{"lease": 3, "model": "m", "blocks": ["b"]}]}
    types = ["model.attach", "model.get", "model.detach", "lease.restate", "session.hello"]
    bases = [frame(type_, data) for type_ in types]
    bases += [msgpack.packb({"type": type_, "data": data, "request_id": 5}) for type_ in types]
    with dealer(town.broker) as peer:
        for _ in range(50):
            batch = [mutated(source, source.choice(bases)) for _ in range(100)]
            for raw in batch:
                peer.send(raw)
            for _ in batch:
                received(peer.recv())
        assert peer.poll(0) == 0, f"seed {seed}"
        assert call(peer, "session.ping")["success"], f"seed {seed}"
    with packets(town.broker) as fds:
        for _ in range(2000):
            packet(fds, mutated(source, frame("file.offer")) or b"\0")
    town.assert_unharmed()


def mutated(source: random.Random, raw: bytes) -> bytes:
    if source.random() < 0.1:
        return source.randbytes(source.randrange(200))
    text = bytearray(raw)
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(text) + 1)
        some = slice(at, at + source.randrange(1, 9))
        kind = source.randrange(4)
        if kind == 0 and at < len(text):
            text[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            del text[some]
        elif kind == 2:
            text[at:at] = text[some] or b"\xff"
        else:
            text[some] = source.randbytes(3)
    return bytes(text)


def test_messages_of_many_parts_and_too_many_bytes_harm_nobody(town: Town) -> None:
    with dealer(town.broker) as peer:
        for parts in (
            [b"x", GOOD],
            [b"", b"", GOOD],
            [b""] * 500,
            [GOOD] * 3,
            [b"x" * 100_000] * 5,
        ):
            peer.send_multipart(parts)
        peer.send_multipart([b"", GOOD])
        assert peer.recv_multipart()[0] == b""
        padded = frame("session.ping", {"x": "y" * ((1 << 20) - 500)})
        peer.send(padded)
        assert received(peer.recv())["success"]
    for size in (1 << 20, 16 << 20):
        with dealer(town.broker) as peer:
            peer.send(b"\x81" * (size + 1))
            assert peer.poll(200) == 0
    town.assert_unharmed()


# ---- connections


def test_hundreds_of_silent_and_of_broken_connections_harm_nobody(town: Town) -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(packets(town.broker))
            stream = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            stream.connect(str(town.broker.run / "broker.sock"))
            if source.random() < 0.5:
                stream.send(source.randbytes(source.randrange(1, 2000)))
        with town.broker.connect() as client:
            assert_right_bytes(client, "m", town.crcs)
    for _ in range(200):
        with packets(town.broker) as peer, dealer(town.broker) as other:
            if source.random() < 0.5:
                token = open_session(peer)
                other.send(frame("model.attach", {"model": "m"}, session=token))
                if source.random() < 0.5:
                    assert received(other.recv())["success"]
            else:
                peer.send(frame("session.open"))
    town.assert_unharmed()


def test_a_peer_that_reads_no_replies_loses_its_connection_only(town: Town) -> None:
    with packets(town.broker) as peer:
        peer.settimeout(0.5)
        hung_up = False
        while not hung_up:
            try:
                peer.send(frame("session.nonsense"))
            except OSError:
                hung_up = True
    with dealer(town.broker) as mute:
        for _ in range(5000):
            mute.send(frame("cache.status"))
        with town.broker.connect() as client:
            assert_right_bytes(client, "m", town.crcs)
    town.assert_unharmed()
