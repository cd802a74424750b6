"""A run as its files tell it: stages with what they were made from, metrics, samples, data cards.

Only `stage.json`, `metrics.jsonl`, the samples and the data cards are read, so a run of which some stages are not
finished can be read as well, on any file system that fsspec takes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Literal

import fsspec

from rayrlhf.checkpoint import MANIFEST, read_manifest, stage_hash
from rayrlhf.data.rows import shortened
from rayrlhf.errors import CheckpointError
from rayrlhf.metrics import ROW_KEYS, is_row
from rayrlhf.redaction import redacted, redacted_text

Row = dict[str, Any]
Now = Literal["same", "moved", "changed", "missing", "unknown"]


@dataclass(frozen=True)
class Parent:
    """What a stage was made from, and whether that is still there.

    `moved`: no longer where it was, but in this run's folder, unchanged.
    """

    role: str
    path: str
    hash: str  # as it was then; "" where nothing could be hashed
    now: Now
    stage: str | None  # the stage of this run that it is, or was


@dataclass(frozen=True)
class Stage:
    """One stage: its newest step.  Secrets in `manifest` are masked."""

    name: str
    directory: str
    hash: str
    manifest: dict[str, Any]
    parents: tuple[Parent, ...] = ()
    stale: str = ""  # why it would be made anew; "" where its parents are what they were

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])


@dataclass(frozen=True)
class Run:
    """All that a run's directory holds for the report."""

    name: str
    directory: str
    stages: list[Stage]  # in the order they were made in, none before what it was made from
    rows: dict[str, list[Row]]  # of metrics.jsonl, by stage, in order of step
    samples: list[Row]  # of the evaluation: prompt, baseline, policy and their scores
    before_after: list[Row]  # of PPO's own evaluations: prompt, before, after
    cards: dict[str, Row]  # data cards, by stage

    @property
    def evaluation(self) -> dict[str, float]:
        """The metrics of the last `evaluate` stage; none where there is none."""
        found = [stage.manifest["metrics"] for stage in self.stages if stage.kind == "evaluate"]
        return found[-1] if found else {}

    @property
    def seconds(self) -> float:
        return float(sum(stage.manifest["seconds"] for stage in self.stages))


def check_run(path: str) -> None:
    """Raises CheckpointError, with what to give instead, where `path` is no run."""
    try:
        filesystem, root = fsspec.core.url_to_fs(path.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"{redacted_text(path)} cannot be reached: {error}") from error
    if not filesystem.isdir(root):
        raise CheckpointError(f"{path} is no run: there is no such folder. Give runs/NAME")
    for levels, what in ((1, "a stage"), (2, "a step of a stage")):
        stage = root if levels == 1 else root.rpartition("/")[0]
        if filesystem.isfile(f"{stage}/latest"):
            run = path.rstrip("/").rsplit("/", levels)[0]
            raise CheckpointError(f"{path} is {what}, not a run: give its run, {run}")
    if not filesystem.glob(f"{root}/*/latest") and not filesystem.glob(f"{root}/metrics*.jsonl"):
        raise CheckpointError(
            f"{path} is no run: it has neither a stage (STAGE/latest) nor metrics.jsonl. Give runs/NAME, "
            "the folder that a job made for run.name=NAME"
        )


def read_run(run_dir: str) -> Run:
    """Read `runs/NAME`; a run without any finished stage gives an empty one."""
    run_dir = run_dir.rstrip("/")
    filesystem, root = fsspec.core.url_to_fs(run_dir)
    steps, stages = dict[str, str](), list[Stage]()  # the hash of each whole step -> its stage
    entries = filesystem.ls(root, detail=False, refresh=True) if filesystem.isdir(root) else []
    for folder in sorted(entry.rstrip("/") for entry in entries):
        if not filesystem.isfile(f"{folder}/latest"):
            continue
        name, newest = (
            folder.rsplit("/", 1)[-1],
            filesystem.cat_file(f"{folder}/latest").decode(errors="replace").strip(),
        )
        for path in filesystem.glob(f"{folder}/step_*/{MANIFEST}"):
            text = filesystem.cat_file(path)
            found = hashlib.sha256(text).hexdigest()[:16]
            steps[found] = name
            if path.rsplit("/", 2)[-2] == newest:
                stages.append(Stage(name, f"{run_dir}/{name}/{newest}", found, read_manifest(text, path)))
    stages = _in_order([replace(stage, parents=_parents(stage, run_dir, steps)) for stage in stages])
    evaluated = [stage for stage in stages if stage.kind == "evaluate"]
    samples = jsonl(filesystem, f"{_local(evaluated[-1])}/state/samples.jsonl") if evaluated else []
    cards = {stage.name: card for stage in stages if (card := _card(filesystem, stage)) is not None}
    return Run(
        name=root.rsplit("/", 1)[-1],
        directory=redacted_text(run_dir),
        stages=[_for_people(stage) for stage in _with_staleness(stages)],
        rows=_rows(filesystem, root),
        samples=samples,
        before_after=_before_after(filesystem, root),
        cards=cards,
    )


def metric_names(rows: list[Row]) -> list[str]:
    """The metrics of some rows of metrics.jsonl."""
    return sorted({name for row in rows for name in row} - set(ROW_KEYS))


def last_values(rows: list[Row], group: str) -> dict[str, float]:
    """The last value of each metric `GROUP/...` of `rows`."""
    return {name: v for row in rows for name, v in row.items() if name.startswith(f"{group}/") and v is not None}


def finite(value: float | None) -> float | None:
    """`value`, None where it is not finite: JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def jsonl(filesystem: Any, path: str, keys: dict[str, type] | None = None) -> list[Row]:
    """The objects of a file's lines; none where there is no file.

    The last line may be half written, by a run that is going on or was killed.  Raises CheckpointError for another
    that is no object, or has not `keys`.
    """
    if not filesystem.isfile(path):
        return []
    lines = filesystem.cat_file(path).split(b"\n")[:-1]
    return [_object(line, f"{path}, line {number}", keys or {}) for number, line in enumerate(lines, 1) if line.strip()]


def _object(line: bytes, where: str, keys: dict[str, type]) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
            raise ValueError(f"no object{' with ' if keys else ''}{', '.join(keys)}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read ({error}): remove that line") from error
    return row


def write_text(run_dir: str, name: str, text: str) -> str:
    """Write a file into a run's directory; returns its path."""
    path = f"{run_dir.rstrip('/')}/{name}"
    filesystem, where = fsspec.core.url_to_fs(path)
    filesystem.pipe_file(where, text.encode())
    return path


def _parents(stage: Stage, run_dir: str, steps: dict[str, str]) -> tuple[Parent, ...]:
    found = []
    for role, parent in stage.manifest["parents"].items():
        inside = _inside(parent["path"], stage.manifest["config"])
        now = _now(parent["path"] if inside is None else f"{run_dir}/{inside}", parent["hash"])
        if now != "same" and inside is not None and _now(parent["path"], parent["hash"]) == "same":
            now, inside = "same", None  # of a run that has this one's name elsewhere
        if now == "missing" and parent["hash"] in steps:
            now = "moved"
        name = None if inside is None else inside.split("/")[0]
        found.append(Parent(role, redacted_text(parent["path"]), parent["hash"], now, steps.get(parent["hash"], name)))
    return tuple(found)


def _inside(path: str, config: Any) -> str | None:
    """Where in the stage's own run `path` lies; None where it lies elsewhere.

    The run's folder may have been moved or copied since: what is inside went with it.
    """
    run = config.get("run") if isinstance(config, dict) else None
    if not isinstance(run, dict) or "name" not in run:
        return None
    own = f"{str(run.get('root', 'runs')).rstrip('/')}/{run['name']}/"
    if path.startswith(own):
        return path[len(own) :]
    before, found, inside = path.partition(f"/{own.removeprefix('./')}")
    return inside if found and before.startswith("/") and not os.path.isabs(own) else None


def _now(path: str, before: str) -> Now:
    if not before:
        return "unknown"
    try:
        now = stage_hash(path)
    except Exception:  # a bucket that is gone, a login that ended, an extra that is not installed: any kind of error
        return "unknown"
    return "same" if now == before else "changed" if now else "missing"


def _in_order(stages: list[Stage]) -> list[Stage]:
    """By time, which is known to the second only, and so that a stage follows those of the run it was made from."""
    left = sorted(stages, key=lambda stage: (stage.manifest["created"], stage.name))
    done: list[Stage] = []
    while left:
        waiting = {stage.name for stage in left}
        free = [stage for stage in left if not waiting & {p.stage for p in stage.parents} - {stage.name}]
        done.append((free or left)[0])
        left.remove(done[-1])
    return done


def _with_staleness(stages: list[Stage]) -> list[Stage]:
    """Stages with why they are stale: a parent that changed, or one that is stale itself."""
    found: dict[str, Stage] = {}
    for stage in stages:
        reasons = [f"{p.role} has changed since" for p in stage.parents if p.now == "changed"]
        above = dict.fromkeys(p.stage for p in stage.parents if p.stage in found and found[p.stage].stale)
        reasons += [f"{name} is stale itself" for name in above]
        found[stage.name] = replace(stage, stale="; ".join(reasons))
    return list(found.values())


def _for_people(stage: Stage) -> Stage:
    return replace(stage, directory=redacted_text(stage.directory), manifest=redacted(stage.manifest))


def _rows(filesystem: Any, root: str) -> dict[str, list[Row]]:
    """Metrics by stage; of a step that a resumed stage did again, the later values."""
    by_step: dict[str, dict[int, Row]] = defaultdict(dict)
    for path in sorted(filesystem.glob(f"{root}/metrics*.jsonl")):
        for row in jsonl(filesystem, path):
            if not is_row(row):
                raise CheckpointError(
                    f"{path} has a line that is no row of metrics, {shortened(row)}: take it out, or mend it"
                )
            by_step[row["stage"]][row["step"]] = row
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in by_step.items()}


def _before_after(filesystem: Any, root: str) -> list[Row]:
    """PPO's samples on the same prompts at its first and at its last evaluation."""
    files = sorted(filesystem.glob(f"{root}/ppo/samples/step_*.jsonl"))
    if len(files) < 2:
        return []
    after = {row["prompt"]: row for row in jsonl(filesystem, files[-1], {"prompt": str})}
    before = [row for row in jsonl(filesystem, files[0], {"prompt": str}) if row["prompt"] in after]
    return [{"prompt": row["prompt"], "before": row, "after": after[row["prompt"]]} for row in before]


def _card(filesystem: Any, stage: Stage) -> Row | None:
    """The data card of a stage, None where it has none."""
    path = f"{_local(stage)}/state/data_card.json"
    if not filesystem.isfile(path):
        return None
    card = _object(filesystem.cat_file(path), path, {})
    return card | {name: redacted(card[name]) for name in ("source", "files", "licence", "bad_rows") if name in card}


def _local(stage: Stage) -> str:
    return str(fsspec.core.url_to_fs(stage.directory)[1])
