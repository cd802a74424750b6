"""`report.html` and `summary.json` of a run: what every stage was given, did and reached.

Both read only `stage.json`, `metrics.jsonl` and the samples, so they work on a run of which some
stages are not finished, and on any file system that fsspec takes.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import fsspec

from rayrlhf.checkpoint import MANIFEST, stage_hash
from rayrlhf.metrics import ROW_KEYS

if TYPE_CHECKING:
    from markupsafe import Markup

# title of a chart -> the metrics it shows, as patterns; a stage gets the charts it has metrics for
CHARTS = {
    "Loss": ("loss", "loss/*", "*/loss"),
    "Accuracy": ("*accurac*",),
    "Rewards of chosen and rejected": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "Reward": ("objective/scores", "objective/rlhf_reward", "objective/non_score_reward", "eval/score"),
    "KL to the reference, nats a sequence": ("objective/kl", "eval/kl"),
    "Gold score (never trained on)": ("eval/gold", "eval/gold_positive_share"),
    "Response length, tokens": ("rollout/length", "eval/length"),
    "Entropy, nats a token": ("objective/entropy",),
    "Policy update": ("policy/approxkl_avg", "policy/clipfrac_avg"),
    "Diversity": ("eval/distinct_2",),
}
NUM_SAMPLES = 12
Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One finished stage: its newest step."""

    name: str
    directory: str
    hash: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """All that a run's directory holds for the report."""

    name: str
    stages: list[Stage]
    rows: dict[str, list[Row]]  # of metrics.jsonl, by stage, in order of step
    samples: list[Row]  # of the evaluation: prompt, baseline, policy and their scores
    before_after: list[Row]  # of PPO's own evaluations: prompt, before, after
    cards: dict[str, Row]  # data cards, by stage


def read_run(run_dir: str) -> Run:
    """Read `runs/NAME`; a run without any finished stage gives an empty one."""
    filesystem, root = fsspec.core.url_to_fs(run_dir.rstrip("/"))
    stages = []
    entries = filesystem.ls(root, detail=False, refresh=True) if filesystem.isdir(root) else []
    for folder in sorted(entry.rstrip("/") for entry in entries):
        if not filesystem.isfile(f"{folder}/latest"):
            continue
        directory = f"{folder}/{filesystem.cat_file(f'{folder}/latest').decode().strip()}"
        manifest = json.loads(filesystem.cat_file(f"{directory}/{MANIFEST}"))
        prefix = f"{run_dir.rstrip('/')}/" + folder.rsplit("/", 1)[-1]
        shown = f"{prefix}/{directory.rsplit('/', 1)[-1]}"
        stages.append(Stage(folder.rsplit("/", 1)[-1], shown, stage_hash(shown), manifest))
    stages.sort(key=lambda stage: (stage.manifest["created"], stage.name))
    evaluated = [stage for stage in stages if stage.manifest["kind"] == "evaluate"]
    samples = _jsonl(filesystem, f"{_local(evaluated[-1])}/state/samples.jsonl") if evaluated else []
    cards = {stage.name: card for stage in stages if (card := _card(filesystem, stage)) is not None}
    return Run(
        root.rsplit("/", 1)[-1], stages, _rows(filesystem, root), samples, _before_after(filesystem, root), cards
    )


def write_summary(run_dir: str) -> str:
    """Write `summary.json` and return its path.

    Per stage: directory, kind, step, seconds, hash, metrics; and the evaluation's numbers.
    Numbers that are not finite are null.
    """
    run = read_run(run_dir)
    summary = {
        "run": run.name,
        "seconds": sum(stage.manifest["seconds"] for stage in run.stages),
        "stages": {
            stage.name: {
                "directory": stage.directory,
                "kind": stage.manifest["kind"],
                "step": stage.manifest["step"],
                "seconds": stage.manifest["seconds"],
                "hash": stage.hash,
                "metrics": {name: _finite(value) for name, value in stage.manifest["metrics"].items()},
            }
            for stage in run.stages
        },
        "evaluation": {name: _finite(value) for name, value in _evaluation(run).items()},
    }
    return _write(run_dir, "summary.json", json.dumps(summary, indent=1))


def write_report(run_dir: str) -> str:
    """Write `report.html`, one file that loads nothing from elsewhere, and return its path."""
    import jinja2
    import yaml
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    run = read_run(run_dir)
    template = resources.files("rayrlhf.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = shown
    html = environment.from_string(template).render(
        run=run,
        plotly_js=Markup(get_plotlyjs()),
        charts={name: charts(rows) for name, rows in run.rows.items()},
        evaluation=evaluation_table(_evaluation(run)),
        win_rates=win_rates(_evaluation(run)),
        lengths=lengths,
        configs={stage.name: yaml.safe_dump(stage.manifest["config"], sort_keys=False) for stage in run.stages},
    )
    return _write(run_dir, "report.html", html)


def charts(rows: list[Row]) -> list[Markup]:
    """One chart (an HTML fragment without plotly's own script) for each title of CHARTS that has metrics."""
    from markupsafe import Markup
    from plotly import graph_objects

    names = sorted({name for row in rows for name in row} - set(ROW_KEYS))
    fragments = []
    for title, patterns in CHARTS.items():
        wanted = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
        if not wanted:
            continue
        figure = graph_objects.Figure()
        for name in wanted:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            x, y = [point[0] for point in points], [point[1] for point in points]
            figure.add_scatter(x=x, y=y, name=name, mode="lines+markers" if len(x) < 30 else "lines")
        figure.update_layout(
            title=title,
            height=300,
            margin={"l": 50, "r": 10, "t": 40, "b": 35},
            legend={"orientation": "h", "y": -0.2},
            template="plotly_white",
            showlegend=True,
        )
        config = {"displaylogo": False, "responsive": True}
        fragments.append(Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config)))
    return fragments


def evaluation_table(metrics: dict[str, float]) -> list[tuple[str, float | None, float | None]]:
    """(name, baseline's value, policy's value) for each `eval/policy/*` metric."""
    names = [name.removeprefix("eval/policy/") for name in metrics if name.startswith("eval/policy/")]
    return [(n, metrics.get(f"eval/baseline/{n}"), metrics[f"eval/policy/{n}"]) for n in sorted(names)]


def win_rates(metrics: dict[str, float]) -> list[tuple[str, float, float, float]]:
    """(judge, rate, low, high) for each `eval/win_rate_JUDGE`."""
    judges = [n.removeprefix("eval/win_rate_") for n in metrics if n.startswith("eval/win_rate_")]
    return [
        (
            judge,
            metrics[f"eval/win_rate_{judge}"],
            metrics[f"eval/win_rate_{judge}_low"],
            metrics[f"eval/win_rate_{judge}_high"],
        )
        for judge in judges
        if not judge.endswith(("_low", "_high"))
    ]


def lengths(card: Row) -> list[Row]:
    """Rows read and kept by their length, from a data card: {from, to, read, kept} of each bin."""
    bins: dict[tuple[int, int], Row] = {}
    for name in ("read", "kept"):
        for entry in card[f"characters_{name}"]:
            bounds = entry["from"], entry["to"]
            row = bins.setdefault(bounds, {"from": bounds[0], "to": bounds[1], "read": 0, "kept": 0})
            row[name] = entry["rows"]
    return [bins[bounds] for bounds in sorted(bins)]


def shown(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e9):
        return f"{int(value)}"
    return f"{value:.4g}"


def _evaluation(run: Run) -> dict[str, float]:
    found = [stage.manifest["metrics"] for stage in run.stages if stage.manifest["kind"] == "evaluate"]
    return found[-1] if found else {}


def _rows(filesystem: Any, root: str) -> dict[str, list[Row]]:
    """Metrics by stage; of a step that a resumed stage did again, the later values."""
    by_step: dict[str, dict[int, Row]] = defaultdict(dict)
    for path in sorted(filesystem.glob(f"{root}/metrics*.jsonl")):
        for row in _jsonl(filesystem, path):
            by_step[row["stage"]][row["step"]] = row
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in by_step.items()}


def _before_after(filesystem: Any, root: str) -> list[Row]:
    """PPO's samples on the same prompts at its first and at its last evaluation."""
    files = sorted(filesystem.glob(f"{root}/ppo/samples/step_*.jsonl"))
    if len(files) < 2:
        return []
    after = {row["prompt"]: row for row in _jsonl(filesystem, files[-1])}
    before = [row for row in _jsonl(filesystem, files[0]) if row["prompt"] in after]
    return [{"prompt": row["prompt"], "before": row, "after": after[row["prompt"]]} for row in before][:NUM_SAMPLES]


def _card(filesystem: Any, stage: Stage) -> Row | None:
    """The data card of a stage, None where it has none."""
    path = f"{_local(stage)}/state/data_card.json"
    return json.loads(filesystem.cat_file(path)) if filesystem.isfile(path) else None


def _jsonl(filesystem: Any, path: str) -> list[Row]:
    """The objects of a file's lines; none where there is no file.

    The last line may be half written, by a run that is going on or was killed.
    """
    if not filesystem.isfile(path):
        return []
    text = filesystem.cat_file(path).decode()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def _local(stage: Stage) -> str:
    return fsspec.core.url_to_fs(stage.directory)[1]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write(run_dir: str, name: str, text: str) -> str:
    path = f"{run_dir.rstrip('/')}/{name}"
    filesystem, where = fsspec.core.url_to_fs(path)
    filesystem.pipe_file(where, text.encode())
    return path
