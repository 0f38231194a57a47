"""`modelbroker doctor` on this machine, and on machines made worse."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.broker import BINARY, BrokerProcess
from support.features import FEATURES
from support.small_tmpfs import with_folder, with_tmpfs

OK, INVALID, PROBLEM = 0, 10, 13
OTHERS = [
    "program",
    "kernel",
    "descriptors",
    "locked_memory",
    "file_size",
    "inotify",
    "pid_namespace",
    "remove_ipc",
    "run_directory",
    "ram_directory",
    "ram_directory_size",
    "huge_pages",
    "memory",
    "cgroup_memory",
    "swap",
    "broker",
]

MakeBroker = Callable[..., BrokerProcess]
Checks = dict[str, dict[str, str]]


def examine(
    broker: BrokerProcess, *flags: str, wrapped: Callable[[list[str]], list[str]] | None = None
) -> tuple[int, Checks]:
    command = [BINARY, "doctor", "--json", "--run-directory", str(broker.run), *flags]
    done = subprocess.run(
        wrapped(command) if wrapped else command,
        env=broker.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    verdicts = [check["verdict"] for check in told["checks"]]
    assert set(verdicts) <= {"ok", "note", "problem"}
    assert verdicts.count("problem") == told["problems"]
    assert done.returncode == (PROBLEM if told["problems"] else OK)
    for check in told["checks"]:
        assert check["found"], check
        if check["verdict"] == "problem":
            assert check["cost"], check
            assert check["remedy"], check
    return done.returncode, checks


def test_every_check_says_what_it_found(broker: BrokerProcess) -> None:
    status, checks = examine(broker)
    assert status == OK, checks
    assert checks.keys() == {*FEATURES, *OTHERS}
    assert checks["broker"]["verdict"] == "ok"
    assert broker.instance in checks["broker"]["found"]
    # Two ways to ask for one thing: the broker's own probes and doctor's.
    features = broker.cli_json("status")["features"]
    for name in FEATURES:
        assert (checks[name]["verdict"] == "ok") == features[name], name
    small = broker.cli_json("status")["page_kind"] == "4KiB"
    assert (checks["huge_pages"]["verdict"] == "note") == small


def test_limits_that_cannot_be_read_are_not_known(broker: BrokerProcess, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    _, checks = examine(
        broker, wrapped=lambda command: with_folder(hidden, Path("/sys/fs/cgroup"), command)
    )
    assert checks["cgroup_memory"]["found"].startswith("not known")
    assert checks["cgroup_memory"]["verdict"] == "note"


def test_text_says_the_same_as_json(broker: BrokerProcess) -> None:
    _, checks = examine(broker)
    text = broker.cli("doctor", "--run-directory", broker.run).stdout
    for name, check in checks.items():
        assert any(line.split()[:2] == [check["verdict"], name] for line in text.splitlines()), name


def test_without_a_broker_it_works_and_says_how_to_start_one(make_broker: MakeBroker) -> None:
    status, checks = examine(make_broker())
    assert status == OK
    assert checks["broker"]["verdict"] == "note"
    assert "modelbroker serve" in checks["broker"]["remedy"]


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_missing_is_named_with_its_cost_and_remedy(
    make_broker: MakeBroker, feature: str
) -> None:
    status, checks = examine(make_broker(), "--disable-features", feature)
    assert status == OK
    assert checks[feature]["verdict"] == "note"
    assert checks[feature]["cost"]
    assert checks[feature]["remedy"]
    if feature in ("collapse", "populate_write"):
        assert checks["huge_pages"]["verdict"] == "note"


def test_a_small_tmpfs_is_a_problem_with_advice(make_broker: MakeBroker, tmp_path: Path) -> None:
    folder = tmp_path / "shm"
    folder.mkdir()

    def small(command: list[str]) -> list[str]:
        return with_tmpfs(folder, "64m", command)

    status, checks = examine(make_broker(), "--ram-directory", str(folder), wrapped=small)
    assert status == PROBLEM
    assert checks["ram_directory"]["verdict"] == "ok"
    assert checks["ram_directory_size"]["verdict"] == "problem"
    assert "64.0 MiB" in checks["ram_directory_size"]["found"]
    assert "--shm-size" in checks["ram_directory_size"]["remedy"]
    meant = ["--ram-directory", str(folder), "--ram-budget", "60MiB"]
    status, checks = examine(make_broker(), *meant, wrapped=small)
    assert status == OK, checks


def test_a_full_tmpfs_yields_no_huge_pages_and_no_signal(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    folder = tmp_path / "shm"
    folder.mkdir()

    def full(command: list[str]) -> list[str]:
        fill = 'head -c 999m /dev/zero > "$0/filler" 2>/dev/null; exec "$@"'
        return with_tmpfs(folder, "16m", ["sh", "-c", fill, str(folder), *command])

    _, checks = examine(
        make_broker(), "--ram-directory", str(folder), "--ram-budget", "16MiB", wrapped=full
    )
    assert checks["huge_pages"]["verdict"] == "note"
    assert checks["ram_directory_size"]["verdict"] == "note"


def test_folders_that_cannot_be_are_problems(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    for folder in ("/no/such/folder", "/proc", str(tmp_path)):
        status, checks = examine(broker, "--ram-directory", folder)
        assert (status, checks["ram_directory"]["verdict"]) == (PROBLEM, "problem")
    broker.run.write_text("a file")
    status, checks = examine(broker)
    assert (status, checks["run_directory"]["verdict"]) == (PROBLEM, "problem")


@pytest.mark.parametrize(("limit", "verdict"), [(100, "problem"), (2000, "note"), (4096, "ok")])
def test_few_descriptors_are_told(make_broker: MakeBroker, limit: int, verdict: str) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < limit:
        pytest.skip(f"this machine gives fewer than {limit} descriptors itself")

    def limited(command: list[str]) -> list[str]:
        return ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", *command]

    _, checks = examine(make_broker(), wrapped=limited)
    assert checks["descriptors"]["verdict"] == verdict
    assert str(limit) in checks["descriptors"]["found"]


def test_a_pid_namespace_is_seen_and_what_it_costs(make_broker: MakeBroker) -> None:
    probe = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode != 0:
        probe = [*probe, "--user", "--map-root-user"]
        if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("no pid namespace can be made here, neither as root nor by a user")
    for flags in ([], ["--disable-features", "peer_pidfd"]):
        _, checks = examine(make_broker(), *flags, wrapped=lambda command: [*probe, *command])
        there = checks["peer_pidfd"]["verdict"] == "ok"
        assert not (there and flags)
        assert "container" in checks["pid_namespace"]["found"]
        assert checks["pid_namespace"]["verdict"] == ("ok" if there else "note")


def test_a_configuration_that_is_wrong_is_refused_by_doctor_too(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("[ram]\nbugdet = 1\n")
    done = make_broker().cli("doctor", "--config", tmp_path / "c.toml", check=False)
    assert done.returncode == INVALID
    assert "bugdet" in done.stderr
