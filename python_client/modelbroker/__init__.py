"""modelbroker: model weights loaded once, shared by every process of this host.

    import modelbroker

    broker = modelbroker.connect()
    weights = broker.attach("/models/sdxl.safetensors")
    module.load_state_dict(weights.state_dict(), assign=True)

`modelbroker serve` must run; docs/python.md has the rules for lifetimes, forks and threads.
"""

TYPE_CHECKING = False  # as type checkers know it; typing takes longer to import than all of this

if TYPE_CHECKING:
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
    from ._models import (
        Holder,
        Loaded,
        Model,
        ModelBlock,
        Scrubbed,
        ScrubbedModel,
        Status,
        Tier,
        Unloaded,
    )
    from ._sharing.block import sharing
    from ._sharing.shared import shared
    from ._weights import TensorView, Weights

    __version__: str

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
    "ModelBlock",
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
    "shared",
    "sharing",
]

# The module of a name is imported when the name is first used: numpy and zmq take longer to import
# than many programs run.
_HOMES = {
    name: home
    for home, names in {
        "_apply": ("AppliedReport",),
        "_broker": ("Broker", "connect"),
        "_errors": (
            "AlreadyExistsError",
            "BrokerHangsError",
            "CancelledError",
            "DataLossError",
            "DeadlineExceededError",
            "FailedPreconditionError",
            "InternalError",
            "InvalidArgumentError",
            "ModelBrokerError",
            "NotFoundError",
            "PermissionDeniedError",
            "ResourceExhaustedError",
            "StaleGenerationError",
            "TorchMissingError",
            "UnavailableError",
            "UnimplementedError",
        ),
        "_events": ("Event", "EventStream"),
        "_models": (
            "Holder",
            "Loaded",
            "Model",
            "ModelBlock",
            "Scrubbed",
            "ScrubbedModel",
            "Status",
            "Tier",
            "Unloaded",
        ),
        "_sharing.block": ("sharing",),
        "_sharing.shared": ("shared",),
        "_weights": ("TensorView", "Weights"),
    }.items()
    for name in names
}

if not TYPE_CHECKING:  # a type checker that saw it would accept misspelt names

    def __getattr__(name: str) -> object:
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("modelbroker")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
