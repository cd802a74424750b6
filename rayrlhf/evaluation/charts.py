"""Line charts by plotly, and stacked bars, as HTML fragments for a page that holds plotly's script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = ("#3a86d6", "#d6701c", "#2a9d6a", "#b04a9a", "#7f6bd0", "#a3831a", "#d04a60", "#5a8a99")
EVENT, TEXT, GRID = "#c8372d", "#7b8894", "rgba(128, 140, 150, 0.25)"
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
    from markupsafe import Markup

    config = {"displayModeBar": False, "responsive": True}
    drawn = Markup(plot(chart).to_html(full_html=False, include_plotlyjs=False, config=config))
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}</figure>').format(chart.title, drawn)


def plot(chart: Chart) -> Any:
    """The chart as a `plotly.graph_objects.Figure`, readable on a light and on a dark page.

    Plotly takes text for HTML, so that of series, labels and events is escaped here.
    """
    from plotly import graph_objects

    made = graph_objects.Figure()
    for number, line in enumerate(chart.series):
        place = number if line.colour is None else line.colour
        dash = "solid" if place < len(COLOURS) else "dash"  # more lines than colours
        marks = "+markers" if len(line.points) < MARKED else ""
        made.add_scatter(
            x=[x for x, _ in line.points],
            y=[y for _, y in line.points],
            name=html.escape(line.name),
            mode=f"lines{marks}{'+text' if line.labels else ''}",
            text=[html.escape(label) for label in some(line.labels)],
            hovertext=[html.escape(label) for label in line.labels],
            textposition="top center",
            textfont={"size": 10},
            line={"color": COLOURS[place % len(COLOURS)], "dash": dash, "width": 1.8},
        )
    for what in dict.fromkeys(event.what for event in chart.events):
        events = [event for event in chart.events if event.what == what]
        made.add_scatter(
            x=[event.step for event in events],
            y=[lowest(chart)] * len(events),
            name=html.escape(what),
            mode="markers",
            hovertext=[html.escape(f"step {event.step:g}: {what} {event.detail}".strip()) for event in events],
            marker={"color": EVENT, "symbol": "line-ns-open"},
        )
        for event in events:
            made.add_vline(x=event.step, line={"color": EVENT, "dash": "dot", "width": 1})
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": TEXT}
    made.update_layout(
        template="none",
        height=300,
        margin={"l": 55, "r": 12, "t": 12, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "size": 11},
        legend={"orientation": "h", "y": -0.22},
        showlegend=True,
        xaxis=axis | {"title": html.escape(chart.x)},
        yaxis=axis | {"title": html.escape(chart.y)},
    )
    return made


def some(labels: Sequence[str]) -> list[str]:
    """The labels with all but about MAX_LABELS of them, the last one among these, left empty."""
    every = max(1, math.ceil(len(labels) / MAX_LABELS))
    return [label if n % every == 0 or n == len(labels) - 1 else "" for n, label in enumerate(labels)]


def lowest(chart: Chart) -> float:
    """The least value of all lines; 0 where there is none."""
    return min((y for line in chart.series for _, y in line.points), default=0.0)


def stacked_bar(title: str, parts: Sequence[tuple[str, float]], unit: str = "s") -> Markup:
    """One horizontal bar whose segments are `parts`, (name, amount), with their amounts and shares below."""
    from markupsafe import Markup

    total, at, segments, legend = sum(amount for _, amount in parts), 0.0, [], []
    for number, (name, amount) in enumerate(parts):
        share = amount / total if total else 0.0
        text = f"{name}: {number_text(amount)} {unit}, {share:.1%}"
        segments.append(
            Markup('<rect class="s{}" x="{}" y="0" width="{}" height="26"><title>{}</title></rect>').format(
                number % len(COLOURS), f"{1000 * at:.1f}", f"{1000 * share:.1f}", text
            )
        )
        legend.append(Markup('<span><i class="s{}"></i>{}</span>').format(number % len(COLOURS), text))
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
