"""Runs on a page: `rayrlhf report RUN` and `rayrlhf compare RUN1 RUN2 [...] [--output FILE]`, without a cluster.

A pipeline writes its report itself; `report` is for runs made job by job, and for those of another day.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.command import USER_ERROR, ToolParser, complain
from rayrlhf.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rayrlhf.evaluation.comparison import Comparison

DEFAULT_OUTPUT = "comparison.html"


def run(tool: str, argv: Sequence[str]) -> int:
    """`report` or `compare`; returns the exit code."""
    try:
        {"report": report, "compare": compare}[tool](argv)
    except UserError as error:
        complain(str(error))
        return USER_ERROR
    return 0


def report(argv: Sequence[str]) -> None:
    """Write a run's `report.html` and `summary.json` anew."""
    parser = ToolParser(prog="rayrlhf report", description="Write report.html and summary.json.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="such as runs/demo")
    given = parser.parse_args(argv)

    from jobs.stage_configs import config_class
    from rayrlhf.evaluation.report import write_report, write_summary
    from rayrlhf.evaluation.run_files import check_run

    check_run(given.run)
    print(f"summary: {write_summary(given.run)}\nreport: {write_report(given.run, config_class)}")


def compare(argv: Sequence[str]) -> None:
    """Overlay runs in one HTML file, with a table of their headline numbers here."""
    parser = ToolParser(prog="rayrlhf compare", description="Overlay runs in one HTML file.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="such as runs/demo; two or more")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="FILE", help=f"default: {DEFAULT_OUTPUT}")
    given = parser.parse_intermixed_args(argv)
    folder = os.path.dirname(os.path.abspath(given.output))
    if os.path.isdir(given.output) or not os.path.isdir(folder):
        what = "is a folder" if os.path.isdir(given.output) else f"cannot be written: there is no folder {folder}"
        raise ConfigError(f"--output={given.output} {what}; give the path of an HTML file")

    from jobs.stage_configs import config_class
    from rayrlhf.evaluation import comparison

    found = comparison.compare(given.runs, config_class)
    with open(given.output, "w", encoding="utf-8") as file:
        file.write(comparison.html(found))
    _show(found)
    print(f"\ncomparison: {given.output}")


def _show(found: Comparison) -> None:
    """The headline numbers, and how much else differs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rayrlhf.evaluation.charts import number_text, signed

    table = Table()
    table.add_column("evaluation" if found.evaluation else "seconds of the stage", no_wrap=True)
    for label in found.labels:
        table.add_column(Text(label), justify="right")
    for row in found.evaluation or found.seconds:
        cells = [number_text(value) for value in row.values]
        for number, difference in enumerate(row.differences, start=1):
            cells[number] += "" if difference is None else f" ({signed(difference)})"
        table.add_row(Text(row.name.removeprefix("eval/")), *cells)
    console = Console()
    console.print(table)
    equal = [text.are_equal for text in found.data]
    console.print(
        f"{len(found.configs)} keys of the configuration differ; of {len(equal)} hashes of data and models "
        f"{sum(equal)} are equal",
        highlight=False,
    )
