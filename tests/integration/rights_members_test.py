"""Members of the group: what they may, what they may not, and whose a model stays."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip_in_payload
from support.listener import listening
from support.users import ALICE, BOB, GROUP, ROOT, Caller, User, as_user, code_of_load, needs_root

pytestmark = needs_root


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where everybody may look."""
    made = Path(tempfile.mkdtemp(prefix="mb-open-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def broker(folder: Path) -> Iterator[BrokerProcess]:
    started = BrokerProcess("--group", str(GROUP), "--model-folders", str(folder / "models"))
    started.folder.chmod(0o755)
    (folder / "models").mkdir(mode=0o755)
    yield started.start()
    started.stop()


def made(path: Path, user: User, mode: int, seed: int = 0) -> Path:
    files.write_random(path, 0.1, seed)
    os.chown(path, user.uid, user.gid)
    path.chmod(mode)
    return path


def load(broker: BrokerProcess, user: User, path: Path, name: str = "", **data: object) -> str:
    def loads() -> str:
        with Caller(broker) as caller:
            return code_of_load(caller.load(path, name=name, **data))

    return as_user(user, loads)


def code(broker: BrokerProcess, user: User, type_: str, **data: object) -> str:
    def asks() -> str:
        with Caller(broker) as caller:
            return caller.code(type_, **data)

    return as_user(user, asks)


def modes(broker: BrokerProcess) -> set[tuple[int, int]]:
    """Mode and group of every block."""
    found = [path.stat() for path in broker.blocks()]
    return {(stat.S_IMODE(one.st_mode), one.st_gid) for one in found}


def test_sockets_folder_and_blocks_are_the_groups(broker: BrokerProcess, folder: Path) -> None:
    assert load(broker, ALICE, made(folder / "m.safetensors", ALICE, 0o644)) == ""
    run = broker.run.stat()
    assert (stat.S_IMODE(run.st_mode), run.st_gid) == (0o750, GROUP)
    for name in ("broker.sock", "events.sock", "fds.sock"):
        found = (broker.run / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, GROUP), name
    for name in ("lock", "state.db", "state.db-wal"):
        assert stat.S_IMODE((broker.run / name).stat().st_mode) & 0o077 == 0, name
    assert modes(broker) == {(0o440, GROUP)}


EVERYBODYS: dict[str, dict[str, Any]] = {
    "session.hello": {},
    "session.ping": {},
    "model.list": {},
    "model.get": {"model": "m"},
    "model.get_model_info": {},
    "cache.status": {},
    "events.snapshot": {},
    "model.attach": {"model": "m"},
    "model.detach": {"lease": 1},
    "lease.restate": {"leases": []},
    "session.bye": {},
}
LOADERS: dict[str, dict[str, Any]] = {
    "model.pin": {"model": "m"},
    "model.unpin": {"model": "m"},
    "model.unload_model": {"model": "m"},
}


@pytest.mark.parametrize("plain", [False, True], ids=["session", "ZeroMQ-only"])
@pytest.mark.parametrize(
    ("user", "may"), [(ALICE, True), (BOB, False), (ROOT, True)], ids=["loader", "member", "root"]
)
def test_every_request(
    broker: BrokerProcess, folder: Path, user: User, may: bool, plain: bool
) -> None:
    assert load(broker, ALICE, made(folder / "m.safetensors", ALICE, 0o644)) == ""

    def asks() -> dict[str, str]:
        codes = {}
        with Caller(broker, plain) as caller:
            for type_, data in LOADERS.items():
                codes[type_] = caller.code(type_, **data)
        for type_, data in EVERYBODYS.items():
            with Caller(broker, plain) as caller:
                codes[type_] = caller.code(type_, **data)
        return codes

    codes = as_user(user, asks)
    expected = dict.fromkeys(EVERYBODYS, "") | dict.fromkeys(
        LOADERS, "" if may else "permission_denied"
    )
    if may:  # it has been unloaded by then
        expected |= {"model.get": "not_found", "model.attach": "not_found"}
    assert codes == expected


def test_a_name_is_its_givers_and_survives_a_restart(broker: BrokerProcess, folder: Path) -> None:
    path = made(folder / "m.safetensors", ROOT, 0o644)
    assert load(broker, ALICE, path, "hers") == ""
    assert load(broker, BOB, path, "his") == ""
    for restarted in (False, True):
        if restarted:
            broker.kill()
            broker.start()
        assert code(broker, BOB, "model.unload_model", model="hers") == "permission_denied"
        assert code(broker, ALICE, "model.unload_model", model="his") == "permission_denied"
        # The path stands for both names.
        assert load(broker, BOB, path, keep_alive=0.0) == ""  # one of its names is his
    assert code(broker, BOB, "model.unload_model", model="his") == ""
    assert code(broker, BOB, "model.pin", model="hers") == "permission_denied"
    assert load(broker, BOB, path, pin=True) == "permission_denied"
    assert load(broker, BOB, path, keep_alive=0.0) == "permission_denied"
    assert code(broker, ALICE, "model.unload_model", model="hers") == ""


def test_a_members_path_is_only_a_label(broker: BrokerProcess, folder: Path) -> None:
    """Bob's file under the name and path of Alice's takes neither from her, nor from root."""
    good = made(folder / "good.safetensors", ALICE, 0o644, seed=1)
    evil = made(folder / "evil.safetensors", BOB, 0o644, seed=2)
    assert load(broker, ALICE, good) == ""

    def lies() -> list[str]:
        with Caller(broker) as caller:
            tries = [{}, {"name": "good"}, {"name": "mine"}]
            return [code_of_load(caller.load(evil, label=good, **more)) for more in tries]

    assert as_user(BOB, lies) == ["already_exists", "already_exists", ""]

    def block_of(user: User, word: str) -> str:
        def looks() -> str:
            with Caller(broker) as caller:
                return str(caller.ok("model.get", model=word)["model"]["block"])

        return as_user(user, looks)

    hers = block_of(ALICE, "good")
    assert block_of(ROOT, "good") == hers
    assert {model["path"] for model in broker.cli_json("ls")} == {str(good)}  # as each said
    for user in (ALICE, BOB, ROOT):
        for type_ in ("model.get", "model.unload_model"):
            assert code(broker, user, type_, model=str(good)) == "not_found"

    # Who may read the file finds its block by the file.
    def attaches() -> str:
        with Caller(broker) as caller:
            data = {"model": str(good), "file": caller.offer(good)}
            return str(caller.ok("model.attach", **data)["blocks"][0]["block"])

    assert as_user(ALICE, attaches) == hers
    assert load(broker, ROOT, good, "roots") == ""  # which also tells where it lies
    assert block_of(BOB, str(good)) == hers


def test_a_new_generation_of_a_labelled_file_has_its_name(
    broker: BrokerProcess, folder: Path
) -> None:
    path = made(folder / "m.safetensors", ALICE, 0o644, seed=1)
    assert load(broker, ALICE, path) == ""
    made(folder / "m.safetensors", ALICE, 0o644, seed=2)
    assert load(broker, BOB, path) == "already_exists"
    assert load(broker, ALICE, path) == ""
    with broker.connect() as client, client.attach("m") as weights:
        assert weights.metadata["seed"] == "2"
        assert [model.name for model in client.list()] == ["m"]


# ---- what the group cannot read


def private_file(folder: Path, how: str) -> Path:
    if how == "closed folder":
        (folder / "hers").mkdir(mode=0o700)
        os.chown(folder / "hers", ALICE.uid, ALICE.gid)
        return made(folder / "hers" / "p.safetensors", ALICE, 0o644)
    path = made(folder / "p.safetensors", ALICE, 0o600 if how == "0600" else 0o604)
    if how == "the group's own bits":
        os.chown(path, ALICE.uid, GROUP)
    return path


@pytest.mark.parametrize("how", ["0600", "closed folder", "the group's own bits"])
@pytest.mark.parametrize("loader", [ALICE, ROOT], ids=["its user", "root"])
def test_what_the_group_cannot_read_is_its_users_alone(
    broker: BrokerProcess, folder: Path, how: str, loader: User
) -> None:
    path = private_file(folder, how)
    assert load(broker, loader, path, "p") == ""
    assert {mode for mode, _ in modes(broker)} == {0o400}

    def attaches() -> bytes:
        with Caller(broker) as caller:
            return caller.read_block(caller.ok("model.attach", model="p"))

    for user in (ALICE, ROOT):
        assert as_user(user, attaches) == b"MBROKER1"
    for restarted in (False, True):
        if restarted:
            broker.kill()
            broker.start()
            assert as_user(ALICE, attaches) == b"MBROKER1"
        (block,) = [block["block"] for block in broker.cli_json("ps")]

        def pries(block: str = block) -> dict[str, object]:
            with Caller(broker) as caller:
                held = {"lease": 7, "model": "p", "blocks": [block]}
                return {
                    "by name": caller.code("model.attach", model="p"),
                    "by path": caller.code("model.attach", model=str(path), load=False),
                    "get by path": caller.code("model.get", model=str(path)),
                    "restated": caller.ok("lease.restate", leases=[held])["restated"],
                    "path": caller.ok("model.get", model="p")["model"]["path"],
                    "info": caller.ok("model.get_model_info")["loaded_models"]["p"]["path"],
                    "list": [one["path"] for one in caller.ok("model.list")["models"]],
                    "snapshot": [one["path"] for one in caller.ok("events.snapshot")["models"]],
                    "unload": caller.code("model.unload_model", model="p"),
                }

        assert as_user(BOB, pries) == {
            "by name": "permission_denied",
            "by path": "not_found",
            "get by path": "not_found",
            "restated": [],
            "path": "",
            "info": "",
            "list": [""],
            "snapshot": [""],
            "unload": "permission_denied",
        }
    # A descriptor that Bob was given does not make it his.
    held = os.open(path, os.O_RDONLY)

    def uses_what_he_was_given() -> list[str]:
        with Caller(broker) as caller:
            path, file = "/b/p.safetensors", caller.offer_descriptor(held)
            loads = caller.code("model.load_model", path=path, file=file, name="b")
            file = caller.offer_descriptor(held)
            return [loads, caller.code("model.attach", model=path, file=file, load=False)]

    assert as_user(BOB, uses_what_he_was_given) == ["permission_denied"] * 2
    os.close(held)


def test_a_failed_load_of_a_private_file_tells_nobody_where_it_lies(
    broker: BrokerProcess, folder: Path
) -> None:
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    os.chown(hidden, ALICE.uid, ALICE.gid)
    for mode, shown in ((0o600, False), (0o644, True)):
        path = (hidden if mode == 0o600 else folder) / f"{mode:o}.safetensors"
        path.write_bytes(os.urandom(10_000))
        os.chown(path, ALICE.uid, ALICE.gid)
        path.chmod(mode)
        with listening(broker) as ear:
            refusal = load(broker, ALICE, path)
            assert refusal != ""
            data = ear.until("model.load_failed")["data"]
        assert data["reason"].split(":")[0] == refusal
        assert (data.get("path") == str(path)) == shown
        assert (str(path) in data["reason"]) == shown
        assert ("hidden" in str(data)) == (not shown and "hidden" in data["model"])


def test_a_damaged_private_model_tells_nobody_where_its_file_was(
    broker: BrokerProcess, folder: Path
) -> None:
    path = made(folder / "secret.safetensors", ROOT, 0o600)
    broker.cli("load", path, "--name", "m")
    (block,) = broker.blocks()
    flip_in_payload(block, 0)
    with listening(broker) as ear:
        broker.cli("scrub", check=False)
        data = ear.until("model.damaged")["data"]
    assert "path" not in data
    assert "secret" not in str(data)


def test_a_file_that_is_opened_to_the_group_or_closed_takes_its_block_along(
    broker: BrokerProcess, folder: Path
) -> None:
    path = made(folder / "m.safetensors", ALICE, 0o600)
    for mode, expected in ((0o600, 0o400), (0o644, 0o440), (0o600, 0o400)):
        path.chmod(mode)
        assert load(broker, ALICE, path) == ""
        assert {mode for mode, _ in modes(broker)} == {expected}
        assert (code(broker, BOB, "model.attach", model="m") == "") == (expected == 0o440)


def test_blocks_of_another_group_are_taken_from_it_at_a_start(
    broker: BrokerProcess, folder: Path
) -> None:
    assert load(broker, ALICE, made(folder / "m.safetensors", ALICE, 0o644)) == ""
    assert modes(broker) == {(0o440, GROUP)}
    broker.kill()
    broker.flags = ()
    broker.start()
    assert {mode for mode, _ in modes(broker)} == {0o400}
    assert stat.S_IMODE((broker.run / "broker.sock").stat().st_mode) == 0o600


def test_a_member_who_floods_keeps_nobody_else_out(broker: BrokerProcess, folder: Path) -> None:
    """More connections than a member's share, held open: root and Bob still get in."""
    assert load(broker, ROOT, made(folder / "m.safetensors", ROOT, 0o644)) == ""
    broker.kill()
    command = BrokerProcess.serve_command(broker)
    broker.serve_command = lambda: ["sh", "-c", 'ulimit -n 256; exec "$0" "$@"', *command]  # type: ignore[method-assign]
    broker.start()
    go, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups(ALICE.groups)
        os.setresgid(*(ALICE.gid,) * 3)
        os.setresuid(*(ALICE.uid,) * 3)
        with ExitStack() as stack:
            for _ in range(400):
                one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                with suppress(OSError):
                    one.connect(str(broker.run / "fds.sock"))
            os.write(told[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(told[0], 1)
        for user in (ROOT, BOB):
            assert code(broker, user, "model.attach", model="m") == "", user
        assert "too many" in broker.output()
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in (*go, *told):
            os.close(end)
    wait_until(lambda: load(broker, ALICE, folder / "m.safetensors") == "")
