"""Charts as SVG: places computed by hand, numbers that can be read back, text that stays text."""

import re

import pytest

from rayrlhf.evaluation.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Event,
    Series,
    figure,
    number_text,
    signed,
    stacked_bar,
    thinned,
    ticks,
)
from tests.evaluation.pages import NASTY, Page


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0.0, 10.0, 6, [0, 2, 4, 6, 8, 10]),
        (-0.37, 1.21, 6, [0.0, 0.5, 1.0]),
        (0.0, 1e-7, 6, [0.0, 2e-8, 4e-8, 6e-8, 8e-8, 1e-7]),
        (1.0, 747.0, 8, [200, 400, 600]),
    ],
)
def test_ticks_are_round_numbers(low, high, most, found) -> None:
    assert ticks(low, high, most) == pytest.approx(found)


def test_points_lie_where_their_numbers_say() -> None:
    html = figure(Chart("t", [Series("loss", [(0, 1.0), (5, 3.0), (10, 2.0)])]))
    # y runs from 1 to 3 with 5 % of 2 as room: 0.9 to 3.1
    plot = HEIGHT - TOP - BOTTOM
    places = [(LEFT, 0.1), ((LEFT + WIDTH - RIGHT) / 2, 2.1), (WIDTH - RIGHT, 1.1)]
    wanted = " ".join(f"{x:.1f},{HEIGHT - BOTTOM - above / 2.2 * plot:.1f}" for x, above in places)
    assert f'<polyline points="{wanted}"/>' in html
    [line] = Page(html).series
    assert (line["data-name"], line["data-x"], line["data-y"]) == ("loss", "0 5 10", "1 3 2")
    assert 'data-scale="0 10 0.9 3.1"' in html, "for the page's script"


def test_a_line_without_extent_is_drawn() -> None:
    for points in ([(3, 0.5)], [(1, 2.0), (2, 2.0)], [(1, 0.0)]):
        assert "nan" not in figure(Chart("t", [Series("a", points)])).lower()
    assert figure(Chart("t", [Series("a", [])])), "nothing at all too"


def test_long_lines_keep_their_extremes() -> None:
    points = [(step, 0.0) for step in range(10_000)]
    points[4321], points[8765] = (4321, 7.0), (8765, -3.0)
    kept = thinned(points, 400)
    assert len(kept) <= 400 and (4321, 7.0) in kept and (8765, -3.0) in kept
    spikes = [(500 + 1000 * number, 10.0 - number) for number in range(10)]
    for step, height in spikes:
        points[step] = (step, height)
    assert set(spikes) < set(thinned(points, 400)), "also lower ones, elsewhere"
    assert kept[0] == (0, 0.0) and kept[-1] == (9999, 0.0)
    assert kept == sorted(kept)
    assert thinned(points[:400], 400) == points[:400], "few points are all kept"


def test_labels_name_points_but_not_too_many() -> None:
    few = [(x, float(x)) for x in range(3)]
    assert re.findall(r'class="label"[^>]*>(\d+)', figure(Chart("t", [Series("a", few, ["0", "10", "20"])]))) == [
        "0",
        "10",
        "20",
    ]
    many = [(x, float(x)) for x in range(30)]
    labels = re.findall(
        r'class="label"[^>]*>(\d+)', figure(Chart("t", [Series("a", many, [str(x) for x in range(30)])]))
    )
    assert labels == ["0", "3", "6", "9", "12", "15", "18", "21", "24", "27", "29"], "every third, and the last"


def test_more_lines_than_colours_are_told_apart() -> None:
    html = figure(Chart("t", [Series(f"line {n}", [(0, float(n))]) for n in range(9)]))
    classes = [line["class"] for line in Page(html).series]
    assert classes == [f"series s{n}" for n in range(8)] + ["series s0 dashed"]
    assert '<i class="s0 dashed"></i>line 8' in html


def test_events_stand_across_the_chart() -> None:
    events = [Event(5, "skipped", "1 optimizer step(s)"), Event(8, "skipped"), Event(11, "rolled back")]
    html = figure(Chart("t", [Series("a", [(0, 0.0), (10, 1.0)])], events=events))
    middle = f"{(LEFT + WIDTH - RIGHT) / 2:.1f}"
    assert f'<line class="event" x1="{middle}" x2="{middle}"' in html
    assert "<title>step 5: skipped 1 optimizer step(s)</title>" in html
    assert html.count('<line class="event"') == 2, "step 11 is outside"
    assert html.count("¦ skipped") == 1, "in the legend once"


def test_text_stays_text() -> None:
    chart = Chart(NASTY, [Series(NASTY, [(0, 0.0)], [NASTY])], NASTY, NASTY, [Event(0, NASTY, NASTY)])
    for html in (figure(chart), stacked_bar(NASTY, [(NASTY, 1.0)], NASTY)):
        assert "<script" not in html and "&lt;script&gt;" in html
    assert Page(figure(chart)).series[0]["data-name"] == NASTY


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
