"""The Grafana dashboard of a run's metrics, a panel each, generated from rayrlhf/metric_names.py.

`python -m cluster.dashboards` puts it where Grafana, started with the configuration that Ray generates, finds it:
among the dashboards of the newest Ray session on this machine (run it on the head node), or in the folder that it is
given.  `--write` makes cluster/grafana/rayrlhf.json anew.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from rayrlhf.metric_names import GAUGE_PREFIX, METRICS, Metric, Unit

FILE = Path(__file__).parent / "grafana" / "rayrlhf.json"
_FOLDER = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"  # Ray's variable for its own dashboards
_UNITS: dict[Unit, str] = {
    "": "short",
    "s": "s",
    "bytes": "bytes",
    "share": "percentunit",
}  # Grafana's; others: a suffix
_SELECTED = 'run=~"$run", stage=~"$stage"'
_COLUMNS, _WIDTH, _HEIGHT = 24, 6, 7
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def query(metric: Metric) -> str:
    """PromQL: a line a run and stage, whichever process logs it; with `*` also a line a name."""
    if "*" in metric.name:
        plain = (other.gauge for other in METRICS if "*" not in other.name)
        others = [f"ray_{gauge}" for gauge in plain if re.fullmatch(metric.gauge, gauge)]
        own = f'__name__=~"ray_{metric.gauge}"' + (f', __name__!~"{"|".join(others)}"' if others else "")
        return f"max by (__name__, run, stage) ({{{own}, {_SELECTED}}})"
    return f"max by (run, stage) (ray_{metric.gauge}{{{_SELECTED}}})"


def dashboard() -> dict[str, Any]:
    """Grafana's JSON: a row of panels a group, variables for the data source, runs and stages."""
    panels: list[dict[str, Any]] = []
    y = 0
    for group in dict.fromkeys(metric.group for metric in METRICS):
        metrics = [metric for metric in METRICS if metric.group == group]
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        row_panel = {"type": "row", "title": group, "collapsed": False, "panels": [], "gridPos": place}
        panels.append({"id": len(panels) + 1} | row_panel)
        y += 1
        for number, metric in enumerate(metrics):
            row, column = divmod(number, _COLUMNS // _WIDTH)
            place = {"x": column * _WIDTH, "y": y + row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            panels.append(_panel(metric, len(panels) + 1, place))
        y += -(-len(metrics) // (_COLUMNS // _WIDTH)) * _HEIGHT
    return {
        "uid": "rayrlhf",
        "title": "rayrlhf",
        "description": "Metrics of RLHF runs, from their Ray gauges",
        "tags": ["rayrlhf"],
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "schemaVersion": 39,
        "templating": {"list": [_data_source(), _choice("run"), _choice("stage")]},
        "panels": panels,
    }


def text() -> str:
    """The file's content, a panel a line."""
    whole = dashboard()
    panels = ",\n  ".join(map(json.dumps, whole.pop("panels")))
    return f'{json.dumps(whole, indent=1)[:-2]},\n "panels": [\n  {panels}\n ]\n}}\n'


def install(folder: str | os.PathLike[str]) -> Path:
    """Put the dashboard into `folder`; its path there."""
    path = Path(folder) / FILE.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(), encoding="utf-8")
    return path


def folder_of(session: str = "session_latest") -> Path:
    """Where the dashboards of a Ray session that was started on this machine lie."""
    sessions = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    return Path(os.environ.get(_FOLDER) or sessions / session / "metrics" / "grafana" / "dashboards")


def main(argv: list[str]) -> int:
    if argv == ["--write"]:
        print(install(FILE.parent))
        return 0
    folder = Path(argv[0]) if argv else folder_of()
    if not folder.is_dir():
        print(
            f"error: no folder {folder}: run this on the head node of a Ray cluster, or give a folder", file=sys.stderr
        )
        return 2
    print(install(folder))
    return 0


def _panel(metric: Metric, number: int, place: dict[str, int]) -> dict[str, Any]:
    stages, needs = ", ".join(metric.stages), f"; with {metric.when}" if metric.when else ""
    legend = "{{__name__}} {{run}} {{stage}}" if "*" in metric.name else "{{run}} {{stage}}"
    target = {"refId": "A", "datasource": _SOURCE, "expr": query(metric), "legendFormat": legend, "range": True}
    unit = _UNITS.get(metric.unit, f"suffix: {metric.unit}")
    return {
        "id": number,
        "type": "timeseries",
        "title": f"{metric.name}: {metric.meaning}",
        "description": f"{metric.name} ({metric.kind} of a step; {stages}{needs})",
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"spanNulls": True}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": [target],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "data source"}


def _choice(label: str) -> dict[str, Any]:
    """A variable of the values of a label: any of them at once."""
    values = f'label_values({{__name__=~"ray_{GAUGE_PREFIX}.+"}}, {label})'
    more = {"multi": True, "includeAll": True, "allValue": ".+", "current": {"text": "All", "value": "$__all"}}
    return {"name": label, "type": "query", "datasource": _SOURCE, "query": values, "refresh": 2, "sort": 1} | more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
