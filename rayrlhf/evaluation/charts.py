"""Line charts and stacked bars as inline SVG: they need no script and no network, print, and follow light and dark.

Colours are classes of the page (`s0` ... `s7`).  The points stand in `data-x` and `data-y`, from which the page's
script shows the values under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
NUM_COLOURS = 8
MAX_POINTS = 600  # more of a line cannot be told apart at this width
MARKED = 40  # lines of fewer points show them
MAX_LABELS = 12
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line.  `labels`, where given, name its points."""

    name: str
    points: Sequence[Point]
    labels: Sequence[str] = ()
    colour: int | None = None  # default: its place in the chart


@dataclass(frozen=True)
class Event:
    """Something that happened at a step: a line across the chart."""

    step: float
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Chart:
    """`x` and `y` name the axes."""

    title: str
    series: Sequence[Series]
    x: str = "step"
    y: str = ""
    events: Sequence[Event] = ()


def figure(chart: Chart) -> Markup:
    """The chart as an HTML fragment; every text in it is escaped."""
    from markupsafe import Markup, escape

    lines = [Series(s.name, thinned(s.points), s.labels, s.colour) for s in chart.series]
    points = [point for line in lines for point in line.points]
    across, up = _range([x for x, _ in points], pad=0), _range([y for _, y in points], pad=0.05)
    if any(line.labels for line in lines):
        across = _range([x for x, _ in points], pad=0.05)
    body = [*_axes(across, up, chart), *(_event(event, across) for event in chart.events)]
    body += [_line(line, _colour(line, number), across, up) for number, line in enumerate(lines)]
    scale = " ".join(f"{v:.9g}" for v in (*across, *up))
    legend = [
        Markup('<span><i class="{}"></i>{}</span>').format(_colour(line, number), line.name)
        for number, line in enumerate(lines)
    ]
    legend += [
        Markup('<span class="event">¦ {}</span>').format(what) for what in dict.fromkeys(e.what for e in chart.events)
    ]
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}" '
        'data-scale="{}" data-xname="{}">{}</svg><div class="legend">{}</div></figure>'
    ).format(
        chart.title, WIDTH, HEIGHT, chart.title, scale, escape(chart.x), Markup("").join(body), Markup("").join(legend)
    )


def stacked_bar(title: str, parts: Sequence[tuple[str, float]], unit: str = "s") -> Markup:
    """One horizontal bar whose segments are `parts`, (name, amount), with their amounts and shares below."""
    from markupsafe import Markup

    total, at, segments, legend = sum(amount for _, amount in parts), 0.0, [], []
    for number, (name, amount) in enumerate(parts):
        share = amount / total if total else 0.0
        text = f"{name}: {number_text(amount)} {unit}, {share:.1%}"
        segments.append(
            Markup('<rect class="s{}" x="{}" y="0" width="{}" height="26"><title>{}</title></rect>').format(
                number % NUM_COLOURS, f"{1000 * at:.1f}", f"{1000 * share:.1f}", text
            )
        )
        legend.append(Markup('<span><i class="s{}"></i>{}</span>').format(number % NUM_COLOURS, text))
        at += share
    return Markup(
        '<figure class="bar"><figcaption>{}: {} {}</figcaption><svg viewBox="0 0 1000 26" preserveAspectRatio="none" '
        'role="img" aria-label="{}">{}</svg><div class="legend">{}</div></figure>'
    ).format(title, number_text(total), unit, title, Markup("").join(segments), Markup("").join(legend))


def number_text(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e9):
        return f"{int(value)}"
    return f"{value:.4g}"


def signed(value: float | None) -> str:
    """A difference for people."""
    return ("+" if value is not None and value > 0 else "") + number_text(value)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, at most `most` of them."""
    rough = (high - low) / (most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about `most` points: of each of as many stretches the first, the lowest, the highest and the last."""
    if len(points) <= most:
        return list(points)
    kept, stretches = dict[int, Point](), most // 4
    for number in range(stretches):
        some = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        low, high = (pick(some, key=lambda i: points[i][1]) for pick in (min, max))
        kept |= {i: points[i] for i in sorted({some[0], low, high, some[-1]})}
    return list(kept.values())


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    room = pad * (high - low)
    return low - room, high + room


def _x(value: float, across: Point) -> float:
    return LEFT + (value - across[0]) / (across[1] - across[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, up: Point) -> float:
    return HEIGHT - BOTTOM - (value - up[0]) / (up[1] - up[0]) * (HEIGHT - TOP - BOTTOM)


def _colour(line: Series, number: int) -> str:
    """The line's classes: of more lines than there are colours the others are dashed."""
    place = number if line.colour is None else line.colour
    return f"s{place % NUM_COLOURS}" + (" dashed" if place >= NUM_COLOURS else "")


def _axes(across: Point, up: Point, chart: Chart) -> list[Markup]:
    from markupsafe import Markup

    floor, parts = HEIGHT - BOTTOM, []
    for value in ticks(*up, most=8):
        y = f"{_y(value, up):.1f}"
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
            + Markup('<text class="tick end" x="{}" y="{}" dy=".32em">{}</text>').format(LEFT - 7, y, f"{value:.6g}")
        )
    for value in ticks(*across, most=8):
        x = f"{_x(value, across):.1f}"
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x, x, floor, floor + 4)
            + Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(x, floor + 17, f"{value:.6g}")
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, floor, floor)
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text class="name middle" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 6, chart.x))
    if chart.y:
        turn = Markup('<text class="name middle" transform="translate(13 {}) rotate(-90)">{}</text>')
        parts.append(turn.format((TOP + floor) / 2, chart.y))
    return parts


def _event(event: Event, across: Point) -> Markup:
    from markupsafe import Markup

    if not across[0] <= event.step <= across[1]:
        return Markup("")
    x = f"{_x(event.step, across):.1f}"
    return Markup('<line class="event" x1="{}" x2="{}" y1="{}" y2="{}"><title>step {}: {} {}</title></line>').format(
        x, x, TOP, HEIGHT - BOTTOM, f"{event.step:g}", event.what, event.detail
    )


def _line(line: Series, colour: str, across: Point, up: Point) -> Markup:
    from markupsafe import Markup

    places = [(f"{_x(x, across):.1f}", f"{_y(y, up):.1f}") for x, y in line.points]
    inner = [Markup('<polyline points="{}"/>').format(" ".join(f"{x},{y}" for x, y in places))]
    if len(places) < MARKED:
        inner += [
            Markup('<circle cx="{}" cy="{}" r="{}"/>').format(x, y, 3.5 if line.labels else 2.2) for x, y in places
        ]
    every = max(1, math.ceil(len(line.labels) / MAX_LABELS))
    for number, (label, (x, y)) in enumerate(zip(line.labels, places, strict=False)):
        if number % every == 0 or number == len(line.labels) - 1:
            inner.append(Markup('<text class="label" x="{}" y="{}" dx="6" dy="-5">{}</text>').format(x, y, label))
    return Markup('<g class="series {}" data-name="{}" data-x="{}" data-y="{}" data-labels="{}">{}</g>').format(
        colour,
        line.name,
        " ".join(f"{x:.7g}" for x, _ in line.points),
        " ".join(f"{y:.5g}" for _, y in line.points),
        "|".join(line.labels),
        Markup("").join(inner),
    )
