"""The report of sharing, and the trial by which it knows versions that go another way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from modelbroker._sharing import door, proof, report
from modelbroker._sharing.ledger import FileRecord, Ledger

KNOWN = {"path", "bytes", "shared", "why", "outcome", "pid", "program"} | {
    f"{what}_bytes" for what in ("handed_out", "in_use", "written")
}


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """With one file of each kind."""
    ledger = Ledger()
    monkeypatch.setattr(report, "ledger", ledger)
    shared = ledger.of("a", 2_000_000)
    shared.shared, shared.outcome = True, "loaded"
    tensor = torch.zeros(10)
    shared.hand_out(tensor.untyped_storage(), 40)
    ledger.of("/m/b.safetensors", 900).stock("smaller than --min-size (1048576 bytes)")
    ledger.of("/m/c.safetensors", 2_000_000_000)
    return ledger


def test_the_report_for_people(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.records()
    report.write("-")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("modelbroker: 1 of 3 files shared (pid ")
    assert lines[1:4] == [
        "  shared    2.0 MB  a: read by the broker now; 40 B handed out, 0 B in use, 0 B written",
        "  stock      900 B  /m/b.safetensors: smaller than --min-size (1048576 bytes)",
        "  stock     2.0 GB  /m/c.safetensors: opened, never read",
    ]


def test_the_report_for_programs(ledger: Ledger, tmp_path: Path) -> None:
    """Each process appends: one line a file."""
    path = tmp_path / "report.jsonl"
    report.write(str(path))
    report.write(str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2 * len(ledger.records())
    assert all(line.keys() == KNOWN for line in lines)
    assert [line["shared"] for line in lines[:3]] == [True, False, False]


def test_a_report_that_cannot_be_written_is_told(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger.records()
    report.write(str(tmp_path / "no" / "folder"))
    assert "the report could not be written" in capsys.readouterr().err


def test_what_is_counted_does_not_live_longer_and_does_not_pile_up() -> None:
    record = FileRecord("/m/a.safetensors", 1)
    kept = [torch.zeros(1) for _ in range(5)]
    for tensor in kept:
        record.hand_out(tensor.untyped_storage(), 4)
    for _ in range(5000):
        record.hand_out(torch.zeros(1).untyped_storage(), 4)
    assert record.in_use == 20
    assert record.handed_out == 5005 * 4
    assert len(record._pieces) < 3000


class _Opened:
    """Of a safetensors that maps files by itself."""

    def __init__(self, path: str, **_: Any) -> None:
        self._path = path

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_tensor(self, _: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(Path(self._path).read_bytes()[-4:]), dtype=torch.uint8)


class _Refused(_Opened):
    def get_tensor(self, _: str) -> torch.Tensor:
        raise RuntimeError("no such device")


@pytest.mark.parametrize("kind", [_Opened, _Refused])
def test_a_safetensors_that_goes_another_way_is_named(
    kind: type[_Opened], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proof, "_other_ways", [])
    monkeypatch.setattr(report, "ledger", Ledger())
    door.install()
    fake: Any = ModuleType("safetensors")
    fake.safe_open, fake.__version__ = kind, "77.7"
    proof.try_safetensors(fake)
    assert proof.other_ways() == ["safetensors 77.7"]
    report.write("-")
    told = capsys.readouterr().err
    assert "no weights were opened" in told
    assert "safetensors 77.7" in told


def test_this_safetensors_and_this_torch_go_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_other_ways", [])
    door.install()
    import safetensors

    proof.try_safetensors(safetensors)
    assert proof.try_torch()
    assert not [way for way in proof.other_ways() if way.startswith(("torch", "safetensors"))]
    assert "safetensors" in sys.modules
