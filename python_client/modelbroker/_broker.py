"""Broker: the verbs. One object a process is enough; every method may be called from any thread."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

from ._block import Header, read_header
from ._deadline import Deadline
from ._descriptors import or_exhausted
from ._endpoint import endpoints_to_try
from ._errors import (
    BrokerHangsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from ._events import SNAPSHOT, EventStream
from ._keep_alive import seconds_of
from ._leases import Lease
from ._link import Data, Failure, Link
from ._memory import Memory, Mode
from ._models import Loaded, Model, Scrubbed, Status, Unloaded, take
from ._sources import SUFFIXES, Sources
from ._threads import no_thread_left
from ._weights import Weights

ModelOrPath: TypeAlias = "str | os.PathLike[str]"
Progress: TypeAlias = Callable[[int, int], object]

_CONNECT_SECONDS = 2.0
_SHORT = 30.0
# Of several places that failed, the one to name: where a broker is, otherwise the first.
_TELLING = (BrokerHangsError, PermissionDeniedError)


def connect(endpoint: str | None = None, *, timeout: float = _CONNECT_SECONDS) -> Broker:
    """Connects to the broker of this user, else to the system's.

    `endpoint` ("ipc:///<run>/broker.sock") or MODELBROKER_ENDPOINT names another. A broker that is
    not there yet is waited for, up to `timeout` seconds; then UnavailableError says what to do. One
    that is there and does not answer is BrokerHangsError.
    """
    deadline = Deadline(timeout)
    candidates = endpoints_to_try(endpoint)
    patience = 0.05
    while True:
        failures: list[Failure] = []
        for candidate in candidates:
            link = Link(candidate)
            try:
                link.session(Deadline(deadline.left(patience)))
                return Broker(link)
            except (UnavailableError, BrokerHangsError, PermissionDeniedError) as failed:
                link.close()
                failures.append((type(failed), str(failed)))
            except BaseException:
                link.close()
                raise
        told = (failure for kind in _TELLING for failure in failures if failure[0] is kind)
        kind, message = next(told, failures[0])
        # The user's own may be just starting where the system's refuses.
        if deadline.passed() or (kind is PermissionDeniedError and len(candidates) == 1):
            raise kind(message)
        if kind is BrokerHangsError:
            patience *= 2  # if it is only slow, it gets to answer


class Broker:
    """A connection to a broker. It survives the broker's restart behind your back.

    In a forked child the object goes on to work, with a session of its own; weights attached
    before the fork stay the parent's lease and stay mapped in both. Use it as a context manager
    or close() it; weights that are still in use then keep what they need.
    """

    def __init__(self, link: Link) -> None:
        """Use connect()."""
        self._link = link
        self._closed = False

    # ---- the verbs

    def load(
        self,
        path: ModelOrPath,
        name: str | None = None,
        *,
        type: str = "",
        pin: bool = False,
        keep_alive: float | str | None = None,
        retry: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Loaded:
        """Loads a safetensors file, once for everybody; returns when its weights are in memory.

        Or a model of several files, by its index (*.safetensors.index.json): see python.md.
        The file is opened here, with this process's rights. `name` defaults to the file's
        stem, or to its folder's or repository's name where the stem says nothing (python.md).
        `keep_alive`: how long after its last use it is evicted, in seconds or as "90s", "5m", "2h";
        below zero never, None for the broker's default. Where memory is full of models that are in
        use, a call with a `timeout` waits that long for room; one without is refused at once. A
        load that is not done by then is given up, unless others wait for it.
        `retry` loads a file although the broker died twice in a row while it loaded it.
        `progress(read_bytes, total_bytes)` is called from another thread while it reads, and from
        this one at the end; an error that it raises is raised here once the load is done.
        """
        deadline = Deadline(timeout)
        label = absolute(path)
        data: Data = {"path": label, "name": name or "", "type": type, "pin": pin}
        if keep_alive is not None:
            data["keep_alive"] = seconds_of(keep_alive)
        if retry:
            data["retry"] = True
        with Sources(label) as sources, self._watched(label, progress, deadline):
            loaded = self._open_link().call("model.load_model", data, deadline, sources)
        if progress is not None:
            progress(loaded["payload_bytes"], loaded["payload_bytes"])
        return Loaded.of(loaded)

    def unload(
        self, model: ModelOrPath, *, wait: bool = False, timeout: float | None = _SHORT
    ) -> Unloaded:
        """Withdraws a model's name; with the last name its block goes when nobody has it mapped.

        `wait` returns only when the bytes are free (give a timeout that suits you).
        """
        data: Data = {"model": _name_or_path(model)[0], "wait": wait}
        return take(Unloaded, self._call("model.unload_model", data, timeout))

    def attach(
        self, model: ModelOrPath, *, mode: Mode = "private", timeout: float | None = None
    ) -> Weights:
        """Maps a model's weights into this process; see Weights.

        `model`: a name, or a path (an os.PathLike, what begins with "/", "./" or "../", or names
        an existing file with a folder or a suffix), which is loaded if it is not resident or has
        changed. A file that is loaded this way gets its default name, or another one if that is
        taken. Without `timeout`, a broker that says nothing for 30 s is BrokerHangsError.
        """
        if mode not in ("private", "readonly"):
            raise InvalidArgumentError(f"mode={mode!r} must be 'private' or 'readonly'")
        word, is_path = _name_or_path(model)
        data: Data = {"model": word, "device": "cpu"}
        deadline = Deadline(timeout)
        if not is_path:
            return self._attach(data, mode, deadline)
        try:
            sources = Sources(word)
        except NotFoundError as gone:
            # The file may be gone while its weights are not.
            try:
                return self._attach({**data, "load": False}, mode, deadline)
            except NotFoundError:
                raise gone from None
        with sources:
            return self._attach(data, mode, deadline, sources)

    def attach_open_file(self, descriptor: int, path: str, *, load: bool) -> Weights:
        """Maps the weights of a file that the caller has open; `path` is its label.

        For the door of sharing(). Without `load` only what is resident: else NotFoundError.
        """
        data: Data = {"model": absolute(path), "device": "cpu", "load": load}
        return self._attach(data, "private", Deadline(None), Sources(path, descriptor))

    def wait_for_a_lost_broker(self, seconds: float) -> None:
        """How long calls without a timeout do, from now on."""
        self._link.patience = seconds

    def list(self, *, all: bool = False) -> list[Model]:
        """The models that are loaded or being loaded, by name.

        With `all` also those that were evicted, in the state "remembered": an attach loads them.
        """
        reply = self._call("model.list", {"all": all}, _SHORT)
        return [Model.of(model) for model in reply["models"]]

    def scrub(self, model: ModelOrPath | None = None, *, timeout: float | None = None) -> Scrubbed:
        """Looks now whether a model's weights, or all, still are what was loaded.

        A damaged block is withdrawn, and the next attach loads its file again. `damaged` counts
        such blocks, and `models` says of each where it is damaged.
        """
        word = "" if model is None else _name_or_path(model)[0]
        return Scrubbed.of(self._call("cache.scrub", {"model": word}, timeout))

    def status(self) -> Status:
        """The broker, its kernel features and its tiers' books."""
        return Status.of(self._call("cache.status", {}, _SHORT))

    def events(
        self, types: str | Sequence[str] | None = None, timeout: float | None = None
    ) -> EventStream:
        """What happens from now on: `for event in broker.events():`.

        The first event is a "snapshot", and so is one in the place of events that were missed
        (whoever does not read for long misses some) and after a restart of the broker. `types`:
        only these ("model.loaded", "model.*"), and snapshots. The iteration ends when nothing came
        for `timeout` seconds, at close() of the stream or of this object; else it goes on.
        """
        patterns = (types,) if isinstance(types, str) else types
        return EventStream(self, self._open_link(), patterns, timeout, Deadline(None))

    def pin(self, model: ModelOrPath) -> None:
        """Never evict it."""
        self._call("model.pin", {"model": _name_or_path(model)[0]}, _SHORT)

    def unpin(self, model: ModelOrPath) -> None:
        """Let it be evicted again."""
        self._call("model.unpin", {"model": _name_or_path(model)[0]}, _SHORT)

    def cancel(self, model: ModelOrPath) -> int:
        """Cancels a load that is running or waits for room; how many callers were told."""
        word = _name_or_path(model)[0]
        return int(self._call("model.cancel", {"model": word}, _SHORT)["cancelled"])

    # ---- the connection

    @property
    def endpoint(self) -> str:
        """Where the broker is: "ipc://..."."""
        return self._link.endpoint.broker

    def close(self) -> None:
        """Ends the session as soon as no weights need it. Idempotent."""
        if not self._closed:
            self._closed = True
            self._link.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._link.abandon()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Broker is a connection of this process: connect() in the other one")

    def __repr__(self) -> str:
        return f"<Broker {self.endpoint}{', closed' if self._closed else ''}>"

    # ---- inside

    def _open_link(self) -> Link:
        if self._closed:
            raise FailedPreconditionError("this Broker was closed: connect() again")
        return self._link

    def _call(self, type_: str, data: Data, timeout: float | None) -> Data:
        return self._open_link().call(type_, data, Deadline(timeout))

    @contextmanager
    def _watched(self, path: str, progress: Progress | None, deadline: Deadline) -> Iterator[None]:
        """Tells `progress` of a load of `path` while the body runs."""
        if progress is None:
            yield
            return
        raised: list[BaseException] = []

        def watch(stream: EventStream) -> None:
            try:
                for read, total in _reading(stream, path, deadline):
                    progress(read, total)
            except BaseException as error:
                raised.append(error)

        types = ("model.loading", "model.progress")
        with EventStream(self, self._open_link(), types, None, deadline) as stream:
            watcher = threading.Thread(target=watch, args=(stream,), name="modelbroker-progress")
            try:
                watcher.start()
            except RuntimeError:
                raise no_thread_left(f"watching the load of {path!r}") from None
            try:
                yield
            finally:
                stream.close()
                watcher.join()
        if raised:
            raise raised.pop()  # it keeps this frame, which is not to keep it

    def _attach(
        self, data: Data, mode: Mode, deadline: Deadline, sources: Sources | None = None
    ) -> Weights:
        reply, lease = self._open_link().attach(data, deadline, sources)
        blocks: list[tuple[Memory, Header]] = []
        try:
            for block in reply["blocks"]:
                blocks.append(
                    self._map(str(block["block"]), str(block["path"]), mode, lease, deadline)
                )
        except BaseException as error:
            # Whoever keeps the error keeps its frames: they are to keep no mapping and no lease.
            traceback.clear_frames(error.__traceback__)
            blocks.clear()
            del lease
            raise
        generation = max(int(block["generation"]) for block in reply["blocks"])
        outcome = str(reply.get("outcome") or "")  # an older broker does not tell
        return Weights(str(reply["model"]), generation, mode, blocks, outcome)

    def _map(
        self, name: str, path: str, mode: Mode, lease: Lease, deadline: Deadline
    ) -> tuple[Memory, Header]:
        descriptor = self._open_block(name, path, deadline)
        try:
            header = read_header(descriptor, name)
            memory = Memory(
                descriptor,
                header.size,
                mode,
                keeps=lease,
                header=header,
                path=path,
                reopen=self._link.open_block,
            )
            return memory, header
        finally:
            os.close(descriptor)

    def _open_block(self, name: str, path: str, deadline: Deadline) -> int:
        try:
            # Without O_NONBLOCK: while the broker asks the kernel who has the block, we wait.
            with or_exhausted(f"opening block {name}"):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            # Another mount namespace, another user, or renamed since: the broker opens it for us.
            return self._link.open_block(name, deadline)


def _reading(stream: EventStream, path: str, deadline: Deadline) -> Iterator[tuple[int, int]]:
    """Bytes read and bytes in all, as a load goes on."""
    while (event := stream.next_by(deadline)) is not None:
        if event.type != SNAPSHOT:
            total = event.data.get("total_bytes", 0)
            if total and event.data.get("path") == path:
                yield event.data.get("read_bytes", 0), total
            continue
        for model in event.data["models"]:
            if model["path"] == path and model["state"] == "loading":
                yield model["loaded_bytes"], model["payload_bytes"]


def absolute(path: ModelOrPath) -> str:
    text: Any = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise InvalidArgumentError(f"{path!r} is not the path of a file")
    try:
        # "link/.." is the folder above what the link leads to: only the file system knows which.
        return os.path.realpath(text) if ".." in text.split(os.sep) else os.path.abspath(text)
    except FileNotFoundError:
        raise NotFoundError(f"{text!r}: the working directory is gone") from None


def _name_or_path(model: ModelOrPath) -> tuple[str, bool]:
    """A name as it is ("org/model" too), or the absolute form of a path, as python.md says."""
    text = os.fspath(model)
    if not text:
        raise InvalidArgumentError("an empty string names no model")
    suffix, slash = text.endswith(SUFFIXES), os.sep in text
    is_path = not isinstance(model, str) or text.startswith(("/", "./", "../"))
    if is_path or (suffix and slash) or ((suffix or slash) and os.path.isfile(text)):
        return absolute(text), True
    return text, False
