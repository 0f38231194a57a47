"""Where a broker's sockets are: docs/protocol.md's first table."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass

from ._errors import InvalidArgumentError

_SCHEME = "ipc://"
_SOCKET = "/broker.sock"
_LONGEST_SOCKET_PATH = 107  # sun_path, less its NUL
_SYSTEM_RUN_DIRECTORY = "/run/modelbroker"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The sockets of one broker. `owned` says that only we or root may have made them."""

    run_directory: str
    owned: bool = False

    @property
    def broker(self) -> str:
        """The ZeroMQ endpoint."""
        return f"{_SCHEME}{self.run_directory}{_SOCKET}"

    @property
    def fds(self) -> str:
        """The path of the socket for sessions and descriptors."""
        return f"{self.run_directory}/fds.sock"

    def refusal(self) -> str | None:
        """Why this user may not connect, and what to do about it; None if nothing forbids it."""
        for _ in range(2):  # a starting broker may replace the socket between the two calls
            try:
                os.stat(self.fds)
                if os.access(self.fds, os.W_OK, effective_ids=True):
                    return None
            except PermissionError:
                pass
            except OSError:
                return None
        return f"you may not connect to {self.fds}: {_whom_it_serves(self.run_directory)}"

    @property
    def events(self) -> str:
        """The ZeroMQ endpoint of what is published."""
        return f"{_SCHEME}{self.run_directory}/events.sock"


def _user(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _group_name(gid: int) -> str:
    """The group's number, where it has no name: usermod takes that too."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _whom_it_serves(run_directory: str) -> str:
    """Of a broker that does not serve us, with the cure. As cpp_client/refused.cc has it."""
    try:
        found = os.stat(run_directory)
    except OSError:
        return "a folder above it is closed to you"
    owner, user = _user(found.st_uid), _user(os.geteuid())
    whom = f"user {owner.pw_name!r}" if owner else f"uid {found.st_uid}"
    serves = f"a broker there serves {whom}"
    if not found.st_mode & stat.S_IXGRP:
        return (
            f"{serves} only: run your own with 'modelbroker serve', "
            "or have that one started with --group"
        )
    group = _group_name(found.st_gid)
    serves = f"{serves} and the members of group {group!r}"
    if user and found.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return (
            f"{serves}; you became one after this session began: "
            f"log in again, or run 'newgrp {group}'"
        )
    name = user.pw_name if user else "$USER"
    return f"{serves}; join it with 'sudo usermod -aG {group} {name}', then log in again"


def _checked(run_directory: str, owned: bool = False) -> Endpoint:
    if not run_directory.startswith("/"):
        raise InvalidArgumentError(f"the run directory {run_directory!r} must be an absolute path")
    length = len(os.fsencode(run_directory + _SOCKET))
    if length > _LONGEST_SOCKET_PATH:
        raise InvalidArgumentError(
            f"the socket path {run_directory + _SOCKET!r} has {length} bytes; the kernel allows "
            f"{_LONGEST_SOCKET_PATH}: choose a shorter run directory"
        )
    return Endpoint(run_directory, owned)


def parse(text: str) -> Endpoint:
    """From "ipc:///<run>/broker.sock"."""
    inside = text[len(_SCHEME) : -len(_SOCKET)]
    if not (text.startswith(_SCHEME) and text.endswith(_SOCKET) and inside):
        raise InvalidArgumentError(
            f"the endpoint {text!r} must have the form ipc:///<run directory>/broker.sock"
        )
    return _checked(inside)


def default_run_directory() -> str:
    """Where this user's `modelbroker serve` puts its sockets."""
    if os.geteuid() == 0:
        return _SYSTEM_RUN_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/modelbroker" if runtime else f"/tmp/modelbroker-{os.geteuid()}"


def endpoints_to_try(explicit: str | None) -> list[Endpoint]:
    """The given endpoint or MODELBROKER_ENDPOINT alone; else the user's own, then the system's."""
    chosen = explicit or os.environ.get("MODELBROKER_ENDPOINT")
    if chosen:
        return [parse(chosen)]
    own = default_run_directory()
    # Anybody may make a folder in /tmp: there the peer's uid must be ours or root's.
    endpoints = [_checked(own, owned=own.startswith("/tmp/"))]
    if own != _SYSTEM_RUN_DIRECTORY:
        endpoints.append(Endpoint(_SYSTEM_RUN_DIRECTORY))
    return endpoints
