"""modelbroker: model weights loaded once, shared by every process of this host.

    import modelbroker

    broker = modelbroker.connect()
    weights = broker.attach("/models/sdxl.safetensors")
    module.load_state_dict(weights.state_dict(), assign=True)

`modelbroker serve` must run; docs/python.md has the rules for lifetimes, forks and threads.
"""

from importlib.metadata import PackageNotFoundError, version

from ._apply import AppliedReport
from ._broker import Broker, connect
from ._errors import (
    AlreadyExistsError,
    BrokerHangsError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ModelBrokerError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StaleGenerationError,
    TorchMissingError,
    UnavailableError,
    UnimplementedError,
)
from ._events import Event, EventStream
from ._models import Holder, Loaded, Model, Scrubbed, ScrubbedModel, Status, Tier, Unloaded
from ._weights import TensorView, Weights

try:
    __version__ = version("modelbroker")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "unknown"

__all__ = [
    "AlreadyExistsError",
    "AppliedReport",
    "Broker",
    "BrokerHangsError",
    "CancelledError",
    "DataLossError",
    "DeadlineExceededError",
    "Event",
    "EventStream",
    "FailedPreconditionError",
    "Holder",
    "InternalError",
    "InvalidArgumentError",
    "Loaded",
    "Model",
    "ModelBrokerError",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Scrubbed",
    "ScrubbedModel",
    "StaleGenerationError",
    "Status",
    "TensorView",
    "Tier",
    "TorchMissingError",
    "UnavailableError",
    "UnimplementedError",
    "Unloaded",
    "Weights",
    "connect",
]
