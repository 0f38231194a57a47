"""`serve` and `clean`: who may run beside whom, and what a stop, a kill and a sweep leave."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess, wait_until
from support.workers import HOLDER, assert_right_bytes, crcs, workers

USAGE, INVALID, PRECONDITION = 2, 10, 13

MakeBroker = Callable[..., BrokerProcess]


def refused(broker: BrokerProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    """A `serve` that must end by itself with a typed error."""
    done = subprocess.run(
        [*broker.serve_command(), *flags],
        env=broker.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == USAGE or 10 <= done.returncode < 22, done.stderr
    assert "modelbroker: " in done.stderr or "--help" in done.stderr
    assert done.stdout == ""
    return done


def model(broker: BrokerProcess, folder: Path, name: str = "m") -> Path:
    path = files.write_random(folder / f"{name}.safetensors", 5)
    broker.cli("load", path)
    return path


def neighbour(make_broker: MakeBroker, broker: BrokerProcess, share: str) -> BrokerProcess:
    """Another broker that has the same instance, or the same run directory."""
    other = make_broker()
    if share == "instance":
        other.instance = broker.instance
    else:
        other.run = broker.run
    return other


# ---- values


WRONG_FLAGS: dict[str, list[str]] = {
    "--ram-budget": ["", "x", "-1", "1XB", "1e400GiB", "9999999999TiB", "GiB", "nan"],
    "--grace": ["0", "-1", "1e9", "nan", "inf"],
    "--hung": ["0", "inf"],
}


@pytest.mark.parametrize("flag", WRONG_FLAGS)
def test_serve_refuses_flags_that_cannot_be(make_broker: MakeBroker, flag: str) -> None:
    for value in WRONG_FLAGS[flag]:
        refused(make_broker(), f"{flag}={value}")


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "a.b", "a" * 33, "../x", "a b", "é"])
def test_serve_refuses_an_instance_that_is_no_word(make_broker: MakeBroker, name: str) -> None:
    broker = make_broker()
    broker.instance, own = name, broker.instance
    done = refused(broker)
    broker.instance = own  # by which what is left is found at the end
    assert done.returncode == INVALID, done.stderr
    assert not broker.run.exists() or not (broker.run / "fds.sock").exists()


@pytest.mark.parametrize("run", ["/no/such/parent/run", "/tmp/" + "long" * 30])
def test_serve_refuses_a_run_directory_that_cannot_be(make_broker: MakeBroker, run: str) -> None:
    broker = make_broker()
    broker.run = Path(run)
    assert run.split("/")[-1][:40] in refused(broker).stderr


@pytest.mark.parametrize("kind", ["file", "others may write", "link"])
def test_serve_refuses_a_run_directory_that_is_not_its_own(
    make_broker: MakeBroker, kind: str
) -> None:
    broker = make_broker()
    if kind == "file":
        broker.run.touch()
    elif kind == "link":
        (broker.folder / "real").mkdir()
        broker.run.symlink_to("real")
    else:
        broker.run.mkdir()
        broker.run.chmod(0o777)
    assert str(broker.run) in refused(broker).stderr


@pytest.mark.parametrize("ram", ["/no/such/folder", "/etc/passwd", "/proc"])
def test_serve_refuses_a_ram_directory_that_cannot_be(make_broker: MakeBroker, ram: str) -> None:
    broker = make_broker()
    broker.ram = Path(ram)
    assert ram in refused(broker).stderr


def test_serve_wants_a_tmpfs_unless_told_otherwise(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker()
    broker.ram = tmp_path
    assert "--any-file-system" in refused(broker).stderr
    broker.start("--any-file-system")
    path = model(broker, tmp_path)
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    assert broker.terminate() == 0
    assert broker.blocks() == []


# ---- two brokers


@pytest.mark.parametrize("share", ["instance", "run directory"])
def test_a_second_broker_of_one_place_is_refused_and_harms_nothing(
    broker: BrokerProcess, make_broker: MakeBroker, tmp_path: Path, share: str
) -> None:
    path = model(broker, tmp_path)
    other = neighbour(make_broker, broker, share)
    with workers(broker, 1, HOLDER, "m"):
        for _ in range(5):
            done = refused(other)
            assert done.returncode == PRECONDITION
            assert "another broker" in done.stderr
            assert "--instance" in done.stderr
        assert broker.books()["leases"] == 1
        with broker.connect() as client:
            assert_right_bytes(client, "m", crcs(path))
    broker.kill()
    if share == "instance":
        other.start()  # takes the blocks over, from another run directory
        assert [one["name"] for one in other.cli_json("ps")] == ["m"]
        other.cli("unload", "m", "--wait")


def test_two_instances_share_one_ram_directory(make_broker: MakeBroker, tmp_path: Path) -> None:
    first, second = make_broker().start(), make_broker().start()
    path = model(first, tmp_path)
    second.cli("load", path)
    first.cli("unload", "m", "--wait")
    assert first.is_empty()
    with second.connect() as client:
        assert_right_bytes(client, "m", crcs(path))


# ---- ends


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("on_stop", ["free", "keep", None])
def test_a_clean_stop_frees_or_keeps_as_told(
    make_broker: MakeBroker, tmp_path: Path, how: signal.Signals, on_stop: str | None
) -> None:
    flags = ["--on-stop", on_stop] if on_stop else []
    broker = make_broker(*flags).start()
    path = model(broker, tmp_path)
    before = broker.cli_json("ps")
    assert broker.process is not None
    broker.process.send_signal(how)
    assert broker.process.wait(60) == 0, broker.output()
    assert not (broker.run / "broker.sock").exists()
    assert not (broker.run / "fds.sock").exists()
    assert len(broker.blocks()) == (1 if on_stop == "keep" else 0)
    path.unlink()
    broker.start()
    assert broker.cli_json("ps") == (before if on_stop == "keep" else [])
    assert broker.bytes_in_ram() == broker.books()["made"]


def test_a_clean_stop_in_the_middle_of_a_load_leaves_nothing(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "large.safetensors", 300)
    command = [broker.serve_command()[0], "load", str(path)]
    loading = subprocess.Popen(
        command, env=broker.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: broker.blocks() or loading.poll() is not None)
    assert broker.terminate() == 0, broker.output()
    _, err = loading.communicate(timeout=60)
    assert loading.returncode in (0, 10 + 8, 10 + 10), err  # done, unavailable, cancelled
    assert broker.blocks() == []


def test_workers_keep_their_weights_after_a_clean_stop(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = model(broker, tmp_path)
    with broker.connect() as client:
        weights = client.attach("m")
        expected = {name: weights.raw(name).tobytes() for name in weights}
        assert broker.terminate() == 0
        assert broker.blocks() == []
        assert path.read_bytes().endswith(b"".join(expected.values()))
        assert {name: weights.raw(name).tobytes() for name in weights} == expected
        weights.release()


def test_the_sockets_of_a_killed_broker_are_taken_over_and_its_blocks_adopted(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = model(broker, tmp_path)
    before = broker.cli_json("ps")
    for _ in range(3):
        broker.kill()
        assert (broker.run / "broker.sock").exists()
        assert (broker.run / "fds.sock").exists()
        broker.start()
        assert broker.cli_json("ps") == before
        with broker.connect() as client:
            assert_right_bytes(client, "m", crcs(path))
            assert client.load(path).outcome == "resident"


# ---- clean


def test_clean_refuses_while_a_broker_runs_and_frees_when_none_does(
    broker: BrokerProcess, make_broker: MakeBroker, tmp_path: Path
) -> None:
    path = model(broker, tmp_path)
    neighbours = make_broker().start()
    neighbours.cli("load", path)
    size = broker.bytes_in_ram()
    arguments = ["clean", "--ram-directory", str(broker.ram), "--instance", broker.instance]
    done = broker.cli(*arguments, check=False)
    assert done.returncode == PRECONDITION
    assert "another broker" in done.stderr
    assert broker.bytes_in_ram() == size
    broker.kill()
    assert json.loads(broker.cli(*arguments, "--json").stdout) == {
        "blocks": 1,
        "bytes": size,
        "left_alone": [],
    }
    assert broker.blocks() == []
    assert "removed 0 blocks" in broker.cli(*arguments).stdout
    assert len(neighbours.blocks()) == 1
    broker.start()
    assert broker.cli_json("ps") == []
    assert broker.cli_json("load", path)["outcome"] == "loaded"


def test_clean_leaves_what_is_not_safe_to_touch(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker().start()
    model(broker, tmp_path)
    (block,) = broker.blocks()
    broker.kill()
    block.with_name(block.name.rsplit(".", 1)[0] + ".g7").symlink_to("/etc/passwd")
    stranger = broker.ram / f"modelbroker.0.{broker.instance}.notes"
    stranger.write_text("keep")
    done = broker.cli("clean", "--instance", broker.instance, "--json")
    told = json.loads(done.stdout)
    assert told["blocks"] == 1
    assert [Path(name).suffix for name in told["left_alone"]] == [".g7"]
    assert stranger.read_text() == "keep"
    assert Path("/etc/passwd").exists()
    stranger.unlink()


@pytest.mark.parametrize("wrong", [["--instance", "A/B"], ["--ram-directory", "/no/such"]])
def test_clean_refuses_what_cannot_be(make_broker: MakeBroker, wrong: list[str]) -> None:
    done = make_broker().cli("clean", *wrong, check=False)
    assert 10 <= done.returncode < 22
    assert done.stderr.startswith("modelbroker: ")


def test_a_misspelt_feature_to_disable_is_refused(
    make_broker: Callable[..., BrokerProcess],
) -> None:
    broker = make_broker()
    done = broker.cli(*broker.serve_command()[1:], "--disable-features=colapse", check=False)
    assert done.returncode == 10
    assert "'colapse' is none of all, collapse," in done.stderr


def test_relative_folders_are_told_to_clients_as_absolute_ones(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    command = [broker.serve_command()[0], "serve", "--instance", broker.instance]
    command += ["--run-directory", "run", "--ram-directory", "ram", "--any-file-system"]
    (broker.folder / "ram").mkdir()
    broker.process = subprocess.Popen(command, cwd=broker.folder, stderr=subprocess.DEVNULL)
    path = files.write_random(tmp_path / "m.safetensors", 1)
    broker.cli("load", path)
    assert broker.cli_json("status")["ram_directory"] == str(broker.folder / "ram")
    with broker.connect() as client, client.attach("m") as weights:
        assert weights.raw("t0").any()
        assert client.list()[0].block_path.startswith(str(broker.folder))
