"""The C++ example as its user runs it: built by `make examples` against what we install."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiled_model
from support.broker import BrokerProcess, wait_until
from support.examples import EMBED_WORKER, EXAMPLES, SOURCES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # compiling takes a while if it is new

SENTENCES = ["A cat sleeps.", "The kitten is asleep.", "Revenue grew by eleven percent."]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def package() -> Path:
    assert EMBED_WORKER.exists(), "run 'make examples' first"
    return compiled_model.compiled_model(compiled_model.demo_model(), EXAMPLES)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentences as make_tokens.py writes them."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    script = SOURCES / "cpp_worker" / "make_tokens.py"
    with path.open("wb") as file:
        subprocess.run(
            [sys.executable, str(script), str(compiled_model.demo_model()), *SENTENCES],
            stdout=file,
            check=True,
            env=OFFLINE,
        )
    return path


class EmbedWorker:
    """A running embed_worker."""

    def __init__(self, broker: BrokerProcess, package: Path, tokens: Path) -> None:
        self.process = subprocess.Popen(
            [str(EMBED_WORKER), "cats", str(package), "--tokens", str(tokens)],
            env=broker.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended: status {self.process.wait()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, line: str = "") -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()


@contextlib.contextmanager
def running(broker: BrokerProcess, package: Path, tokens: Path) -> Iterator[EmbedWorker]:
    worker = EmbedWorker(broker, package, tokens)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def with_cats(broker: BrokerProcess) -> BrokerProcess:
    broker.cli("load", compiled_model.demo_model() / "model.safetensors", "--name", "cats")
    return broker


def stock_vectors(tokens: Path) -> list[list[float]]:
    """What transformers' own load of the file gives for them."""
    script = """
import json, sys, torch
from transformers import AutoModel
batch = {k: torch.tensor(v) for k, v in json.load(open(sys.argv[2])).items()}
mask = batch["attention_mask"][..., None]
with torch.inference_mode():
    states = AutoModel.from_pretrained(sys.argv[1]).eval()(**batch).last_hidden_state
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
print(json.dumps(vectors.tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(compiled_model.demo_model()), str(tokens)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env=OFFLINE,
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


def test_computes_what_transformers_computes(
    with_cats: BrokerProcess, package: Path, tokens: Path
) -> None:
    with running(with_cats, package, tokens) as worker:
        answer = worker.ask('{"vectors": true}')
        ours, theirs = answer["vectors"], stock_vectors(tokens)
        assert answer["shape"] == [3, 384] == [len(theirs), len(theirs[0])]
        assert np.abs(np.array(ours) - np.array(theirs)).max() < 1e-5
        assert worker.ask()["digest"] == answer["digest"]
        # One sentence, and as many tokens as the model takes: what it was compiled for is not all.
        for rows, width in ((1, 1), (1, 512), (40, 7)):
            batch = {"input_ids": [[101] * width] * rows, "attention_mask": [[1] * width] * rows}
            assert worker.ask(json.dumps(batch))["shape"] == [rows, 384]


def test_the_network_reads_the_brokers_memory(
    with_cats: BrokerProcess, package: Path, tokens: Path
) -> None:
    size = (compiled_model.demo_model() / "model.safetensors").stat().st_size
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(running(with_cats, package, tokens)) for _ in range(3)]
        for worker in workers:
            worker.ask()
            # What the compiled code itself says that it computes with, by address.
            assert worker.ready["shared"] > 100
            assert worker.ready["shared_bytes"] > 0.99 * size
            assert all(name.endswith("_ids") for name in worker.ready["own"])
            assert worker.ready["grown"] < 0.05 * size, "giving it the constants copied none"
        memory = [worker.ask('{"memory": true}') for worker in workers]
        assert all(row["copied"] == 0 for row in memory)
        assert all(row["memory"] < 0.5 * row["resident"] for row in memory), "three share each page"
        assert with_cats.books()["leases"] == 3


def test_outlives_the_broker_and_the_file(
    broker: BrokerProcess, package: Path, tokens: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(compiled_model.demo_model() / "model.safetensors", file)
    broker.cli("load", file, "--name", "cats")
    with running(broker, package, tokens) as worker, running(broker, package, tokens) as victim:
        before = worker.ask()
        file.unlink()
        broker.kill()
        assert worker.ask() == before
        broker.start()
        wait_until(lambda: broker.books()["leases"] == 2)
        victim.process.send_signal(signal.SIGKILL)
        wait_until(lambda: broker.books()["leases"] == 1)
        assert worker.ask() == before
        broker.cli("unload", "cats")
        assert worker.ask() == before, "what is mapped stays"
        worker.process.communicate(timeout=60)
        assert worker.process.returncode == 0, "the end of its input is a clean end"
    wait_until(broker.is_empty)


def test_wrong_requests_get_typed_errors_and_the_next_is_answered(
    with_cats: BrokerProcess, package: Path, tokens: Path
) -> None:
    with running(with_cats, package, tokens) as worker:
        before = worker.ask()
        for line, word in [
            ("{", "JSON"),
            ("[]", "JSON"),
            ("[" * 100_000, "JSON"),
            ('{"input_ids": 1, "attention_mask": 1}', "row"),
            ('{"input_ids": [], "attention_mask": []}', "row"),
            ('{"input_ids": [[]], "attention_mask": [[]]}', "tokens"),
            ('{"input_ids": ["ab"], "attention_mask": [[1]]}', "rows"),
            ('{"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1, 1]]}', "pad"),
            ('{"input_ids": [[30522]], "attention_mask": [[1]]}', "30521"),
            ('{"input_ids": [[-1]], "attention_mask": [[1]]}', "-1"),
            ('{"input_ids": [[1.5]], "attention_mask": [[1]]}', "1.5"),
            ('{"input_ids": [[1]], "attention_mask": [[2]]}', "attention_mask"),
            ('{"input_ids": [[1]], "attention_mask": [[0]]}', "attention_mask"),
            ('{"input_ids": [[1]], "attention_mask": [[1, 1]]}', "alike"),
            ('{"input_ids": [[1]]}', "attention_mask"),
            (json.dumps({"input_ids": [[1] * 513], "attention_mask": [[1] * 513]}), "512"),
            (json.dumps({"input_ids": [[1]] * 1025, "attention_mask": [[1]] * 1025}), "1024"),
        ]:
            error = worker.ask(line)["error"]
            assert error["code"] == "invalid_argument", line[:60]
            assert word in error["message"], (line[:60], error)
        assert worker.ask() == before


def test_says_what_is_wrong_at_its_start(
    with_cats: BrokerProcess, make_broker: Any, package: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    other = load_file(compiled_model.demo_model() / "model.safetensors")
    other["encoder.layer.3.output.dense.bias"] = np.zeros(5, np.float32)
    save_file(other, tmp_path / "other.safetensors")
    with_cats.cli("load", tmp_path / "other.safetensors", "--name", "other")
    (tmp_path / "junk").write_bytes(b"PK no")
    absent = make_broker().endpoint
    for arguments, status, word in [
        ([], 10, "--help"),
        (["cats", str(package), "--colour"], 10, "--colour"),
        (["cats", str(package), "--tokens"], 10, "--tokens"),
        (["nobody", str(package)], 11, "nobody"),
        (["cats", str(tmp_path / "nothing")], 10, "compile_model.py"),
        (["cats", str(tmp_path / "junk")], 10, "compile_model.py"),
        (["cats", str(package), "--tokens", str(tmp_path / "nothing")], 11, "nothing"),
        (["cats", str(package), "--tokens", str(tmp_path / "junk")], 10, "junk"),
        (["other", str(package)], 10, "encoder.layer.3.output.dense.bias"),
        (["cats", str(package), "--endpoint", absent], 18, "modelbroker serve"),
    ]:
        done = subprocess.run(
            [str(EMBED_WORKER), *arguments],
            env=with_cats.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (status, ""), (arguments, done.stderr)
        assert word in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_compiling_says_what_it_needs(tmp_path: Path) -> None:
    script = str(SOURCES / "cpp_worker" / "compile_model.py")
    (tmp_path / "there").mkdir()
    model = str(compiled_model.demo_model())
    for folder, package, compiler, word in [
        (str(tmp_path), "new", "g++", "config.json"),
        (model, "there", "g++", "remove it"),
        (model, "new", "/nonexistent/g++", "install g++"),
    ]:
        done = subprocess.run(
            [sys.executable, script, folder, str(tmp_path / package)],
            env={**OFFLINE, "CXX": compiler},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert word in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
