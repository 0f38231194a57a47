"""What `cmake --install` gives is enough for a project outside the tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import files
from support.broker import BINARY, BrokerProcess

CONSUMER = Path(__file__).parents[1] / "consumer"


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build that is being tested, installed below a prefix of its own."""
    build = Path(BINARY).parents[1]
    if not (build / "cmake_install.cmake").exists():
        pytest.skip(f"{BINARY} does not lie in a build folder: nothing to install from")
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


def built(installed: Path, folder: Path, *options: str, prefix_path: str = "") -> Path:
    where = f"{installed};{prefix_path}"
    run("cmake", "-S", CONSUMER, "-B", folder, f"-DCMAKE_PREFIX_PATH={where}", *options)
    run("cmake", "--build", folder)
    return folder


def test_a_project_finds_builds_and_runs(
    installed: Path, broker: BrokerProcess, tmp_path: Path
) -> None:
    program = built(installed, tmp_path / "build") / "sum"
    model = files.write(
        tmp_path / "m.safetensors",
        {"a": ("U8", [3], b"\1\2\3"), "b": ("F16", [2, 1], b"\xff\0\0\1")},
    )
    told = run(program, model, MODELBROKER_ENDPOINT=broker.endpoint)
    assert told.splitlines() == ["a U8 [ 3 ] 6", "b F16 [ 2 1 ] 256"]
    assert broker.books()["loads"] == 1
    assert broker.books()["leases"] == 0
    # Only what the public headers name can be seen from outside.
    library = next(installed.glob("lib*/**/libmodelbroker.so"))
    symbols = run("nm", "-DC", "--defined-only", library)
    assert "modelbroker::Broker::attach" in symbols
    assert "client::" not in "\n".join(line.split("(")[0] for line in symbols.splitlines())
    # The installed program too.
    assert run(installed / "bin/modelbroker", "--version").strip()


def test_an_unknown_component_is_refused_by_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(x LANGUAGES CXX)\n"
        "find_package(modelbroker REQUIRED COMPONENTS tensorflow)\n"
    )
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no component 'tensorflow'" in done.stderr


@pytest.mark.slow
def test_libtorch_tensors_hold_the_mapping(
    installed: Path, broker: BrokerProcess, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    program = built(
        installed,
        tmp_path / "build",
        "-DWITH_TORCH=ON",
        prefix_path=torch.utils.cmake_prefix_path,
    )
    model = files.write(
        tmp_path / "m.safetensors",
        {
            "a": ("BF16", [2, 2], b"\x80\x3f" * 4),
            "b": ("F8_E4M3", [3], b"\x38" * 3),
            "c": ("I64", [], (7).to_bytes(8, "little")),
            "d": ("F32", [0, 4], b""),
            "e": ("F8_E4M3FNUZ", [3], b"\x40" * 3),
            "f": ("F8_E5M2FNUZ", [2], b"\x40" * 2),
        },
    )
    told = run(program / "torch_sum", model, MODELBROKER_ENDPOINT=broker.endpoint)
    assert told.splitlines() == [
        "a c10::BFloat16 [2, 2] 4",
        "b c10::Float8_e4m3fn [3] 3",
        "c long int [] 7",
        "d float [0, 4] 0",
        "e c10::Float8_e4m3fnuz [3] 3",
        "f c10::Float8_e5m2fnuz [2] 2",
        "shared",
    ]
    assert broker.books()["leases"] == 0
