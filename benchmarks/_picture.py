"""A log-log line chart as SVG text: no library, no script, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 720, 460
LEFT, RIGHT, TOP, BOTTOM = 76, 230, 56, 52
COLORS = ("#1b6ca8", "#c0504d", "#3c8d5a", "#8064a2")


def log_log(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """Label → points with x and y above 0. Ticks at each x that occurs and at each power of ten in y."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    exponents = [math.log10(y) for points in lines.values() for _, y in points]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / xs[0]) / (math.log(xs[-1] / xs[0]) or 1)

    def at_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(y)) / ((high - low) or 1)

    bottom = HEIGHT - BOTTOM
    parts = [_text(LEFT, 24, title, "start", 'font-weight="bold"')]
    for x in xs:
        parts += [_line(at_x(x), TOP, at_x(x), bottom, "#ddd"), _text(at_x(x), bottom + 18, f"{x:g}", "middle")]
    for exponent in range(low, high + 1):
        y = at_y(10.0**exponent)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#ddd"), _text(LEFT - 8, y + 4, _power(exponent), "end")]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"))
    parts.append(_text(LEFT, TOP - 12, y_label, "start"))
    for index, (label, points) in enumerate(lines.items()):
        color, y = COLORS[index % len(COLORS)], TOP + 16 + 24 * index
        path = " ".join(f"{at_x(x):.1f},{at_y(value):.1f}" for x, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(value):.1f}" r="3" fill="{color}"/>' for x, value in points]
        parts.append(_line(WIDTH - RIGHT + 14, y - 4, WIDTH - RIGHT + 34, y - 4, color))
        parts.append(_text(WIDTH - RIGHT + 40, y, label, "start"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    inside = "\n".join(parts)
    sheet = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{sheet}\n{inside}\n</svg>\n'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
