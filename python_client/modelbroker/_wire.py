"""Frames of docs/protocol.md as bytes, and back."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

import msgpack

from ._errors import DeadlineExceededError, InternalError, InvalidArgumentError, error_of

MESSAGE_LIMIT = 1 << 20
PACKET_LIMIT = 64 << 10
PROTOCOL = 2


class SessionLost(Exception):  # noqa: N818  it is news, not an error, and never escapes
    """The session is over (the broker died, stops or forgot it): open another and ask again."""


class UnansweredError(DeadlineExceededError):
    """The broker has said nothing yet: what was asked of it may still happen."""


class RequestIds:
    """Ids that no other process or thread uses. Threads: any."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count()

    def __call__(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"


def encode_request(
    request_id: str,
    type_: str,
    data: dict[str, Any],
    *,
    session: str = "",
    deadline_ms: int = 0,
    limit: int = MESSAGE_LIMIT,
) -> bytes:
    """A request; refuses here what the broker would drop without an answer."""
    frame: dict[str, Any] = {"v": PROTOCOL, "request_id": request_id, "type": type_, "data": data}
    if session:
        frame["session"] = session
    if deadline_ms:
        frame["deadline_ms"] = deadline_ms
    try:
        raw: bytes = msgpack.packb(frame)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{type_}: {error.object!r} is not UTF-8: rename the file, or choose another name"
        ) from None
    if len(raw) > limit:
        raise InvalidArgumentError(f"{type_}: the request has {len(raw)} bytes; at most {limit}")
    return raw


def decode_reply(raw: bytes) -> dict[str, Any]:
    """A reply's map, whatever its outcome."""
    try:
        reply = msgpack.unpackb(raw)
    except Exception as error:  # msgpack raises many kinds, ValueError and its own among them
        raise InternalError(f"a reply is not msgpack: {error}") from None
    if not isinstance(reply, dict):
        raise InternalError("a reply is not a map")
    return reply


def decode_event(raw: bytes) -> dict[str, Any]:
    """The known fields of a published event."""
    event = decode_reply(raw)
    try:
        return {key: event[key] for key in ("type", "seq", "boot_id", "time", "data")}
    except KeyError as missing:
        raise InternalError(f"an event has no {missing}") from None


def data_of(reply: dict[str, Any]) -> dict[str, Any]:
    """The data of a successful reply; an error is raised as what it is."""
    if reply.get("success") is True:
        data = reply.get("data")
        return data if isinstance(data, dict) else {}
    error = reply.get("error")
    if not isinstance(error, dict):
        raise InternalError(f"the broker answered: {error}")
    details = error.get("details")
    if isinstance(details, dict) and (details.get("unknown_session") or details.get("stopping")):
        raise SessionLost
    raise error_of(error.get("code"), error.get("message"), details)
