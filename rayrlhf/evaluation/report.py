"""`report.html` and `summary.json` of a run: what every stage was given, did and reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayrlhf.config import Section
from rayrlhf.evaluation import config_changes, curves, page, rows_used, times
from rayrlhf.evaluation.run_files import Row, Run, Stage, finite, read_run, write_text

MAX_SAMPLES = 500
# stage's kind -> the configuration of the job that makes it, None for a kind of another version; jobs know them
ConfigClass = Callable[[str], type[Section] | None]


@dataclass(frozen=True)
class StageConfig:
    """A stage's keys: those that differ from the defaults, and the others; all others where it is not known."""

    is_known: bool
    changed: list[config_changes.Key]
    rest: list[config_changes.Key]


@dataclass(frozen=True)
class Environment:
    """Stages that were made in the same environment, and (what, value) of it."""

    stages: list[str]
    facts: list[tuple[str, str]]


def write_summary(run_dir: str) -> str:
    """Write `summary.json` and return its path.

    Per stage: directory, kind, step, seconds, hash, metrics; and the evaluation's numbers.
    Numbers that are not finite are null.
    """
    run = read_run(run_dir)
    summary = {
        "run": run.name,
        "seconds": run.seconds,
        "stages": {
            stage.name: {
                "directory": stage.directory,
                "kind": stage.kind,
                "step": stage.manifest["step"],
                "seconds": stage.manifest["seconds"],
                "hash": stage.hash,
                "metrics": {name: finite(value) for name, value in stage.manifest["metrics"].items()},
            }
            for stage in run.stages
        },
        "evaluation": {name: finite(value) for name, value in run.evaluation.items()},
    }
    return write_text(run_dir, "summary.json", json.dumps(summary, indent=1))


def write_report(run_dir: str, config_class: ConfigClass = lambda kind: None) -> str:
    """Write `report.html`, one file that loads nothing from elsewhere, and return its path."""
    run = read_run(run_dir)
    used = [(stage.name, rows_used.data_metrics(stage, run.rows.get(stage.name, []))) for stage in run.stages]
    read = [entry for name, metrics in used for entry in rows_used.rows_read(name, metrics)]
    mixtures = [entry for name, metrics in used for entry in rows_used.mixture(name, metrics)]
    drawn = {name: (curves.charts(rows), curves.other_charts(rows)) for name, rows in run.rows.items()}
    html = page.render(
        "report.html.jinja",
        run=run,
        sections=_sections(run, any(map(any, drawn.values())), bool(run.cards or read or mixtures)),
        evaluation=evaluation_table(run.evaluation),
        win_rates=win_rates(run.evaluation),
        drawn={name: found for name, found in drawn.items() if any(found)},
        events={name: curves.events(rows) for name, rows in run.rows.items()},
        most=MAX_SAMPLES,
        gain=_gain,
        stage_times=times.stage_times(run),
        stage_parts=[(stage.name, stage.manifest["seconds"]) for stage in run.stages],
        call_times={name: calls for name, rows in run.rows.items() if (calls := times.call_times(rows))},
        by_phase=times.by_phase,
        by_role=times.by_role,
        rows_read=read,
        mixtures=mixtures,
        lengths=lengths,
        configs={stage.name: stage_config(stage, config_class(stage.kind)) for stage in run.stages},
        environments=environments(run.stages),
    )
    return write_text(run_dir, "report.html", html)


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


def stage_config(stage: Stage, cls: type[Section] | None) -> StageConfig:
    """A stage's configuration against the defaults of its job."""
    keys = config_changes.keys(stage.manifest["config"], cls)
    changed = [key for key in keys if key.is_changed]
    return StageConfig(all(key.is_changed is not None for key in keys), changed, [k for k in keys if not k.is_changed])


def environments(stages: list[Stage]) -> list[Environment]:
    """Stages by what they were made with: machine, packages, commit, command line."""
    found: list[Environment] = []
    for stage in stages:
        facts = _facts(stage.manifest)
        same = next((group for group in found if group.facts == facts), None)
        if same is None:
            found.append(Environment([stage.name], facts))
        else:
            same.stages.append(stage.name)
    return found


def _facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    given, facts = manifest.get("environment", {}), dict[str, str]()
    facts["command line"] = given.get("command") or "not recorded"
    facts["git commit"] = given.get("commit") or "not known"
    if given:
        gpus = ", ".join(given["gpus"]) or "none"
        facts["machine"] = f"{given['cpu'] or 'unknown CPU'}, {given['cores']} cores, {given['memory_gib']} GiB"
        facts |= {"GPU": gpus, "platform": given["platform"], "Python": given["python"]}
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return list(facts.items())


def _sections(run: Run, is_drawn: bool, is_data: bool) -> list[tuple[str, str]]:
    """(anchor, title) of the parts that the page has."""
    there = {
        ("result", "Result"): bool(evaluation_table(run.evaluation)),
        ("lineage-of-stages", "Stages"): bool(run.stages),
        ("curves", "Curves"): is_drawn,
        ("samples-of-text", "Samples"): bool(run.samples or run.before_after),
        ("time", "Time"): bool(run.stages),
        ("data", "Data"): is_data,
        ("config", "Configuration"): bool(run.stages),
        ("environment", "Environment"): bool(run.stages),
    }
    return [section for section, is_there in there.items() if is_there]


def _gain(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
