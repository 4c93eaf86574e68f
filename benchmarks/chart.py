"""A bar chart of the headline as plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.rows import Row

__all__ = ["chart"]

_WIDTH, _LABEL, _BAR, _GAP, _TITLE = 860, 400, 9, 8, 34
_COLOURS = {"eager": "#7a8ca3", "compile": "#2f6fb2"}
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}"
    ".title{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def chart(machines: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Speed-ups over plain and compiled PyTorch, one pair of bars per row."""
    ratios = [
        ratio
        for _, shown in machines
        for row in shown
        for kind in _COLOURS
        if (ratio := row.best(kind)) is not None
    ]
    scale = (_WIDTH - _LABEL - 60) / max([1.0, *ratios])
    parts: list[str] = []
    y = 8
    for machine, shown in machines:
        y += _TITLE
        parts.append(_text(8, y - 12, f"{machine}: times faster than", "title"))
        x = _LABEL
        for kind, colour in _COLOURS.items():
            parts.append(f'<rect x="{x}" y="{y - 21}" width="10" height="10" fill="{colour}"/>')
            parts.append(_text(x + 15, y - 12, kind))
            x += 80
        for row in shown:
            parts.append(_text(8, y + _BAR + 3, f"{row.topic} {row.label}"))
            for kind, colour in _COLOURS.items():
                ratio = row.best(kind)
                if ratio is not None:
                    width = max(1, round(ratio * scale))
                    parts.append(
                        f'<rect x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}" '
                        f'fill="{colour}"/>'
                    )
                    parts.append(_text(_LABEL + width + 5, y + _BAR, f"{ratio:.1f}"))
                y += _BAR
            y += _GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 8}" '
        f'viewBox="0 0 {_WIDTH} {y + 8}">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _text(x: int, y: int, text: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text x="{x}" y="{y}"{named}>{escape(text)}</text>'
