"""Line plots as inline SVG: nothing to load, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 34
TICKS = 5

Points = Sequence[tuple[float, float | None]]


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Give round values that cover low to high: 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step)
    ticks = [first * step]
    while ticks[-1] < high - step * 1e-6:
        ticks.append((first + len(ticks)) * step)
    return ticks


def decades(low: float, high: float) -> list[float]:
    """The powers of ten that cover low to high, both above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """For a tick: short, with a thousands separator."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_plot(
    title: str,
    unit: str,
    series: dict[str, Points],
    *,
    marks: Sequence[tuple[float, str]] = (),
    x_unit: str = "s",
    log_x: bool = False,
    log_y: bool = False,
    x_labels: dict[float, str] | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """A `<figure>` with one plot.

    None among the values makes a gap. "" when nothing is there to draw.

    `x_labels` are the ticks and their texts; without `x_range` the axis is as long as the values.
    """
    values = [(x, y) for points in series.values() for x, y in points if y is not None and (not log_y or y > 0)]
    if not values:
        return ""
    xs, ys = [x for x, _ in values], [y for _, y in values]
    x_low, x_high = x_range or (min(xs), max(xs))
    if x_high <= x_low:
        x_high = x_low + 1
    x_ticks = list(x_labels) if x_labels else nice_ticks(x_low, x_high)
    y_ticks = decades(min(ys), max(ys)) if log_y else nice_ticks(0.0, max(ys) or 1.0)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def scaled(value: float, low: float, high: float, *, log: bool) -> float:
        if log:
            return (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return (value - low) / (high - low)

    def at_x(x: float) -> float:
        return LEFT + scaled(x, x_low, x_high, log=log_x) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - scaled(y, y_low, y_high, log=log_y) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            label = x_labels[tick] if x_labels else number(tick)
            x = at_x(tick)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(label)}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_unit)}</text>')
    for at, text in marks:
        if x_low <= at <= x_high:
            x = at_x(at)
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f"<title>{escape(text)} at {at:.1f} s</title></line>"
            )
    parts += [
        _line(index, name, points, at_x, at_y, log_y=log_y) for index, (name, points) in enumerate(series.items())
    ]
    parts.append("</svg>")
    keys = "".join(
        f'<span class="key"><i class="s{index}"></i>{escape(name)}</span>' for index, name in enumerate(series)
    )
    legend = f'<div class="legend">{keys}</div>' if len(series) > 1 else ""
    return f"<figure><figcaption>{escape(title)} <small>{escape(unit)}</small></figcaption>{''.join(parts)}{legend}</figure>"


def _line(index: int, name: str, points: Points, at_x, at_y, *, log_y: bool) -> str:  # type: ignore[no-untyped-def]
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if y is None or (log_y and y <= 0):
            pieces.append([])
            continue
        pieces[-1].append(f"{at_x(x):.1f},{at_y(y):.1f}")
    drawn = "".join(
        f'<polyline class="line s{index}" points="{" ".join(piece)}"/>'
        if len(piece) > 1
        else f'<circle class="dot s{index}" cx="{piece[0].split(",")[0]}" cy="{piece[0].split(",")[1]}" r="1.6"/>'
        for piece in pieces
        if piece
    )
    return f"<g>{drawn}<title>{escape(name)}</title></g>"
