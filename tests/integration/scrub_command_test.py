"""`modelbroker scrub`: its words, its JSON, its exit status, its progress on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess, wait_until
from support.damage import flip_in_payload
from support.listener import sparse_model
from support.workers import assert_right_bytes, crcs

USAGE, NOT_FOUND, DATA_LOSS, UNAVAILABLE = 2, 11, 17, 18


@pytest.fixture
def quiet(make_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    return make_broker("--scrub-rate", "0").start()


def test_words_and_status_for_good_blocks(quiet: BrokerProcess, tmp_path: Path) -> None:
    assert quiet.cli("scrub").stdout == ""
    for name in ("a", "b"):
        quiet.cli("load", files.write_random(tmp_path / f"{name}.safetensors", 3))
    done = quiet.cli("scrub")
    assert re.fullmatch(r"a: good \(\S+ MiB checked\)\nb: good \(\S+ MiB checked\)\n", done.stdout)
    assert done.stderr == ""
    assert quiet.cli("scrub", "b", "a").stdout.splitlines()[0].startswith("b: good")
    found = quiet.cli_json("scrub", "a")
    assert set(found) == {"bytes", "damaged", "models"}
    assert found["bytes"] == found["models"][0]["bytes"] > 3_000_000
    assert (found["damaged"], found["models"][0]["outcome"]) == (0, "good")


@pytest.mark.parametrize("json_wanted", [False, True])
def test_damage_is_told_by_words_and_status(
    quiet: BrokerProcess, tmp_path: Path, json_wanted: bool
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 20)
    block = json.loads(quiet.cli("load", path, "--json").stdout)["block"]
    flip_in_payload(quiet.ram / block, 17 << 20)
    done = quiet.cli("scrub", *(["--json"] if json_wanted else []), check=False)
    assert done.returncode == DATA_LOSS
    if json_wanted:
        (model,) = json.loads(done.stdout)["models"]
        assert (model["outcome"], model["chunk"], model["block"]) == ("damaged", 1, block)
        error = json.loads(done.stderr)["error"]
        assert (error["code"], error["details"]) == ("data_loss", {"damaged": 1})
    else:
        assert re.fullmatch(
            r"m: damaged \(16.0 MiB checked, chunk 1 is damaged, offset \d+\)\n", done.stdout
        )
        assert done.stderr.startswith("modelbroker: data_loss: 1 block was damaged")
    with quiet.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
    assert quiet.cli("scrub").returncode == 0
    tier = quiet.cli_json("status")["tiers"]["ram"]
    assert tier["scrub_errors"] == 1
    assert tier["scrubbed_bytes"] > 36_000_000


def test_what_is_not_there(quiet: BrokerProcess, make_broker: Callable[..., BrokerProcess]) -> None:
    refused = quiet.cli("scrub", "nothing", check=False)
    assert refused.returncode == NOT_FOUND
    assert "nothing" in refused.stderr
    assert quiet.cli("scrub", "--deep", check=False).returncode == USAGE
    assert make_broker().cli("scrub", check=False).returncode == UNAVAILABLE


def test_a_terminal_sees_it_go_on(quiet: BrokerProcess, tmp_path: Path) -> None:
    quiet.cli("load", sparse_model(tmp_path / "m.safetensors", 1024))
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                seen.extend(os.read(ours, 65536))
            except OSError:  # nobody has the other end any more
                return

    process = subprocess.Popen(
        [BINARY, "scrub", *["m"] * 8],
        env=quiet.environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    # However fast it is: its progress is due when the broker wakes from a pause in the middle.
    assert quiet.process is not None
    wait_until(lambda: quiet.books()["scrubbed_bytes"] > 0, every=0)
    quiet.freeze()
    threading.Event().wait(0.3)
    quiet.thaw()
    out = process.communicate(timeout=60)[0]
    reader.join()
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith("m: good")
    assert re.search(r"\r\033\[Kchecking m \[[#.]{30}\] +\d+ %  \S+ \S+ of 1\.0 GiB", seen.decode())
    assert seen.endswith(b"\r\033[K")
