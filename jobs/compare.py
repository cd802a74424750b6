"""`rayrlhf compare RUN1 RUN2 [...] [--output FILE]`: runs over one another in one HTML file, and a table here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from jobs.command import USER_ERROR, complain
from rayrlhf.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rayrlhf.evaluation.comparison import Comparison

DEFAULT_OUTPUT = "comparison.html"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. {self.format_usage().strip()}")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    try:
        return _main(argv)
    except UserError as error:
        complain(str(error))
        return USER_ERROR


def _main(argv: Sequence[str]) -> int:
    parser = _Parser(prog="rayrlhf compare", description="Overlay runs in one HTML file.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="such as runs/demo; two or more")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="FILE", help=f"default: {DEFAULT_OUTPUT}")
    given = parser.parse_intermixed_args(argv)
    folder = os.path.dirname(os.path.abspath(given.output))
    if os.path.isdir(given.output) or not os.path.isdir(folder):
        what = "is a folder" if os.path.isdir(given.output) else f"cannot be written: there is no folder {folder}"
        raise ConfigError(f"--output={given.output} {what}; give the path of an HTML file")

    from jobs.stage_configs import config_class
    from rayrlhf.evaluation.comparison import compare, html

    found = compare(given.runs, config_class)
    with open(given.output, "w", encoding="utf-8") as file:
        file.write(html(found))
    _show(found)
    print(f"\ncomparison: {given.output}")
    return 0


def _show(found: Comparison) -> None:
    """The headline numbers, and how much else differs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rayrlhf.evaluation.charts import number_text, signed

    table = Table("evaluation" if found.evaluation else "seconds of the stage")
    for label in found.labels:
        table.add_column(Text(label), justify="right")
    for row in found.evaluation or found.seconds:
        cells = [number_text(value) for value in row.values]
        for number, difference in enumerate(row.differences, start=1):
            cells[number] += "" if difference is None else f" ({signed(difference)})"
        table.add_row(row.name.removeprefix("eval/"), *cells)
    console = Console()
    console.print(table)
    equal = [text.are_equal for text in found.data]
    console.print(
        f"{len(found.configs)} keys of the configuration differ; of {len(equal)} hashes of data and models "
        f"{sum(equal)} are equal",
        highlight=False,
    )
