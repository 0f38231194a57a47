"""MODELBROKER_* variables and sizes: what is read, what is refused, what children get."""

from __future__ import annotations

import logging
import os

import pytest

import modelbroker
from modelbroker._sharing.settings import Settings, bytes_of

SAME = [
    ({}, Settings()),
    ({"MODELBROKER_ONLY": "*/unet/*:/models/a*"}, Settings(only=("*/unet/*", "/models/a*"))),
    ({"MODELBROKER_SKIP": "*lora*"}, Settings(skip=("*lora*",))),
    ({"MODELBROKER_MIN_SIZE": "500000000"}, Settings(min_size=500_000_000)),
    ({"MODELBROKER_MIN_SIZE": "0"}, Settings(min_size=0)),
    ({"MODELBROKER_RESIDENT_ONLY": "1"}, Settings(resident_only=True)),
    ({"MODELBROKER_ENDPOINT": "ipc:///r/broker.sock"}, Settings(endpoint="ipc:///r/broker.sock")),
    ({"MODELBROKER_REPORT": "-"}, Settings(report="-")),
    ({"MODELBROKER_REPORT": "/tmp/report"}, Settings(report="/tmp/report")),
]


@pytest.mark.parametrize(("variables", "settings"), SAME)
def test_variables_and_settings_say_the_same(variables: dict[str, str], settings: Settings) -> None:
    assert Settings.from_environment(variables) == settings
    assert settings.to_environment() == variables


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        ({"MODELBROKER_ONLY": ":a::b:"}, Settings(only=("a", "b"))),
        ({"MODELBROKER_MIN_SIZE": "500MB"}, Settings(min_size=500_000_000)),
        ({"MODELBROKER_MIN_SIZE": ""}, Settings()),
        ({"MODELBROKER_RESIDENT_ONLY": "off"}, Settings()),
        ({"MODELBROKER_REPORT": "r.jsonl"}, Settings(report=os.path.abspath("r.jsonl"))),
    ],
)
def test_variables_are_read_as_people_write_them(
    variables: dict[str, str], settings: Settings
) -> None:
    assert Settings.from_environment(variables) == settings


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("MODELBROKER_MIN_SIZE", "big", "'big' is not a size: write bytes, or a number with KiB"),
        ("MODELBROKER_MIN_SIZE", "-1", "'-1' is not a size"),
        ("MODELBROKER_RESIDENT_ONLY", "2", "'2' is neither 1 nor 0"),
    ],
)
def test_a_wrong_variable_is_one_warning_and_the_default(
    caplog: pytest.LogCaptureFixture, variable: str, value: str, why: str
) -> None:
    with caplog.at_level(logging.WARNING, "modelbroker"):
        found = Settings.from_environment({variable: value, "MODELBROKER_SKIP": "a"})
    assert found == Settings(skip=("a",))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{variable} is ignored: {why}")


@pytest.mark.parametrize("glob", ["", "a:b"])
def test_a_glob_that_no_variable_can_hold_is_refused(glob: str) -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match=f"the glob '{glob}' cannot"):
        Settings(skip=("fine", glob)).to_environment()


def test_without_variables_given_it_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELBROKER_SKIP", "here")
    assert Settings.from_environment().skip == ("here",)


@pytest.mark.parametrize(  # those of SizeTest in broker_budget_test.cc
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ("12B", 12),
        ("4KiB", 4096),
        ("4 KiB", 4096),
        ("1.5 GB", 1_500_000_000),
        ("4GiB", 4 << 30),
        ("0.5GiB", 1 << 29),
        ("2TiB", 2048 << 30),
        ("3TB", 3_000_000_000_000),
        ("7MB", 7_000_000),
        ("7MiB", 7 << 20),
        ("2KB", 2000),
        ("0.1B", 0),
        (4096, 4096),
    ],
)
def test_sizes_are_read_as_the_broker_reads_them(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "GiB", "x", "-1", "+1", "4gib", "4G", "4 Gi B", "1e9", "0x10", "inf", "nan", "1,5GB"),
        *("4GiB!", " 4GiB", "4GiB ", ".", "1.2.3", "1_0", "٣", "9" * 5000, "9999999999999TiB"),
        *("8388608TiB", -1, 1 << 63),
    ],
)
def test_any_other_size_is_refused_with_what_is_allowed(text: str | int) -> None:
    with pytest.raises(modelbroker.InvalidArgumentError, match=r"is not a size: .*GiB") as refused:
        bytes_of(text)
    assert len(str(refused.value)) < 200
