"""Draws docs/numbers.svg from the figures that `tools/demo.py --json` wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

_WHO = (
    ("broker", "modelbroker", "#2a7f62"),
    ("safetensors", "safetensors mmap", "#8a8f98"),
    ("torch", "torch.load", "#8a8f98"),
)
_WIDTH, _ROW, _LEFT, _BAR = 720, 26, 150, 440


def _panel(title: str, values: dict[str, float], unit: str, scale: float, top: int) -> list[str]:
    most = max(values.values())
    lines = [f'<text x="16" y="{top}" font-weight="bold">{escape(title)}</text>']
    for index, (key, label, colour) in enumerate(_WHO):
        y = top + 14 + index * _ROW
        width = max(2.0, _BAR * values[key] / most)
        value = (
            f"{values[key] * scale:,.0f} {unit}"
            if unit == "ms"
            else f"{values[key] * scale:.1f} {unit}"
        )
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{label}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>',
            f'<text x="{_LEFT + width + 8:.1f}" y="{y + 14}">{value}</text>',
        ]
    return lines


def draw(figures: dict[str, object]) -> str:
    """The picture as SVG text."""
    size = float(str(figures["size"])) / 1e9
    panels = [
        (f"a worker gets {size:.1f} GB of weights and touches every page", "attach", "ms", 1e3),
        ("first load, file not in memory", "cold", "s", 1.0),
        ("weights of four workers in RAM", "memory", "GB", 1e-9),
    ]
    body: list[str] = []
    top = 28
    for title, row, unit, scale in panels:
        values = figures[row]
        assert isinstance(values, dict)
        body += _panel(title, values, unit, scale, top)
        top += 3 * _ROW + 40
    note = escape(f"{figures['machine']}; {figures['command']}, {figures['date']}")
    body.append(f'<text x="16" y="{top - 6}" font-size="11" fill="#666">{note}</text>')
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 8}" {style}>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, ground, *body, "</svg>", ""])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: draw_numbers.py FIGURES.json PICTURE.svg")
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
