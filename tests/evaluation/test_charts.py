"""Charts: what plotly is given, bars by hand, and text that stays text."""

import re

import pytest

from rayrlhf.evaluation.charts import (
    COLOURS,
    EVENT,
    Chart,
    Event,
    Series,
    figure,
    number_text,
    plot,
    signed,
    stacked_bar,
)
from tests.evaluation.pages import NASTY, Page


def test_lines_are_given_with_their_names_and_points() -> None:
    chart = Chart("t", [Series("loss", [(0, 1.0), (5, 3.0)]), Series("other", [(n, 0.5) for n in range(50)])], y="nats")
    loss, other = plot(chart).data
    assert (loss.name, loss.x, loss.y, loss.mode) == ("loss", (0, 5), (1.0, 3.0), "lines+markers")
    assert len(other.x) == 50 and other.mode == "lines"
    assert plot(chart).layout.yaxis.title.text == "nats" and plot(chart).layout.xaxis.title.text == "step"
    [page_loss, _] = Page(figure(chart)).series
    assert (page_loss["name"], page_loss["x"], page_loss["y"]) == ("loss", [0, 5], [1.0, 3.0])


def test_a_chart_without_a_point_is_drawn() -> None:
    for series in ([], [Series("a", [])], [Series("a", [(3, 0.5)])]):
        assert "<figcaption>t</figcaption>" in figure(Chart("t", series, events=[Event(1, "skipped")]))


def test_labels_name_points_but_not_too_many() -> None:
    few = [(x, float(x)) for x in range(3)]
    assert plot(Chart("t", [Series("a", few, ["0", "10", "20"])])).data[0].text == ("0", "10", "20")
    many = [(x, float(x)) for x in range(30)]
    line = plot(Chart("t", [Series("a", many, [str(x) for x in range(30)])])).data[0]
    shown = [label for label in line.text if label]
    assert shown == ["0", "3", "6", "9", "12", "15", "18", "21", "24", "27", "29"], "every third, and the last"
    assert len(line.hovertext) == 30 and line.mode == "lines+markers+text"


def test_more_lines_than_colours_are_told_apart() -> None:
    lines = plot(Chart("t", [Series(f"line {n}", [(0, float(n))]) for n in range(9)])).data
    assert [line.line.color for line in lines] == [*COLOURS, COLOURS[0]]
    assert [line.line.dash for line in lines] == ["solid"] * 8 + ["dash"]
    assert plot(Chart("t", [Series("b", [(0, 1.0)], colour=1)])).data[0].line.color == COLOURS[1]


def test_events_stand_across_the_chart() -> None:
    events = [Event(5, "skipped", "1 optimizer step(s)"), Event(8, "skipped"), Event(9, "rolled back")]
    made = plot(Chart("t", [Series("a", [(0, 2.0), (10, 1.0)])], events=events))
    _, skipped, back = made.data
    assert (skipped.name, skipped.x, skipped.y) == ("skipped", (5, 8), (1.0, 1.0))
    assert skipped.hovertext == ("step 5: skipped 1 optimizer step(s)", "step 8: skipped")
    assert back.name == "rolled back"
    assert [(shape.x0, shape.x1, shape.line.color) for shape in made.layout.shapes] == [
        (x, x, EVENT) for x in (5, 8, 9)
    ]


def test_text_stays_text() -> None:
    chart = Chart(NASTY, [Series(NASTY, [(0, 0.0)], [NASTY])], NASTY, NASTY, [Event(0, NASTY, NASTY)])
    for found in (figure(chart), stacked_bar(NASTY, [(NASTY, 1.0)], NASTY)):
        assert "<script>alert" not in found and "&lt;script&gt;" in found
    line, event = Page(figure(chart)).series
    # plotly takes some tags in text for markup: it is given none
    for text in (line["name"], line["text"][0], event["name"], event["hovertext"][0]):
        assert "<" not in text and "&lt;script&gt;" in text


def test_a_bar_shows_shares() -> None:
    html = stacked_bar("time", [("a", 30.0), ("b", 10.0)])
    assert re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)"', html) == [("0.0", "750.0"), ("750.0", "250.0")]
    assert "a: 30 s, 75.0%" in Page(html).text and Page(html).titles == ["time: 40 s"]
    assert stacked_bar("nothing", []), "without parts too"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (13.0, "13"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (-2, "-2"),
        (1e12, "1e+12"),
    ],
)
def test_numbers_for_people(value, text) -> None:
    assert number_text(value) == text


def test_differences_have_a_sign() -> None:
    assert [signed(v) for v in (0.25, -0.25, 0.0, None)] == ["+0.25", "-0.25", "0", "–"]
