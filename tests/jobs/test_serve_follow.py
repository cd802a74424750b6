"""What follows newer checkpoints, with a deployment that only notes what it is asked for; test_serve_updates.py has the
real one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.serve_config import ServeConfig
from jobs.serve_follow import Follower
from jobs.serve_snapshots import Snapshots
from rayrlhf.checkpoint import StageWriter
from rayrlhf.errors import RoleError


def step_of(folder: str) -> str:
    """The model folder whose snapshot, ROOT/.served/OWNER/HASH/STAGE/STEP/model, is served."""
    return str(Path(folder).parents[5].joinpath(*Path(folder).parts[-3:]))


class Deployed:
    """The folders that were asked for, last in, and an error for those of `bad`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.bad: set[str] = set()

    def __call__(self, config: ServeConfig) -> None:
        self.asked.append({served.name: step_of(served.model) for served in config.served})
        if self.bad & set(self.asked[-1].values()):
            raise RoleError("the engine does not start\nand a traceback")


@pytest.fixture
def stages(tiny_model, tmp_path):
    def write(stage: str, step: int, is_final: bool = True) -> str:
        writer = StageWriter(str(tmp_path / stage), step)
        shutil.copytree(tiny_model("llama"), writer.model_dir, dirs_exist_ok=True)
        writer.finish(stage, {}, {}, {}, is_final=is_final, keep=99)
        return str(tmp_path / stage / f"step_{step:06d}" / "model")

    first = {stage: write(stage, 10) for stage in ("sft", "ppo")}
    config = ServeConfig(models={stage: str(tmp_path / stage) for stage in first}, follow_s=1)
    deployed, said = Deployed(), list[str]()
    with Snapshots(said.append) as snapshots:
        yield write, first, Follower(config, deployed, said.append, snapshots), deployed, said


def test_a_newer_checkpoint_alone_is_rolled_out(stages: Any) -> None:
    write, first, follower, deployed, said = stages
    follower.look()
    assert (deployed.asked, said) == ([], [])
    newer = write("ppo", 20)
    follower.look()
    follower.look()
    assert deployed.asked == [first | {"ppo": newer}] and said[-1] == "rolled out: ppo"
    assert {served.name: step_of(served.model) for served in follower.pinned.served} == first | {"ppo": newer}


def test_what_fails_is_tried_once_taken_back_and_in_nobody_s_way(stages: Any) -> None:
    write, first, follower, deployed, said = stages
    bad = write("ppo", 20)
    deployed.bad.add(bad)
    follower.look()
    follower.look()
    assert deployed.asked == [first | {"ppo": bad}, first]
    assert said[-1] == "ppo is not rolled out, its former replicas go on: the engine does not start"
    other = write("sft", 20)
    follower.look()
    assert deployed.asked[-1] == first | {"sft": other} and said[-1] == "rolled out: sft"


def test_what_cannot_be_asked_for_again_is_said(stages: Any) -> None:
    write, first, follower, deployed, said = stages
    deployed.bad |= {write("ppo", 20), first["ppo"]}
    follower.look()
    assert said[-1] == "the former replicas go on, but none can start anew: the engine does not start"


def test_what_nobody_foresaw_does_not_end_the_server_and_keeps_its_traceback(stages: Any, monkeypatch, capsys) -> None:
    write, _, follower, _, said = stages
    write("ppo", 20)

    def fails(config: ServeConfig) -> None:
        raise KeyError  # without a message

    monkeypatch.setattr(follower, "_deploy", fails)
    follower.look()
    assert said[-1] == "the former replicas go on, but none can start anew: KeyError()"
    assert "ppo is not rolled out" in said[-2] and "Traceback" in capsys.readouterr().err


def test_a_stage_that_is_made_anew_is_looked_at_again(stages: Any) -> None:
    write, first, follower, deployed, said = stages
    shutil.rmtree(Path(first["ppo"]).parents[1])
    follower.look()
    follower.look()
    assert len(said) == 1 and said[0].startswith("ppo: nothing newer can be served yet")
    write("ppo", 5, is_final=False)
    follower.look()
    assert "is not finished" in said[-1] and deployed.asked == []
    newest = write("ppo", 20)
    follower.look()
    assert deployed.asked == [first | {"ppo": newest}]


def test_a_checkpoint_that_no_engine_takes_is_not_deployed(stages: Any) -> None:
    write, _, follower, deployed, said = stages
    newer = Path(write("ppo", 20))
    (newer / "config.json").write_text("{}")
    follower.look()
    assert deployed.asked == [] and said
