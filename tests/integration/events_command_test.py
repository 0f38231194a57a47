"""`modelbroker events`, and the progress of `modelbroker load` on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from support import files
from support.broker import BINARY, BrokerProcess, running, wait_until
from support.listener import let_it_read_for_a_while, sparse_model

USAGE = 2
INVALID_ARGUMENT, UNAVAILABLE, CANCELLED = 10, 18, 20
BIG = 1024  # MB: still being read when the broker is stopped for a moment


def command(
    broker: BrokerProcess, *arguments: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    return running(broker, "events", *arguments)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def event_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(line_of(process))
    return event


def test_lines_of_json_are_the_events_as_they_are_on_the_wire(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 2)
    with command(broker, "--json", "--types", "model.*") as process:
        first = event_of(process)
        assert set(first) == {"boot_id", "seq", "type", "time", "data"}
        assert first["type"] == "snapshot"
        assert first["data"]["reason"] == "start"
        assert first["data"]["models"] == first["data"]["draining"] == []
        assert first["data"]["tiers"]["ram"]["made"] == 0
        loaded = broker.cli_json("load", path)
        broker.cli("unload", "m", "--wait")
        told: list[dict[str, Any]] = []
        while not told or told[-1]["type"] != "model.freed":
            told.append(event_of(process))
    kinds = [event["type"] for event in told if event["type"] != "model.progress"]
    assert kinds == ["model.loading", "model.loaded", "model.unloaded", "model.freed"]
    by_type = {event["type"]: event for event in told}
    assert by_type["model.loaded"]["data"] == {
        "model": "m",
        "path": str(path),
        "block": loaded["block"],
        "generation": loaded["generation"],
        "bytes": loaded["bytes"],
        "blocks": loaded["blocks"],
    }
    for event in told:
        assert set(event) == {"boot_id", "seq", "type", "time", "data"}
        assert event["boot_id"] == first["boot_id"]
        assert event["seq"] > first["seq"]


def test_lines_of_text_name_the_type_the_model_and_the_rest(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with command(broker) as process:
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  snapshot  boot_id=[0-9a-f]{32}  seq=\d+  "
            r"models=0  draining=0  ram=0 B of .*  leases=0",
            line_of(process),
        )
        loaded = broker.cli_json("load", path)
        line = ""
        while "model.loaded" not in line:
            line = line_of(process)
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  model\.loaded  m  ", line)
        for part in (f"block={loaded['block']}", f"path={path}", "bytes=8.0 MiB"):
            assert part in line, line


def test_only_the_types_that_are_asked_for_come(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1)
    with command(broker, "--json", "--types", "model.pinned,model.unp*") as process:
        event_of(process)
        broker.cli("load", path)
        for verb in ("pin", "unpin", "pin"):
            broker.cli(verb, "m")
        kinds = [event_of(process)["type"] for _ in range(3)]
    assert kinds == ["model.pinned", "model.unpinned", "model.pinned"]


def test_a_type_that_is_misspelt_is_refused_with_those_that_there_are(
    broker: BrokerProcess,
) -> None:
    refused = broker.cli("events", "--types", "model.lodaed", check=False)
    assert refused.returncode == INVALID_ARGUMENT
    assert "model.lodaed" in refused.stderr
    assert "model.loaded" in refused.stderr
    assert broker.cli("events", "--typos", "model.*", check=False).returncode == USAGE


def test_a_snapshot_alone(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    (line,) = broker.cli("events", "--snapshot", "--json").stdout.splitlines()
    assert [model["name"] for model in json.loads(line)["data"]["models"]] == ["m"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("json_lines", [True, False])
def test_ctrl_c_ends_it_cleanly(
    broker: BrokerProcess, number: signal.Signals, json_lines: bool
) -> None:
    with command(broker, *(["--json"] if json_lines else [])) as process:
        line_of(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out == "" or out.endswith("\n")


@pytest.mark.parametrize("state", ["hung from the start", "hung later"])
def test_ctrl_c_ends_it_cleanly_while_its_broker_hangs(broker: BrokerProcess, state: str) -> None:
    """It waited for an answer first, up to 10 s, and then called that the broker's error."""
    if state == "hung from the start":
        broker.freeze()
    with command(broker) as process:
        if state == "hung later":
            line_of(process)
            broker.freeze()
        wait_until(lambda: catches(process.pid, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        broker.thaw()
        assert (process.returncode, out, err) == (0, "", "")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether that process has a handler for the signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def test_a_reader_that_goes_away_ends_it(broker: BrokerProcess) -> None:
    with command(broker, "--json") as process:
        line_of(process)
        assert process.stdout is not None
        process.stdout.close()
        for _ in range(2):
            with broker.connect():
                pass
        assert process.wait(60) == -signal.SIGPIPE


def test_without_a_broker_it_says_so(make_broker: Callable[..., BrokerProcess]) -> None:
    gone = make_broker()
    for arguments in (["events"], ["events", "--json"]):
        refused = gone.cli(*arguments, check=False)
        assert refused.returncode == UNAVAILABLE
        assert "unavailable" in refused.stderr
        assert "modelbroker serve" in refused.stderr


def test_it_outlives_its_broker(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 1))
    with command(broker, "--json", "--types", "model.pinned") as process:
        first = event_of(process)
        broker.kill()
        broker.start()
        again = event_of(process)
        assert (again["type"], again["data"]["reason"]) == ("snapshot", "restart")
        assert again["boot_id"] != first["boot_id"]
        assert [model["name"] for model in again["data"]["models"]] == ["m"]
        broker.cli("pin", "m")
        assert event_of(process)["type"] == "model.pinned"
        broker.kill()
        process.send_signal(signal.SIGINT)  # while there is none
        assert process.wait(60) == 0


# ---- the progress of a load


def read_to_the_end(terminal: int) -> str:
    """What comes until nobody has the other end any more; closes it."""
    seen = bytearray()
    with suppress(OSError):
        while some := os.read(terminal, 65536):
            seen.extend(some)
    os.close(terminal)
    return seen.decode()


def load_on_a_terminal(
    broker: BrokerProcess, path: Path, *flags: str, out_is_terminal: bool = False
) -> tuple[str, str, int]:
    """What a terminal on stderr sees of a load; its stdout, its exit status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BINARY, "load", str(path), "--name", "m", *flags],
        env=broker.environment,
        stdout=theirs if out_is_terminal else subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_to_the_end, ours)
        let_it_read_for_a_while(broker)
        out = process.communicate(timeout=120)[0] or b""
        return reading.result(), out.decode(), process.returncode


def test_a_terminal_sees_a_load_go_on(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)
    seen, out, status = load_on_a_terminal(broker, path)
    assert status == 0
    bars = re.findall(r"\r\033\[Kloading m \[([#.]{30})\] +(\d+) %  (\S+ \S+) of (\S+ \S+)", seen)
    assert bars, seen
    shares = [int(bar[1]) for bar in bars]
    assert shares == sorted(shares)
    assert {bar[3] for bar in bars} == {"1.0 GiB"}
    assert all(bar[0] == bar[0].count("#") * "#" + bar[0].count(".") * "." for bar in bars)
    assert seen.endswith("\r\033[K")  # nothing is left of it
    assert out.startswith("m: loaded (1.0 GiB")
    # The line of JSON is not disturbed by it either.
    broker.cli("unload", "m", "--wait")
    seen, out, status = load_on_a_terminal(broker, path, "--json")
    assert (status, json.loads(out)["outcome"]) == (0, "loaded")
    assert "loading m [" in seen


def test_a_terminal_sees_a_load_that_somebody_else_began(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)
    first = subprocess.Popen(
        [BINARY, "load", str(path), "--name", "m"], env=broker.environment, stdout=subprocess.PIPE
    )
    let_it_read_for_a_while(broker, 0)
    seen, out, _ = load_on_a_terminal(broker, path)
    assert first.communicate(timeout=60)[0].startswith(b"m: loaded")
    assert "loading m [" in seen
    assert out.startswith("m: resident")


def test_a_failed_load_leaves_the_error_alone_on_the_terminal(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)

    def cancel() -> None:
        while broker.cli("cancel", "m", check=False).returncode != 0:
            pass

    canceller = threading.Thread(target=cancel)
    canceller.start()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BINARY, "load", str(path), "--name", "m"],
        env=broker.environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    process.communicate(timeout=60)
    os.close(theirs)
    canceller.join()
    seen = read_to_the_end(ours)
    assert process.returncode == CANCELLED
    assert re.fullmatch(
        r"(\r\033\[Kloading m [^\r\n]*)*(\r\033\[K)?modelbroker: cancelled: [^\r\n]*\r\n", seen
    ), seen


def test_nothing_is_printed_where_there_is_no_terminal(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)
    process = subprocess.Popen(
        [BINARY, "load", str(path), "--name", "m"],
        env=broker.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    let_it_read_for_a_while(broker)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.fullmatch(r"m: loaded \([^\n]*\)\n", out)


# ---- in Python


def test_python_is_told_of_progress(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)
    told: list[tuple[int, int]] = []
    threads: set[str] = set()

    def progress(read: int, total: int) -> None:
        told.append((read, total))
        threads.add(threading.current_thread().name)

    pause = threading.Thread(target=let_it_read_for_a_while, args=(broker,))
    pause.start()
    with broker.connect() as client:
        loaded = client.load(path, "m", progress=progress)
        pause.join()
        assert len(told) >= 3  # its beginning, at least one step, its end
        assert told == sorted(told)
        assert {total for _, total in told} == {loaded.payload_bytes}
        assert told[-1] == (loaded.payload_bytes, loaded.payload_bytes)
        assert threads == {"modelbroker-progress", threading.current_thread().name}
        # What is resident is at its end at once.
        told.clear()
        client.load(path, "m", progress=progress)
        assert told == [(loaded.payload_bytes, loaded.payload_bytes)]


def test_an_error_of_the_callback_comes_after_the_load(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--load-threads", "1").start()
    path = sparse_model(tmp_path / "m.safetensors", BIG)

    def progress(read: int, total: int) -> None:
        raise RuntimeError(f"{read} of {total}")

    pause = threading.Thread(target=let_it_read_for_a_while, args=(broker,))
    pause.start()
    with broker.connect() as client:
        with pytest.raises(RuntimeError, match="of 1073741824"):
            client.load(path, "m", progress=progress)
        pause.join()
        assert [model.name for model in client.list()] == ["m"]
