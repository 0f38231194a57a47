"""The system's broker for its users: members find and use it, others are told how to join."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BINARY, BrokerProcess, wait_until
from support.users import ALICE, GROUP, STRANGER, User, as_user, needs_root

pytestmark = needs_root

DENIED = 16
SERVICE = User(1600, GROUP)  # as the unit's User= and Group=
UNIT = Path(__file__).parents[2] / "packaging/modelbroker.service.in"


def told(broker: BrokerProcess, user: User) -> set[str]:
    """What this user hears from the command line and from Python."""

    def by_cli() -> tuple[int, str]:
        done = broker.cli("ls", check=False)
        return done.returncode, done.stderr

    def by_python() -> str:
        with pytest.raises(modelbroker.PermissionDeniedError) as caught:
            broker.connect(timeout=0.1)
        return str(caught.value)

    status, text = as_user(user, by_cli)
    assert status == DENIED, text
    return {
        text.removeprefix("modelbroker: permission_denied: ").rstrip(),
        as_user(user, by_python),
    }


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "$USER"


@pytest.fixture
def serving(make_broker: Callable[..., BrokerProcess]) -> Callable[..., BrokerProcess]:
    """A broker whose folder others can see, with these flags."""

    def serve(*flags: str) -> BrokerProcess:
        broker = make_broker(*flags)
        broker.folder.chmod(0o755)
        return broker.start()

    return serve


def test_who_is_not_in_the_group_is_told_how_to_join(
    serving: Callable[..., BrokerProcess],
) -> None:
    nobodys = next(group for group in grp.getgrall() if group.gr_gid > 0 and not group.gr_mem)
    for group, name in ((nobodys.gr_gid, nobodys.gr_name), (GROUP, str(GROUP))):
        broker = serving("--group", str(group))
        for user in (STRANGER, User(1502, 1502)):
            text = (
                f"you may not connect to {broker.run}/fds.sock: a broker there serves user 'root' "
                f"and the members of group '{name}'; join it with 'sudo usermod -aG {name} "
                f"{name_of(user.uid)}', then log in again"
            )
            assert told(broker, user) == {text}


def test_who_joined_after_the_login_is_told_to_log_in_again(
    serving: Callable[..., BrokerProcess],
) -> None:
    user = next(user for user in pwd.getpwall() if user.pw_uid > 0 and user.pw_gid > 0)
    group = grp.getgrgid(user.pw_gid).gr_name
    broker = serving("--group", group)
    (text,) = told(broker, User(user.pw_uid, 1500))
    assert "you became one after this session began" in text
    assert f"'newgrp {group}'" in text


def test_without_a_group_there_is_none_to_join(serving: Callable[..., BrokerProcess]) -> None:
    broker = serving()
    (text,) = told(broker, ALICE)
    assert "a broker there serves user 'root' only" in text
    assert "usermod" not in text
    broker.folder.chmod(0o700)
    (text,) = told(broker, ALICE)
    assert text.endswith("a folder above it is closed to you")


# ---- as systemd runs it, at the place where clients look


@dataclass
class Service:
    """The unit's command in a mount namespace with a /run of its own."""

    pid: int
    folder: Path

    def run(self, user: User, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A modelbroker command of this user, who has set nothing up."""
        return self.run_program(user, BINARY, *arguments)

    def run_program(
        self, user: User, *command: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        groups = ",".join(map(str, user.groups)) or None
        rights = ["--reuid", str(user.uid), "--regid", str(user.gid)]
        rights += ["--groups", groups] if groups else ["--clear-groups"]
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--mount", "setpriv", *rights),
                *command,
            ],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def service() -> Iterator[Service]:
    for tool in ("unshare", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: the unit's command was not run as its user")
    (line,) = re.findall(r"^ExecStart=\S+ (.*)$", UNIT.read_text(), re.MULTILINE)
    assert line == "serve --run-directory %t/modelbroker --group modelbroker --on-stop keep"
    words = line.replace("%t", "/run").replace("--group modelbroker", f"--group {GROUP}").split()
    instance = f"t{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="mb-open-"))
    folder.chmod(0o755)
    uid, gid = str(SERVICE.uid), str(SERVICE.gid)
    prepare = (
        "mount -t tmpfs -o mode=755 tmpfs /run || exit 77;"
        f"install -d -o {uid} -g {gid} -m 0750 /run/modelbroker;"  # RuntimeDirectory=
        'exec setpriv --reuid "$1" --regid "$2" --clear-groups --no-new-privs "${@:3}"'
    )
    command = ["unshare", "--mount", "bash", "-c", prepare, "bash", uid, gid]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, BINARY, *words, "--instance", instance],
            env={"PATH": os.environ["PATH"]},
            stdout=log,
            stderr=log,
        )
    made = Service(process.pid, folder)
    wait_until(lambda: process.poll() is not None or b"serving " in (folder / "log").read_bytes())
    try:
        if process.poll() == 77:
            pytest.skip("no mount namespace with a tmpfs can be made here")
        assert process.poll() is None, (folder / "log").read_text()
        yield made
    finally:
        process.kill()
        process.wait()
        for path in Path("/dev/shm").glob(f"modelbroker.*.{instance}.*"):
            path.unlink()
        shutil.rmtree(folder)


def test_a_member_uses_the_service_without_any_setting(service: Service) -> None:
    path = files.write_random(service.folder / "m.safetensors", 1)
    done = service.run(ALICE, "load", path, "--name", "m")
    assert (done.returncode, done.stderr) == (0, "")
    assert "resident" in service.run(ALICE, "ls").stdout
    (line,) = (
        line
        for line in service.run(ALICE, "doctor").stdout.splitlines()
        if line.split()[1:2] == ["broker"]
    )
    assert line.startswith("ok")
    assert line.endswith("answers at ipc:///run/modelbroker/broker.sock")
    assert service.run(ALICE, "unload", "m").returncode == 0


def test_another_user_is_told_how_to_join_the_service(service: Service) -> None:
    done = service.run(STRANGER, "ls")
    assert done.returncode == DENIED
    assert "'sudo usermod -aG" in done.stderr
    told_by_doctor = service.run(STRANGER, "doctor").stdout
    assert "'sudo usermod -aG" in told_by_doctor


def test_a_member_may_not_stop_it_and_root_may(service: Service) -> None:
    done = service.run(ALICE, "stop")
    assert done.returncode == DENIED
    assert f"only the broker's user (uid {SERVICE.uid}) and root may stop" in done.stderr
    assert service.run(ALICE, "ls").returncode == 0
    assert service.run(User(0, 0), "stop").returncode == 0
    assert not Path(f"/proc/{service.pid}/exe").exists()


def test_a_users_own_broker_that_is_just_starting_is_waited_for(service: Service) -> None:
    """The service's refusal is not the answer as long as that may come."""
    own = service.folder / "own"
    own.mkdir()
    os.chown(own, STRANGER.uid, STRANGER.gid)
    script = (
        '(sleep 0.3; exec "$0" serve --instance "$1" --ram-budget 64MiB 2> /dev/null) &'
        '"$0" ls; status=$?; "$0" stop; exit $status'
    )
    done = service.run_program(
        STRANGER, "sh", "-c", script, BINARY, f"t{os.getpid()}", XDG_RUNTIME_DIR=str(own)
    )
    assert done.returncode == 0, done.stderr
    assert f"stopped the broker at ipc://{own}/modelbroker/broker.sock" in done.stdout
