"""The log holds what it was given."""

import errno
import json
import math

import pytest
from fsspec.implementations.local import LocalFileSystem

from rayrlhf import metrics
from rayrlhf.errors import CheckpointError
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.trackers.base import StageOfRun


def test_each_step_stands_in_the_log_once(tmp_path):
    run = tmp_path / "run"
    for stage, steps in (("sft", (1, 2)), ("ppo", (0, 1, 2, 3))):
        log = MetricsLog(str(run), stage, 5)
        for step in steps:
            log.log(step, {"loss": 1.0})
        log.close()
    (run / "metrics.jsonl").open("a").write('{"stage": "ppo", "st')  # cut short by a kill
    log = MetricsLog(str(run), "ppo", 3, done=1)  # resumed after step 1
    log.log(2, {"loss": 2.0})
    log.close()

    def rows() -> list[tuple]:
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(row["stage"], row["step"], row["total_steps"], row["loss"]) for row in found]

    before = [("sft", 1, 5, 1.0), ("sft", 2, 5, 1.0), ("ppo", 0, 5, 1.0), ("ppo", 1, 5, 1.0)]
    assert rows() == [*before, ("ppo", 2, 3, 2.0)]
    MetricsLog(str(run), "ppo", 3).close()  # a new run in its place
    assert [stage for stage, *_ in rows()] == ["sft", "sft"]


def test_a_disk_that_is_full_when_rows_are_dropped_costs_no_row(tmp_path, monkeypatch):
    log = MetricsLog(str(tmp_path), "ppo", 5)
    for step in (1, 2, 3):
        log.log(step, {"loss": 1.0})
    log.close()
    before = (tmp_path / "metrics.jsonl").read_text()

    def full(filesystem, path, content):
        with open(path, "wb"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="jsonl cannot be written: No space left"):
        patch.setattr(LocalFileSystem, "pipe_file", full)
        MetricsLog(str(tmp_path), "ppo", 5, done=2)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    MetricsLog(str(tmp_path), "ppo", 5, done=2).close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before.splitlines()[:2]
    log = MetricsLog(str(tmp_path), "ppo", 5, done=2)
    log._file = open("/dev/full", "w", buffering=1)
    with pytest.raises(CheckpointError, match="No space left"):
        log.log(3, {"loss": 1.0})
    with pytest.raises(CheckpointError, match="No space left"):  # it writes what is left
        log.close()


def test_the_log_appends_lines_that_any_json_parser_reads(tmp_path):
    for step in (1, 2):
        log = MetricsLog(str(tmp_path / "run"), "ppo", 2, done=step - 1)
        log.log(step, {"objective/kl": 0.25 * step, "loss/value_avg": math.nan})
        log.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"], r["objective/kl"], r["loss/value_avg"]) for r in rows] == [
        ("ppo", 1, 0.25, None),
        ("ppo", 2, 0.5, None),
    ]
    assert list((tmp_path / "run" / "tensorboard" / "ppo").iterdir())


def test_trackers_get_every_step_are_rewound_and_told_of_an_error(tmp_path, monkeypatch):
    told: list[tuple] = []

    class Fake:
        def log(self, step, metrics):
            told.append((step, metrics))

        def rewind(self, done):
            told.append(("rewind", done))

        def close(self, is_failed):
            told.append(("close", is_failed))

    def opened(names, stage):
        told.append((names, stage))
        return [Fake(), Fake()]

    monkeypatch.setattr(metrics, "open_trackers", opened)
    log = MetricsLog(str(tmp_path / "run"), "ppo", 3, 1, ("wandb",), {"lr": 0.5})
    log.log(2, {"objective/kl": 0.25})
    log.rewind(1)
    log.close()
    assert told[0] == (("wandb",), StageOfRun(str(tmp_path / "run"), "ppo", 1, {"lr": 0.5})) and told[0][1].run == "run"
    assert told[1::2] == told[2::2] == [(2, {"objective/kl": 0.25}), ("rewind", 1), ("close", False)]
    with pytest.raises(KeyboardInterrupt):
        try:
            raise KeyboardInterrupt
        finally:
            log.close()
    assert told[-1] == ("close", True)


def test_the_console_line_is_short():
    line = console_line(
        "ppo",
        3,
        80,
        {"objective/kl": 12.3456, "optim/lr": 1e-4},
        {"objective/kl": "kl", "optim/lr": "lr", "x": "x"},
    )
    assert line == "ppo  3/80  kl 12.35  lr 1.00e-04"
    strange = {"a": math.nan, "b": -math.inf, "c": 2.0}
    assert console_line("x", 1, 1, strange, {name: name for name in strange}) == "x 1/1  a nan  b -inf  c 2"
