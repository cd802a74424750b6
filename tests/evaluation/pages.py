"""Runs in a folder, made as the jobs make them, and HTML pages read back as a browser would."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rayrlhf.checkpoint import StageWriter
from rayrlhf.metrics import MetricsLog

NASTY = "<script>alert('x')</script> & \"quotes\""


def traces(html: str) -> list[dict[str, Any]]:
    """The lines that the page's charts give plotly, as plain objects."""
    found: list[dict[str, Any]] = []
    for start in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*(?=\[)', html):
        found += json.JSONDecoder().raw_decode(html, start.end())[0]
    return found


class Page(HTMLParser):
    """Tables by id, the text outside scripts, links within the page, and everything it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: dict[str, list[dict[str, str]]] = {}  # attributes of the tables' rows
        self.loads: list[str] = []
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.series = traces(html)
        self.titles: list[str] = []  # of the charts
        self.text = ""
        self._table = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.loads += [f"{tag} {k}={values[k]}" for k in ("src", "action", "data") if k in values]
        if "href" in values:
            (self.links.add if values["href"].startswith("#") else self.loads.append)(values["href"])
        self.ids |= {values["id"]} if "id" in values else set()
        self._open.append(tag)
        if tag == "table":
            self._table = values.get("id") or "other"
            self.tables[self._table], self.rows[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
            self.rows[self._table].append(values)
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag in ("td", "th"):
            row = self.tables[self._table][-1]
            row[-1] = " ".join(row[-1].split())  # as a browser shows it

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        if "figcaption" in self._open:
            self.titles.append(data)
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.tables[self._table][-1][-1] += data


def add_stage(run_dir: Path, name: str, step: int = 0, **options: Any) -> str:
    """A stage `name` with what `options` say: kind, config, parents, metrics, is_final, files (path -> text)."""
    files = {"model/config.json": "{}"} | options.pop("files", {})
    writer = StageWriter(f"{run_dir}/{name}", step)
    for path, text in files.items():
        place = Path(writer.path, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    kind, config = options.pop("kind", name), options.pop("config", {"run": {"name": run_dir.name}})
    given = {"seconds": 12.5} | options
    return writer.finish(kind, config, given.pop("parents", {}), given.pop("metrics", {}), **given)


def add_rows(run_dir: Path, stage: str, rows: dict[int, dict[str, float]]) -> None:
    """Metrics by step, as a stage logs them."""
    log = MetricsLog(str(run_dir), stage, max(rows))
    for step, metrics in rows.items():
        log.log(step, metrics)
    log.close()


def lines(rows: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
