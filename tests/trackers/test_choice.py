"""What is refused before anything starts, without the services' packages."""

import pytest

from jobs import cli
from rayrlhf.config import load
from rayrlhf.errors import ConfigError
from rayrlhf.run import RunConfig
from rayrlhf.trackers import choice
from rayrlhf.trackers.base import StageOfRun
from rayrlhf.trackers.choice import check_trackers, tracker_environment


def test_tensorboard_is_the_default_and_each_is_named_once():
    assert RunConfig(name="x").trackers == ("tensorboard",)
    assert load(RunConfig, None, ["name=x", "trackers=[mlflow, wandb]"]).trackers == ("mlflow", "wandb")
    with pytest.raises(ConfigError, match="wandb, wandb names one twice"):
        load(RunConfig, None, ["name=x", "trackers=[wandb, wandb]"])
    with pytest.raises(ConfigError, match="'tensorboard', 'wandb' or 'mlflow'"):
        load(RunConfig, None, ["name=x", "trackers=[comet]"])


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name in ("wandb", "alembic") else object())
    check_trackers(RunConfig(name="x"))
    with pytest.raises(ConfigError, match=r"has wandb, but wandb is not installed: pip install -e '.\[wandb\]'"):
        check_trackers(RunConfig(name="x", trackers=("tensorboard", "wandb")))
    with pytest.raises(ConfigError, match=r"has mlflow, but alembic is not installed: pip install -e '.\[mlflow\]'"):
        check_trackers(RunConfig(name="x", trackers=("mlflow",)))


@pytest.mark.parametrize(("tracker", "variable"), [("wandb", "WANDB_DIR"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_what_writes_to_a_disk_needs_one(monkeypatch, tracker, variable):
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv(variable, raising=False)
    check_trackers(RunConfig(name="x", root="file:///runs", trackers=(tracker,)))
    stored = RunConfig(name="x", root="memory://runs", trackers=(tracker,))
    with pytest.raises(ConfigError, match=f"memory://runs/x is none: set the environment variable {variable}"):
        check_trackers(stored)
    monkeypatch.setenv(variable, "somewhere")
    check_trackers(stored)


def test_a_job_refuses_it_before_it_looks_at_anything_else(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    given = [f"run.root={tmp_path}", "run.name=x", "model=absent", "data.train=absent", "run.trackers=[wandb]"]
    assert cli.main(["sft", *given]) == 2
    assert "pip install -e '.[wandb]'" in " ".join(capsys.readouterr().err.split())


def test_workers_get_the_trackers_variables(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    monkeypatch.setenv("OTHER", "x")
    found = tracker_environment()
    assert (found["WANDB_MODE"], found["MLFLOW_TRACKING_URI"]) == ("offline", "http://there")
    assert "OTHER" not in found


@pytest.mark.parametrize("root", ["", "memory://ids"])
def test_a_stage_that_goes_on_keeps_its_id_and_one_that_begins_has_none(tmp_path, root):
    directory = root or str(tmp_path / "run")
    first = StageOfRun(directory, "sft", done=-1)
    assert first.known_id("wandb") is None
    first.remember_id("wandb", "a")
    first.remember_id("mlflow", "b")
    again = StageOfRun(directory, "sft", done=7)
    assert (again.known_id("wandb"), again.known_id("mlflow")) == ("a", "b")
    assert StageOfRun(directory, "sft", done=-1).known_id("wandb") is None
    assert StageOfRun(directory, "ppo", done=7).known_id("wandb") is None
