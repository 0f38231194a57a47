"""Draws docs/numbers.svg from the JSON lines that `make bench` and `make bench-peers` wrote."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_OURS, _THEIRS = "#2a7f62", "#8a8f98"
_WIDTH, _ROW, _LEFT, _BAR = 800, 26, 240, 430
_EXAMPLES = """Examples:
  tools/draw_numbers.py bench/results/2026-11-27.jsonl docs/numbers.svg
  tools/draw_numbers.py build/bench.jsonl build/bench-peers.jsonl numbers.svg
"""


@dataclass(frozen=True)
class Panel:
    """A metric of ours beside baselines: as the lines name them, or how that begins."""

    title: str
    metric: str
    baselines: tuple[str, ...]


_PANELS = (
    Panel(
        "a fresh worker gets {size:.1f} GB of resident weights and touches every page",
        "attach_touch",
        ("safetensors, cache from faults", "safetensors, cache from reads", "torch.load"),
    ),
    Panel(
        "first load, file not in memory",
        "cold_load",
        (
            "best bare read",
            "tensorizer",
            "runai-model-streamer",
            "safetensors mmap",
            "fastsafetensors",
            "torch.load",
        ),
    ),
    Panel(
        "memory that four workers hold",
        "four_workers_pss",
        ("four safetensors mmap", "four torch.load"),
    ),
    Panel(
        "broker killed and restarted with 100 models",
        "restart_ready",
        ("loading 100 files again",),
    ),
)


def shown(value: float, unit: str) -> str:
    """A value for people."""
    if unit == "bytes":
        return f"{value / 1e9:.1f} GB"
    return f"{value * 1e3:,.0f} ms" if value < 1 else f"{value:.1f} s"


def bars(panel: Panel, lines: list[dict[str, Any]]) -> list[tuple[str, float, str, bool]]:
    """Label, value, unit and whether it is ours; nothing where nothing was measured."""
    found: list[tuple[str, float, str, bool]] = []
    of_it = [line for line in lines if line.get("metric") == panel.metric]
    for name in panel.baselines:
        # "torch.load" is not "torch.load(mmap)": what follows a name is a space or a comma.
        for line in of_it:
            if f"{line['baseline']} ".replace(",", " ").startswith(name.replace(",", " ") + " "):
                found.append((line["baseline"], line["baseline_value"], line["unit"], False))
                break
    if not found:
        return []
    ours = max(line["value"] for line in of_it)  # where several programs measured it
    return [("modelbroker", ours, of_it[0]["unit"], True), *found]


def draw_panel(title: str, rows: list[tuple[str, float, str, bool]], top: int) -> list[str]:
    """One group of bars below its title."""
    most = max(value for _, value, _, _ in rows)
    lines = [f'<text x="16" y="{top}" font-weight="bold">{escape(title)}</text>']
    for index, (label, value, unit, ours) in enumerate(rows):
        y = top + 14 + index * _ROW
        width = max(2.0, _BAR * value / most)
        colour = _OURS if ours else _THEIRS
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>',
            f'<text x="{_LEFT + width + 8:.1f}" y="{y + 14}">{shown(value, unit)}</text>',
        ]
    return lines


def draw(lines: list[dict[str, Any]]) -> str:
    """The picture as SVG text."""
    figures = [line for line in lines if "metric" in line]
    size = max(line["size"] for line in figures) / 1e9
    for line in figures:
        if line["metric"] == "attach_touch":
            size = line["size"] / 1e9
    body: list[str] = []
    top = 28
    for panel in _PANELS:
        rows = bars(panel, figures)
        if rows:
            body += draw_panel(panel.title.format(size=size), rows, top)
            top += len(rows) * _ROW + 40
    first = figures[0]
    commands = dict.fromkeys(line["command"].split(" ONLY=")[0] for line in figures)
    note = escape(f"{first['machine']}; {' and '.join(commands)}, {first['date']}")
    body.append(f'<text x="16" y="{top - 6}" font-size="11" fill="#666">{note}</text>')
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 8}" {style}>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, ground, *body, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", type=Path, nargs="+", help="files of JSON lines")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for path in arguments.figures:
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    arguments.picture.write_text(draw(lines))


if __name__ == "__main__":
    main()
