"""Runs side by side: headline numbers, configurations key by key, data by their hashes, curves over one another."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec

from rayrlhf.errors import ConfigError
from rayrlhf.evaluation import config_changes, curves, page
from rayrlhf.evaluation.charts import Chart
from rayrlhf.evaluation.report import ConfigClass
from rayrlhf.evaluation.run_files import Row, Run, Stage, check_run, finite, metric_names, read_run

OWN = "RUN"  # stands for a run's own directory where two runs' configurations are compared
_MADE_OF_DATA = ("prepare", "pairs")  # kinds of stages whose tables are compared by content
_PLACE = ("run.name", "run.root")  # where a run lies, not what it does


@dataclass(frozen=True)
class Numbers:
    """One number of each run, None where a run has it not."""

    name: str
    values: tuple[float | None, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """Of each run but the first: its value less the first's."""
        first, *others = self.values
        return tuple(None if first is None or value is None else value - first for value in others)


@dataclass(frozen=True)
class Texts:
    """One text of each run, None where a run has it not."""

    stage: str
    name: str
    values: tuple[str | None, ...]

    @property
    def are_equal(self) -> bool:
        return len(set(self.values)) == 1


@dataclass(frozen=True)
class Comparison:
    """Everything in it is in the order of `labels`, one a run."""

    labels: tuple[str, ...]
    runs: tuple[Run, ...]
    evaluation: list[Numbers]
    metrics: dict[str, list[Numbers]]  # of each stage's last step
    seconds: list[Numbers]
    configs: list[Texts]  # keys that differ
    data: list[Texts]  # hashes of tables, models and outside inputs, equal or not
    charts: dict[str, list[Chart]]
    others: dict[str, list[Chart]]


def compare(paths: Sequence[str], config_class: ConfigClass = lambda kind: None) -> Comparison:
    """Read and compare runs.  ConfigError for fewer than two or one twice, CheckpointError for what is no run."""
    if len(paths) < 2:
        raise ConfigError(f"compare takes two runs or more, got {len(paths)}: rayrlhf compare runs/ONE runs/OTHER")
    for path in paths:
        check_run(path)
    places = [_place(path) for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{paths[number]} and {paths[places.index(place)]} are the same run: give two")
    runs = [read_run(path) for path in paths]
    labels = labelled([run.name for run in runs], paths)
    rows = {
        stage: {label: run.rows[stage] for label, run in zip(labels, runs, strict=True) if stage in run.rows}
        for stage in _in_order([list(run.rows) for run in runs])
    }
    stages = _in_order([[stage.name for stage in run.stages] for run in runs])
    return Comparison(
        labels=labels,
        runs=tuple(runs),
        evaluation=_numbers([run.evaluation for run in runs]),
        metrics={name: _numbers([_metrics(run, name) for run in runs]) for name in stages},
        seconds=[*_numbers([{s.name: s.manifest["seconds"] for s in run.stages} for run in runs], stages)],
        configs=[text for name in stages for text in _configs(name, runs, config_class)],
        data=[text for name in stages for text in _hashes(name, runs)],
        charts={name: found for name, given in rows.items() if (found := _overlays(labels, given, True))},
        others={name: _overlays(labels, given, False) for name, given in rows.items()},
    )


def html(comparison: Comparison) -> str:
    """The comparison as one page that loads nothing from elsewhere."""
    return page.render("comparison.html.jinja", **vars(comparison), zip=zip)


def labelled(names: Sequence[str], paths: Sequence[str]) -> tuple[str, ...]:
    """A label a run: its name; of runs of one name also the folder above, as much of it as tells them apart."""
    labels = list(names)
    for depth in range(1, 1 + max(len(_parts(path)) for path in paths)):
        same = {label for label in labels if labels.count(label) > 1}
        if not same:
            break
        for number, label in enumerate(labels):
            above = _parts(paths[number])[:-1][-depth:]
            if label in same and above:
                labels[number] = f"{names[number]} ({'/'.join(above)})"
    return tuple(labels)


def _place(path: str) -> str:
    filesystem, where = fsspec.core.url_to_fs(path.rstrip("/"))
    return os.path.realpath(where) if "file" in filesystem.protocol else filesystem.unstrip_protocol(where)


def _parts(path: str) -> list[str]:
    return [part for part in _place(path).split("/") if part]


def _in_order(names: Sequence[Sequence[str]]) -> list[str]:
    """All names, those of the first run first."""
    return list(dict.fromkeys(name for some in names for name in some))


def _stage(run: Run, name: str) -> Stage | None:
    return next((stage for stage in run.stages if stage.name == name), None)


def _metrics(run: Run, name: str) -> dict[str, float]:
    stage = _stage(run, name)
    return {} if stage is None else stage.manifest["metrics"]


def _numbers(found: Sequence[dict[str, float]], names: Sequence[str] | None = None) -> list[Numbers]:
    wanted = sorted({name for values in found for name in values}) if names is None else names
    return [Numbers(name, tuple(finite(values.get(name)) for values in found)) for name in wanted]


def _configs(name: str, runs: Sequence[Run], config_class: ConfigClass) -> list[Texts]:
    """The keys of a stage that differ.  A run's own directory is no difference."""
    found = list[dict[str, str] | None]()
    for run in runs:
        stage = _stage(run, name)
        if stage is not None:
            whole = config_changes.completed(stage.manifest["config"], config_class(stage.kind))
            leaves = {k: _without_place(config_changes.text(v), stage) for k, v in config_changes.flat(whole).items()}
            found.append({key: text for key, text in leaves.items() if key not in _PLACE})
        else:
            found.append(None)
    if sum(leaves is not None for leaves in found) < 2:
        return []
    keys = _in_order([list(leaves) for leaves in found if leaves is not None])
    texts = [Texts(name, key, tuple(None if v is None else v.get(key) for v in found)) for key in keys]
    there = [number for number, leaves in enumerate(found) if leaves is not None]
    return [text for text in texts if len({text.values[number] for number in there}) > 1]


def _without_place(text: str, stage: Stage) -> str:
    own = stage.manifest["config"].get("run")
    if not isinstance(own, dict) or "name" not in own:
        return text
    return text.replace(f"{str(own.get('root', 'runs')).rstrip('/')}/{own['name']}/", f"{OWN}/")


def _hashes(name: str, runs: Sequence[Run]) -> list[Texts]:
    """Content hashes of what the stage `name` of each run made, and of what it took from outside the run."""
    found = list[dict[str, str]]()
    for run in runs:
        stage, own = _stage(run, name), {s.name for s in run.stages}
        if stage is None:
            found.append({})
            continue
        outside = {f"input {p.role}": p.hash for p in stage.parents if p.stage not in own and p.hash}
        found.append(_content(stage) | outside)
    keys = _in_order([list(hashes) for hashes in found])
    return [Texts(name, key, tuple(hashes.get(key) for hashes in found)) for key in keys]


def _content(stage: Stage) -> dict[str, str]:
    """A hash of the sha256s of the model's files, and of each table's: files' names differ from run to run."""
    parts = defaultdict[str, list[str]](list)
    for path, entry in stage.manifest["files"].items():
        folders = path.split("/")[:-1]
        if folders[:1] == ["model"]:
            parts["model"].append(entry["sha256"])
        elif folders[:1] == ["state"] and stage.kind in _MADE_OF_DATA and len(folders) > 1:
            parts["/".join(folders[1:])].append(entry["sha256"])
    return {
        name: hashlib.sha256(json.dumps(sorted(sums)).encode()).hexdigest()[:16] for name, sums in sorted(parts.items())
    }


def _overlays(labels: Sequence[str], runs: dict[str, list[Row]], is_main: bool) -> list[Chart]:
    """A chart a metric; those of `curves.CHARTS`, after the two of evaluations, or else all others."""
    given = {label: runs.get(label, []) for label in labels}  # a run has its colour everywhere
    names = _in_order([metric_names(rows) for rows in given.values()])
    main = _in_order([curves.matching(names, patterns) for patterns in curves.CHARTS.values()])
    if not is_main:
        charts = [curves.overlay(given, name) for name in sorted(set(names) - set(main))]
        return [chart for chart in charts if any(len(line.points) > 1 for line in chart.series)]
    both = [chart for chart in (curves.frontier(given), curves.proxy(given)) if chart is not None]
    return both + [chart for name in main if (chart := curves.overlay(given, name)).series]
