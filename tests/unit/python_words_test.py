"""Words of the Python client: keep_alive as the command line takes it, advice in Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelbroker
from modelbroker._keep_alive import seconds_of
from modelbroker._wording import in_python
from support import files
from support.broker import BrokerProcess, run_python

# ---- keep_alive


@pytest.fixture(scope="module")
def client(shared: BrokerProcess) -> Iterator[modelbroker.Broker]:
    with shared.connect() as client:
        yield client


@pytest.fixture(scope="module")
def path(shared: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = files.write_random(tmp_path_factory.mktemp("words") / "kept.safetensors", 1)
    shared.cli("load", path)
    return path


TIMES: list[tuple[str, float | None]] = [
    ("300", 300),
    ("90s", 90),
    ("250ms", 0.25),
    ("5m", 300),
    ("1.5h", 5400),
    ("2d", 172_800),
    ("0", 0),
    (".5m", 30),
    ("5.", 5),
    ("1e3", 1000),
    ("1e3ms", 1),
    ("-1", -1),
    ("-5m", -1),
    *((text, None) for text in ("5 m", "5M", "m", "five", "nan", "inf", "1e999", "0x10", "+5")),
    *((text, None) for text in ("5mm", "5m ", " 5m", "\uff15m", "1_000", "1,5h", "--", "5min")),
]


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_keep_alive_is_taken_and_refused_as_on_the_command_line(
    shared: BrokerProcess, client: modelbroker.Broker, path: Path, text: str, seconds: float | None
) -> None:
    def kept() -> float:
        return next(model.keep_alive for model in client.list() if model.name == "kept")

    client.load(path, keep_alive=77)
    done = shared.cli("load", path, f"--keep-alive={text}", check=False)
    if seconds is None:
        assert done.returncode != 0
        with pytest.raises(modelbroker.InvalidArgumentError, match=r"keep_alive=.*5m") as caught:
            client.load(path, keep_alive=text)
        assert repr(text) in str(caught.value)
        assert kept() == 77
    else:
        assert kept() == seconds, done.stderr
        client.load(path, keep_alive=77)
        client.load(path, keep_alive=text)
        assert kept() == seconds


def test_keep_alive_may_be_any_number() -> None:
    for number in (5, 5.0, np.float32(5), np.int64(5), True):
        assert seconds_of(number) == float(number)
    things: list[Any] = [float("nan"), b"5m", [5], 5j, object()]
    for thing in things:
        with pytest.raises(modelbroker.InvalidArgumentError, match="keep_alive="):
            seconds_of(thing)


# ---- advice

ADVICE = [
    ("use --name to choose another", "use name= to choose another"),
    ("give --name", "give name="),
    ("give --name.", "give name=."),
    ("--keep-alive 5m, --pin or --wait", "keep_alive= 5m, pin=True or wait=True"),
    ("'modelbroker ls' shows those that are", "list() shows those that are"),
    ("'modelbroker load FILE --name NAME' loads one", "load(FILE, name=NAME) loads one"),
    ("'modelbroker unload m --wait' first", "unload(m, wait=True) first"),
    # The broker's own, and the shell's.
    ("start it with a larger --ram-budget", None),
    ("start one with 'modelbroker serve &'", None),
    ("see 'modelbroker doctor'", None),
    ("'modelbroker load FILE --unknown X'", None),
    ("docker run --shm-size=48g (--ipc=host)", None),
    # Names and paths.
    ("opening '/models/--name'", None),
    ("opening '/models/my --name.safetensors'", None),
    ("the name '--name' is taken", None),
    ("my--name", None),
    ("--name-of-mine", None),
    ("'modelbroker load it's", None),
    ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("message", "wanted"), ADVICE)
def test_flags_and_commands_of_the_client_become_keywords_and_methods(
    message: str, wanted: str | None
) -> None:
    assert in_python(message) == (message if wanted is None else wanted)


def test_what_the_broker_advises_is_python(
    client: modelbroker.Broker, path: Path, tmp_path: Path
) -> None:
    assert path.exists()
    other = files.write_random(tmp_path / "other.safetensors", 1)
    with pytest.raises(modelbroker.AlreadyExistsError, match="name=") as taken:
        client.load(other, "kept")
    with pytest.raises(modelbroker.NotFoundError, match=r"list\(\).*load\(") as unknown:
        client.attach("nothing")
    for caught in (taken, unknown):
        assert "--" not in str(caught.value)
        assert "'modelbroker" not in str(caught.value)


# ---- without torch

NO_TORCH = """
import pathlib, sys
if sys.argv[1] == "absent":
    sys.modules["torch"] = None
else:
    folder = pathlib.Path(sys.argv[2])
    (folder / "torch.py").write_text("raise ImportError('libcudart.so.12 is not there')")
    sys.path.insert(0, str(folder))
import modelbroker
with modelbroker.connect(timeout=30) as client, client.attach("kept") as weights:
    assert weights.numpy() and weights.raw("t0").any() and weights["t0"].numpy().any()
    for ask in (weights.state_dict, lambda: weights.state_dict("none."), weights["t0"].torch,
                lambda: weights.apply_to(object())):
        try:
            ask()
            raise AssertionError("no error")
        except modelbroker.TorchMissingError as error:
            assert isinstance(error, ImportError) and error.code == "failed_precondition"
            print(error)
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("absent", "torch is not installed: pip install 'modelbroker[torch]'"),
        ("broken", "torch cannot be imported (libcudart.so.12 is not there): pip install"),
    ],
)
def test_without_torch_its_methods_say_what_to_install(
    shared: BrokerProcess, path: Path, tmp_path: Path, how: str, reason: str
) -> None:
    assert path.exists()
    done = run_python(NO_TORCH, how, str(tmp_path), environment=shared.environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(reason) for line in lines), lines
