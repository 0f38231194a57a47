"""Frames and errors of the Python package, without a broker."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from typing import Any

import msgpack
import pytest

import modelbroker
from modelbroker import _errors
from modelbroker._wire import (
    MESSAGE_LIMIT,
    PACKET_LIMIT,
    RequestIds,
    SessionLost,
    data_of,
    decode_reply,
    encode_request,
)

ERRORS = [
    (modelbroker.InvalidArgumentError, "invalid_argument", ValueError),
    (modelbroker.NotFoundError, "not_found", LookupError),
    (modelbroker.AlreadyExistsError, "already_exists", Exception),
    (modelbroker.FailedPreconditionError, "failed_precondition", Exception),
    (modelbroker.StaleGenerationError, "stale_generation", Exception),
    (modelbroker.ResourceExhaustedError, "resource_exhausted", Exception),
    (modelbroker.PermissionDeniedError, "permission_denied", PermissionError),
    (modelbroker.DataLossError, "data_loss", Exception),
    (modelbroker.UnavailableError, "unavailable", ConnectionError),
    (modelbroker.DeadlineExceededError, "deadline_exceeded", TimeoutError),
    (modelbroker.CancelledError, "cancelled", Exception),
    (modelbroker.UnimplementedError, "unimplemented", NotImplementedError),
    (modelbroker.InternalError, "internal", Exception),
]

# Of this package alone: the broker sends none of them.
OURS: list[tuple[type[modelbroker.ModelBrokerError], str, type[Exception]]] = [
    (modelbroker.TorchMissingError, "failed_precondition", ImportError),
    (modelbroker.BrokerHangsError, "deadline_exceeded", TimeoutError),
]


# ---- errors


@pytest.mark.parametrize(("kind", "code", "also"), ERRORS)
def test_each_code_is_a_class_that_is_also_what_python_expects(
    kind: type[modelbroker.ModelBrokerError], code: str, also: type[Exception]
) -> None:
    error = _errors.error_of(code, "why", {"needed": 7})
    assert type(error) is kind
    assert isinstance(error, also)
    assert isinstance(error, modelbroker.ModelBrokerError)
    assert (error.code, error.message, str(error)) == (code, "why", "why")
    assert error.details == {"needed": 7}


@pytest.mark.parametrize(("kind", "code", "also"), ERRORS + OURS)
def test_errors_come_back_whole_from_pickle_and_copy(
    kind: type[modelbroker.ModelBrokerError], code: str, also: type[Exception]
) -> None:
    assert issubclass(kind, also)
    error = kind("what happened", {"needed": 1, "limit": 2})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert (again.code, str(again), again.details) == (code, str(error), error.details)
    assert copy.copy(error).details == copy.deepcopy(error).details == error.details


def test_every_error_of_the_package_has_its_code() -> None:
    classes = {
        value
        for value in vars(modelbroker).values()
        if isinstance(value, type) and issubclass(value, modelbroker.ModelBrokerError)
    }
    assert classes == {kind for kind, _, _ in ERRORS + OURS} | {modelbroker.ModelBrokerError}


def test_an_unknown_code_is_internal_and_says_which() -> None:
    error = _errors.error_of("from_the_future", "why", {"a": 1})
    assert type(error) is modelbroker.InternalError
    assert str(error) == "from_the_future: why"
    assert error.details == {"a": 1}


@pytest.mark.parametrize(("code", "details"), [(None, None), (7, 7), ([], "x"), ({}, [1])])
def test_an_error_of_wrong_kinds_is_internal(code: Any, details: Any) -> None:
    assert _errors.error_of(code, None, details).details == {}


def test_details_are_a_copy() -> None:
    details = {"a": 1}
    error = modelbroker.NotFoundError("x", details)
    details["a"] = 2
    assert error.details == {"a": 1}


# ---- requests


def test_a_request_has_what_was_given_and_nothing_more() -> None:
    raw = encode_request("id-1", "model.list", {})
    assert msgpack.unpackb(raw) == {
        "v": 2,
        "request_id": "id-1",
        "type": "model.list",
        "data": {},
    }
    raw = encode_request("id-2", "model.pin", {"model": "ü"}, session="abc", deadline_ms=5)
    assert msgpack.unpackb(raw) == {
        "v": 2,
        "request_id": "id-2",
        "type": "model.pin",
        "data": {"model": "ü"},
        "session": "abc",
        "deadline_ms": 5,
    }


@pytest.mark.parametrize("limit", [PACKET_LIMIT, MESSAGE_LIMIT])
def test_a_request_over_the_limit_is_refused_here(limit: int) -> None:
    frame = len(encode_request("id", "model.get", {"model": "x" * 70_000}, limit=1 << 30)) - 70_000
    fits = {"model": "x" * (limit - frame - 4)}
    assert len(encode_request("id", "model.get", fits, limit=limit)) <= limit
    with pytest.raises(modelbroker.InvalidArgumentError, match=f"at most {limit}"):
        encode_request("id", "model.get", {"model": "x" * (limit + 1)}, limit=limit)


def test_text_that_is_no_utf_8_is_refused_here() -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match="UTF-8"):
        encode_request("id", "model.get", {"model": "\udcff"})


def test_request_ids_are_never_the_same() -> None:
    sources = [RequestIds() for _ in range(4)]
    ids: list[str] = []

    def take() -> None:
        ids.extend(source() for _ in range(500) for source in sources)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == len(ids) == 8000
    assert all(1 <= len(word.encode()) <= 64 for word in ids)


# ---- replies


def reply_of(**fields: Any) -> dict[str, Any]:
    raw: bytes = msgpack.packb({"v": 2, "request_id": "id", **fields})
    return decode_reply(raw)


def test_a_success_is_its_data() -> None:
    assert data_of(reply_of(success=True, data={"a": [1]})) == {"a": [1]}
    assert data_of(reply_of(success=True)) == {}
    assert data_of(reply_of(success=True, data=None)) == {}


def test_a_failure_is_raised_as_what_it_is() -> None:
    error = {"code": "resource_exhausted", "message": "full", "details": {"needed": 3}}
    with pytest.raises(modelbroker.ResourceExhaustedError, match="full") as caught:
        data_of(reply_of(success=False, error=error))
    assert caught.value.details == {"needed": 3}


def test_an_unknown_session_is_a_lost_one() -> None:
    error = {"code": "failed_precondition", "message": "", "details": {"unknown_session": 1}}
    with pytest.raises(SessionLost):
        data_of(reply_of(success=False, error=error))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"success": 1, "data": {}},
        {"success": False},
        {"success": False, "error": "not_found: x"},
        {"success": False, "error": {}},
        {"success": False, "error": {"code": 3, "message": [], "details": 4}},
    ],
)
def test_a_reply_of_another_form_is_internal(fields: dict[str, Any]) -> None:
    with pytest.raises(modelbroker.InternalError):
        data_of(reply_of(**fields))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x81", b"\x93\x01\x02", b"\x01", b"\x80\x80", b"\x81\x01\x02", b"\x91" * 5000],
)
def test_what_is_no_map_is_internal(raw: bytes) -> None:
    with pytest.raises(modelbroker.InternalError, match="a reply is"):
        decode_reply(raw)


def test_any_bytes_are_a_map_or_internal() -> None:
    chance = random.Random(20240607)
    honest: bytes = msgpack.packb({"v": 2, "request_id": "id", "success": True, "data": {"a": [1]}})
    for _ in range(20_000):
        raw = bytearray(honest)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            reply = decode_reply(bytes(raw[: chance.randint(0, len(raw))]))
            data_of(reply)
        except modelbroker.ModelBrokerError:
            continue
        assert isinstance(reply, dict)
