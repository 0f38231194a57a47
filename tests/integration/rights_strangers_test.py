"""Another user can neither read, write, remove nor take over anything of a broker's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess
from support.users import (
    ALICE,
    GROUP,
    STRANGER,
    Caller,
    User,
    as_user,
    error_of,
    needs_root,
)

pytestmark = needs_root


@pytest.fixture(params=["no group", "group"])
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    flags = ("--group", str(GROUP)) if request.param == "group" else ()
    started = BrokerProcess(*flags)
    started.folder.chmod(0o755)
    started.start()
    path = files.write_random(started.folder / "m.safetensors", 0.1)
    started.cli("load", path)
    yield started
    started.stop()


def has_group(broker: BrokerProcess) -> bool:
    return "--group" in broker.flags


def connects(path: Path, kind: int) -> type[OSError] | None:
    with socket.socket(socket.AF_UNIX, kind) as peer:
        return error_of(lambda: peer.connect(str(path)))


SOCKETS = {
    "broker.sock": socket.SOCK_STREAM,
    "events.sock": socket.SOCK_STREAM,
    "fds.sock": socket.SOCK_SEQPACKET,
}


def test_a_stranger_connects_to_no_socket(broker: BrokerProcess) -> None:
    def tries() -> set[type[OSError] | None]:
        return {connects(broker.run / name, kind) for name, kind in SOCKETS.items()}

    assert as_user(STRANGER, tries) == {PermissionError}
    assert as_user(ALICE, tries) == ({None} if has_group(broker) else {PermissionError})


@pytest.mark.parametrize("sock", SOCKETS)
def test_who_gets_to_a_socket_all_the_same_is_hung_up_on(broker: BrokerProcess, sock: str) -> None:
    """Its mode is opened by hand: then it is the peer's ids that count."""
    broker.run.chmod(0o777)
    (broker.run / sock).chmod(0o777)

    def says() -> bytes:
        with socket.socket(socket.AF_UNIX, SOCKETS[sock]) as peer:
            peer.settimeout(30)
            peer.connect(str(broker.run / sock))
            try:
                return peer.recv(64)
            except ConnectionResetError:
                return b""

    assert as_user(STRANGER, says) == b""
    assert "its user is none of those who are served" in broker.output()


def file_attempts(path: Path) -> dict[str, Callable[[], object]]:
    beside = path.with_name(path.name + ".mine")
    return {
        "read": lambda: path.read_bytes(),
        "write": lambda: os.close(os.open(path, os.O_WRONLY)),
        "truncate": lambda: os.truncate(path, 0),
        "chmod": lambda: path.chmod(0o777),
        "chown": lambda: os.chown(path, STRANGER.uid, STRANGER.gid),
        "unlink": lambda: path.unlink(),
        "rename": lambda: path.rename(beside),
        "link": lambda: os.link(path, beside),
    }


def attempts(paths: list[Path]) -> dict[str, list[type[OSError] | None]]:
    made: dict[str, list[type[OSError] | None]] = {}
    for path in paths:
        for name, attempt in file_attempts(path).items():
            made.setdefault(name, []).append(error_of(attempt))
    return made


def as_it_lies(path: Path) -> tuple[object, ...]:
    """What a change of a file shows by. When it was read is left out: the scrubber reads it too."""
    file = path.stat()
    rights = (file.st_mode, file.st_uid, file.st_gid, file.st_nlink)
    times = (file.st_mtime_ns, file.st_ctime_ns)
    return path, file.st_ino, *rights, file.st_size, *times, path.read_bytes()[:8]


def test_blocks_are_nobodys_to_read_write_or_remove(broker: BrokerProcess) -> None:
    blocks = broker.blocks()
    before = [as_it_lies(path) for path in blocks]
    for user in (STRANGER, ALICE):
        for name, errors in as_user(user, lambda: attempts(blocks)).items():
            reads = name == "read" and user == ALICE and has_group(broker)
            assert set(errors) == {None if reads else PermissionError}, (user, name)
    assert [as_it_lies(path) for path in broker.blocks()] == before


def test_the_run_folder_is_nobodys_to_enter_or_change(broker: BrokerProcess) -> None:
    names = [broker.run / name for name in (*SOCKETS, "lock", "state.db", "state.db-wal")]

    there = sorted(path.name for path in broker.run.iterdir())

    def changes() -> dict[str, set[type[OSError] | None]]:
        made = {name: set(errors) for name, errors in attempts(names).items()}
        made["make"] = {error_of(lambda: (broker.run / "new").write_text(""))}
        made["list"] = {error_of(lambda: os.listdir(broker.run))}
        made["rename the folder"] = {error_of(lambda: broker.run.rename(broker.folder / "x"))}
        with socket.socket(socket.AF_UNIX) as mine:
            made["bind"] = {error_of(lambda: mine.bind(str(broker.run / "broker.sock")))}
        return made

    assert {kind for kinds in as_user(STRANGER, changes).values() for kind in kinds} == {
        PermissionError
    }
    member = as_user(ALICE, changes)
    if has_group(broker):  # may look, and a socket says other things than "permission denied"
        assert member.pop("list") == {None}
    assert None not in {kind for kinds in member.values() for kind in kinds}
    assert sorted(path.name for path in broker.run.iterdir()) == there
    broker.cli("status")


# ---- where a broker refuses to serve


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mb-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def refused(run: Path, *flags: str) -> str:
    """The message of a broker that does not serve there."""
    done = subprocess.run(
        [BINARY, "serve", "--run-directory", str(run), "--instance", "refused", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    Path("/dev/shm/modelbroker.0.refused.lock").unlink(missing_ok=True)
    assert done.returncode not in (0, -signal.SIGABRT), done.stderr
    return done.stderr


def test_a_run_folder_that_others_may_write_to_is_refused(place: Path) -> None:
    for number, mode in enumerate((0o777, 0o770, 0o722, 0o1777)):
        run = place / f"run{number}"
        run.mkdir()
        run.chmod(mode)
        assert "others cannot write to" in refused(run), oct(mode)


def test_a_run_folder_of_another_user_or_a_link_to_one_is_refused(place: Path) -> None:
    run = place / "run"
    run.mkdir(mode=0o755)
    os.chown(run, STRANGER.uid, STRANGER.gid)
    assert "of your own" in refused(run)
    link = place / "link"
    own = place / "own"
    own.mkdir(mode=0o700)
    link.symlink_to(own)
    assert "of your own" in refused(link)
    file = place / "file"
    file.write_text("")
    assert "of your own" in refused(file)


@pytest.mark.parametrize(
    "how", ["everybody writes above", "another's above", "another's link above"]
)
def test_a_run_folder_that_somebody_could_replace_is_refused(place: Path, how: str) -> None:
    above = place / "above"
    above.mkdir()
    match how:
        case "everybody writes above":
            above.chmod(0o777)
        case "another's above":
            os.chown(above, STRANGER.uid, STRANGER.gid)
        case _:
            link = place / "theirs"
            link.symlink_to(above)
            os.chown(link, STRANGER.uid, STRANGER.gid, follow_symlinks=False)
            above = link
    assert "could put another folder" in refused(above / "run")


def test_a_sticky_folder_above_is_no_danger(place: Path) -> None:
    above = place / "above"
    above.mkdir()
    above.chmod(0o1777)
    broker = BrokerProcess()
    broker.run = above / "run"
    broker.environment["MODELBROKER_ENDPOINT"] = broker.endpoint
    try:
        broker.start()
        mine = above / "x"
        assert as_user(STRANGER, lambda: error_of(lambda: broker.run.rename(mine))) is not None
    finally:
        broker.stop()


def test_a_ram_folder_where_others_may_remove_is_refused(place: Path) -> None:
    ram = place / "ram"
    ram.mkdir()
    ram.chmod(0o777)
    flags = ("--ram-directory", str(ram), "--any-file-system")
    assert "others may remove" in refused(place / "run", *flags)
    ram.chmod(0o1777)
    lock = ram / "modelbroker.0.refused.lock"
    as_user(STRANGER, lambda: lock.write_text(""))
    assert "not a regular file of ours" in refused(place / "run", *flags)


def test_a_group_that_does_not_exist_is_refused(place: Path) -> None:
    assert "there is no group 'nobodys-group'" in refused(place / "run", "--group", "nobodys-group")


# ---- a broker that is not root's


def test_a_user_serves_its_group_and_root(place: Path) -> None:
    """Its own uid may do everything, and so may root; a stranger comes nowhere near."""
    binary = place / "modelbroker"
    shutil.copy(BINARY, binary)
    run, owner = place / "home" / "run", User(1600, 1600, (GROUP,))
    run.parent.mkdir(mode=0o755)
    os.chown(run.parent, owner.uid, owner.gid)
    broker = BrokerProcess("--group", str(GROUP))
    broker.folder.chmod(0o777)
    broker.run = run
    plain = broker.serve_command()
    ids = f"--reuid={owner.uid} --regid={owner.gid} --groups={GROUP}".split()
    broker.serve_command = lambda: ["setpriv", *ids, str(binary), *plain[1:]]  # type: ignore[method-assign]
    try:
        broker.start()
        path = files.write_random(place / "m.safetensors", 0.1)
        path.chmod(0o644)

        def loads() -> str:
            with Caller(broker) as caller:
                assert caller.load(path)["success"]
                return str(caller.ok("model.attach", model="m")["blocks"][0]["path"])

        block = Path(as_user(ALICE, loads))
        assert (block.stat().st_uid, stat.S_IMODE(block.stat().st_mode)) == (owner.uid, 0o440)
        assert as_user(STRANGER, lambda: connects(run / "fds.sock", socket.SOCK_SEQPACKET)) is (
            PermissionError
        )

        def unloads() -> str:
            with Caller(broker) as caller:
                return caller.code("model.unload_model", model="m")

        assert as_user(owner, unloads) == ""
        assert as_user(ALICE, loads)
        with Caller(broker) as root:
            assert root.code("model.unload_model", model="m") == ""
    finally:
        if broker.process is not None:
            broker.terminate()
        for left in Path("/dev/shm").glob(f"modelbroker.{owner.uid}.{broker.instance}.*"):
            left.unlink()
        broker.stop()
