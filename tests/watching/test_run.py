"""The states of a run's stages, from its files alone."""

import json
import shutil
import time

import fsspec
import pytest

from rayrlhf import role_logs
from rayrlhf.errors import ConfigError
from rayrlhf.metrics import MetricsLog
from rayrlhf.watching.run import WatchedRun
from tests.watching.run_files import add_stage, lines, row


def test_a_run_from_its_first_sign_to_its_end(tmp_path):
    watched = WatchedRun(str(tmp_path))
    assert watched.view().stages == [] and watched.view().newest is None, "an empty folder is waited on"
    now = time.time()
    add_stage(tmp_path, "prepare", 0, seconds=30.0)
    (tmp_path / "metrics.jsonl").write_text(lines(*(row("sft", n, now + n, 9) for n in (1, 2, 3))))
    view = watched.view(now + 4)
    assert [(s.name, s.state, s.step, s.total_steps) for s in view.stages] == [
        ("prepare", "finished", 0, None),
        ("sft", "running", 3, 9),
    ]
    sft = view.newest
    assert (sft.name, sft.silent_s, sft.seconds) == ("sft", pytest.approx(1.0), pytest.approx(3.0))
    cut = watched.view(now + 3 + 121).stage("sft")
    assert (cut.state, cut.seconds, cut.checkpoint) == ("cut off", pytest.approx(2.0), None)
    add_stage(tmp_path, "sft", 2, is_final=False)
    cut = watched.view(now + 300).stage("sft")
    assert (cut.state, cut.checkpoint) == ("cut off", 2), "where it goes on"
    add_stage(tmp_path, "sft", 9, seconds=77.0)
    done = watched.view(now + 300).stage("sft")
    assert (done.state, done.seconds, done.checkpoint) == ("finished", 77.0, 9)
    assert watched.view().stage("ppo") is None


def test_a_stage_that_is_made_again_or_rolled_back_starts_over(tmp_path):
    log = MetricsLog(str(tmp_path), "ppo", 6)
    for step in range(4):
        log.log(step, {"objective/kl": float(step)})
    watched = WatchedRun(str(tmp_path))
    assert watched.view().stage("ppo").history.courses["objective/kl"].points == [0.0, 1.0, 2.0, 3.0]
    log.rewind(1)
    log.log(2, {"objective/kl": 20.0})
    log.close()
    history = watched.view().stage("ppo").history
    assert history.courses["objective/kl"].points == [0.0, 1.0, 20.0] and history.step == 2


def test_a_step_that_stands_twice_in_a_file_of_an_older_version_begins_anew(tmp_path):
    rows = [row("ppo", n, float(n), objective__kl=1.0) for n in (0, 1, 2)]
    (tmp_path / "metrics.jsonl").write_text(lines(*rows, *(one | {"objective/kl": 5.0} for one in rows[:2])))
    history = WatchedRun(str(tmp_path)).view().stage("ppo").history
    assert history.step == 1 and history.courses["objective/kl"].points == [5.0, 5.0]


def test_a_stage_without_rows_lives_while_its_folder_changes(tmp_path):
    (tmp_path / "prepare" / "step_000000" / "state").mkdir(parents=True)
    watched = WatchedRun(str(tmp_path))
    stage = watched.view().newest
    assert (stage.name, stage.state, stage.step, stage.seconds) == ("prepare", "running", None, None)
    assert watched.view(time.time() + 601).newest.state == "cut off"


def test_an_object_store_has_a_file_of_metrics_for_each_stage():
    root = "memory://watched/demo"
    watched = WatchedRun(root)
    assert watched.view().stages == [], "not there yet"
    for stage, steps in (("sft", (1, 2)), ("ppo", (0, 1, 2))):
        log = MetricsLog(root, stage, 2)
        for step in steps:
            log.log(step, {"loss/train": 1.0})
        log.close()
    add_stage(root, "sft", 2)
    assert {s.name: (s.state, s.step, s.total_steps) for s in watched.view().stages} == {
        "sft": ("finished", 2, 2),
        "ppo": ("running", 2, 2),
    }
    fsspec.filesystem("memory").rm("/watched/demo/metrics-ppo.jsonl")
    assert [stage.name for stage in watched.view().stages] == ["sft"]


def test_the_last_samples_are_read_when_they_change(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(lines(row("ppo", 0, 1.0)))
    watched = WatchedRun(str(tmp_path))
    assert watched.samples("ppo") == (0, [])
    folder = tmp_path / "ppo" / "samples"
    folder.mkdir(parents=True)
    for step in (0, 10):
        text = json.dumps({"prompt": "a", "response": f"step {step}", "score": 1.0, "gold": None}) + "\n"
        (folder / f"step_{step:06d}.jsonl").write_text(text + text[:9])  # the last line is half written
        found, rows = watched.samples("ppo")
        assert (found, [row["response"] for row in rows]) == (step, [f"step {step}"])


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tree" / "src").mkdir(parents=True)
    add_stage(tmp_path / "run", "sft", 2)
    for path, message in (
        ("absent", "there is no such folder"),
        ("file", "is a file"),
        ("tree", "is no run: it has neither metrics.jsonl nor a stage's folder, but src"),
        ("run/sft", f"is a stage of a run: give the run, {tmp_path}/run"),
    ):
        with pytest.raises(ConfigError, match=message):
            WatchedRun(f"{tmp_path}/{path}")
    with pytest.raises(ConfigError, match="cannot be reached"):
        WatchedRun("nowhere://run")
    shutil.rmtree(tmp_path / "tree" / "src")
    (tmp_path / "tree" / "tensorboard").mkdir()
    WatchedRun(str(tmp_path / "tree"))


def test_what_roles_do_is_read_from_the_end_of_their_logs(tmp_path):
    folder = tmp_path / "logs" / "ppo"
    folder.mkdir(parents=True)
    (folder / "policy-0.log").write_text("x" * 100_000 + "\n2026-11-22T10:00:00.500Z INFO begin update(3)\n")
    (folder / "reward-0.log").write_text("2026-11-22T10:00:00.000Z INFO reward-0: process 1\n")
    run = WatchedRun(str(tmp_path))
    assert [(one.actor, one.call, one.state) for one in run.roles("ppo")] == [("policy-0", "update", "begin")]
    assert run.roles("sft") == [] and run.view().stages == [], "logs are no stage"


def test_roles_that_a_resumed_run_has_no_more_are_not_shown(tmp_path):
    folder = tmp_path / "logs" / "ppo"
    folder.mkdir(parents=True)
    (folder / "reference-0.log").write_text("2026-11-22T10:00:00.500Z INFO begin score(3)\n")
    policy = folder / "policy-0.log"
    policy.write_text("2026-11-22T10:00:01.500Z INFO begin update(3)\n")
    run = WatchedRun(str(tmp_path))
    assert [one.actor for one in run.roles("ppo")] == ["policy-0", "reference-0"]
    role_logs.begin_attempt(str(tmp_path / "ppo"))
    assert run.roles("ppo") == []
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 2))
    with policy.open("a") as file:
        file.write(f"{stamp}.000Z INFO begin update(4)\n")
    assert [one.actor for one in run.roles("ppo")] == ["policy-0"]
