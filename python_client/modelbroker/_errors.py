"""Errors: one class for each code of the protocol, named by what the caller should do next.

Our exception hierarchy:

ModelBrokerError
  + InvalidArgumentError    (ValueError)           fix the call
  + NotFoundError           (LookupError)          name something that exists
  + AlreadyExistsError                             choose another name
  + FailedPreconditionError                        change state first
      + TorchMissingError   (ImportError)          install torch
  + StaleGenerationError                           ask again
  + ResourceExhaustedError                         free something or raise the budget
  + PermissionDeniedError   (PermissionError)      ask somebody who may
  + DataLossError                                  repair the source
  + UnavailableError        (ConnectionError)      retry
  + DeadlineExceededError   (TimeoutError)         allow more time
      + BrokerHangsError                           see its log; end it if it is stuck
  + CancelledError                                 nothing: somebody asked for it
  + UnimplementedError      (NotImplementedError)  use another version
  + InternalError                                  report our bug
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ._wording import in_python


class ModelBrokerError(Exception):
    """Base of all errors of this package. `details` maps words to numbers, e.g. bytes needed."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str = "", details: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, int] = dict(details or {})

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.details)


class InvalidArgumentError(ModelBrokerError, ValueError):
    """The call itself is wrong."""

    code = "invalid_argument"


class NotFoundError(ModelBrokerError, LookupError):
    """No such model or file."""

    code = "not_found"


class AlreadyExistsError(ModelBrokerError):
    """The name is taken by another file."""

    code = "already_exists"


class FailedPreconditionError(ModelBrokerError):
    """Something must be done first; also: this object was closed or released."""

    code = "failed_precondition"


class TorchMissingError(FailedPreconditionError, ImportError):
    """Tensors were asked for, and torch cannot be imported."""


class StaleGenerationError(ModelBrokerError):
    """What was asked for has been replaced meanwhile."""

    code = "stale_generation"


class ResourceExhaustedError(ModelBrokerError):
    """The budget is used up; `details` has the bytes: needed, limit, pinned, leased, ..."""

    code = "resource_exhausted"


class PermissionDeniedError(ModelBrokerError, PermissionError):
    """The broker or the file system does not let this user."""

    code = "permission_denied"


class DataLossError(ModelBrokerError):
    """The file or the block is damaged, or changed while it was read."""

    code = "data_loss"


class UnavailableError(ModelBrokerError, ConnectionError):
    """No broker answers, or it asks to retry."""

    code = "unavailable"


class DeadlineExceededError(ModelBrokerError, TimeoutError):
    """Not done within the call's timeout."""

    code = "deadline_exceeded"


class BrokerHangsError(DeadlineExceededError):
    """A broker is there and says nothing: it is stopped, too busy, or hangs.

    No UnavailableError: to start another broker beside it helps nobody.
    """


class CancelledError(ModelBrokerError):
    """Somebody cancelled it."""

    code = "cancelled"


class UnimplementedError(ModelBrokerError, NotImplementedError):
    """This version of the broker or of this package does not do that."""

    code = "unimplemented"


class InternalError(ModelBrokerError):
    """A bug of the broker: please report it."""

    code = "internal"


_BY_CODE: dict[str, type[ModelBrokerError]] = {
    error.code: error
    for error in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        StaleGenerationError,
        ResourceExhaustedError,
        PermissionDeniedError,
        DataLossError,
        UnavailableError,
        DeadlineExceededError,
        CancelledError,
        UnimplementedError,
        InternalError,
    )
}


def error_of(code: object, message: object, details: object = None) -> ModelBrokerError:
    """The exception for an error as it came over the wire; unknown codes are internal."""
    known = _BY_CODE.get(str(code))
    numbers = details if isinstance(details, dict) else {}
    if known is None:
        return InternalError(f"{code}: {message}", numbers)
    return known(in_python(str(message)), numbers)
