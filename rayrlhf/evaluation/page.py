"""One HTML file from a template, with everything in it: it loads nothing and works from a folder."""

from __future__ import annotations

import math
from typing import Any

from rayrlhf.evaluation import charts


def render(template: str, **values: Any) -> str:
    """The page of `templates/TEMPLATE`; all text in `values` is escaped."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    loader = jinja2.PackageLoader("rayrlhf.evaluation", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": charts.number_text,
        "signed": charts.signed,
        "data": data,
        "duration": duration,
        "figure": charts.figure,
    }
    given = {"bar": charts.stacked_bar, "plotly_js": Markup(get_plotlyjs()), "colours": charts.COLOURS}
    return environment.get_template(template).render(**given, **values)


def data(value: float | None) -> str:
    """A number for the page's script; "" where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    named = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{amount} {unit}" for amount, unit in named if amount) or "0 s"
