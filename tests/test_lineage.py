"""What a pipeline may skip, what it resumes, and what it refuses to overwrite."""

import json
import os
import random
from typing import Any, Literal

import pytest

from rayrlhf.checkpoint import StageWriter, find_stage
from rayrlhf.config import Section
from rayrlhf.errors import CheckpointError
from rayrlhf.lineage import check, claim, standing


class Run(Section):
    seed: int = 0
    when_changed: Literal["refuse", "replace"] = "refuse"
    trackers: tuple[str, ...] = ("tensorboard",)


class Train(Section):
    lr: float = 0.1
    steps: int = 3
    save_every: int = 20
    keep: int = 2
    max_rollbacks: int = 2
    num_workers: int = 1
    zero_stage: int = 1
    microbatch_tokens: int = 4096
    forward_tokens: int = 4096


class Config(Section):
    run: Run = Run()
    train: Train = Train()
    call_deadline_s: float = 900.0
    layout: str = "cpu"


REPLACE = {"when_changed": "replace"}


def configured(**keys: Any) -> Config:
    return Config.model_validate(keys)


def make(root: str, config: Config | dict[str, Any], parents: dict[str, str], **options: Any) -> str:
    writer = StageWriter(root, 1)
    described = config if isinstance(config, dict) else config.model_dump(mode="json")
    with open(f"{writer.model_dir}/config.json", "w") as file:
        json.dump(described, file)
    return writer.finish("sft", described, parents, {}, **options)


def test_the_same_inputs_are_finished_and_others_are_named(tmp_path):
    data, root = f"{tmp_path}/prepare", f"{tmp_path}/sft"
    config = configured()
    assert standing(root, config, {"data": data}).state == "absent"
    make(data, configured(run={"seed": 0}), {})
    make(root, config, {"data": f"{data}/step_000001"})
    parents = {"data": f"{data}/step_000001"}
    assert standing(root, config, parents).state == "finished"
    other = configured(train={"lr": 0.2})
    changed = standing(root, other, parents)
    assert (changed.state, changed.differences) == ("changed", ("train.lr: 0.1 -> 0.2",))
    with pytest.raises(CheckpointError, match=r"train.lr: 0.1 -> 0.2"):
        claim(root, other, parents)

    make(data, configured(run={"seed": 1}), {})
    assert standing(root, config, parents).differences == (f"parent data: {data}/step_000001 is another one now",)
    replacing = configured(run=REPLACE)
    assert check(root, replacing, parents).state == "changed"
    assert claim(root, replacing, parents).state == "absent"
    assert standing(root, config, parents).state == "absent"


def test_how_to_treat_changes_is_no_change(tmp_path):
    make(f"{tmp_path}/sft", configured(), {})
    assert claim(f"{tmp_path}/sft", configured(run=REPLACE), {}).state == "finished"


def test_a_checkpoint_on_the_way_is_unfinished(tmp_path):
    make(f"{tmp_path}/ppo", configured(), {}, is_final=False)
    assert standing(f"{tmp_path}/ppo", configured(), {}).state == "unfinished"


def test_waiting_longer_keeping_more_or_logging_elsewhere_changes_nothing(tmp_path):
    root = f"{tmp_path}/ppo"
    make(root, configured(), {})
    train = {"save_every": 3, "keep": 9, "max_rollbacks": 5}
    run = {"trackers": ["wandb"]}
    assert standing(root, configured(call_deadline_s=9.0, train=train, run=run), {}).state == "finished"
    assert standing(root, configured(train=train | {"steps": 6}), {}).differences == ("train.steps: 3 -> 6",)


def test_where_it_runs_changes_nothing(tmp_path):
    make(f"{tmp_path}/ppo", configured(), {}, is_final=False)
    train = {"num_workers": 3, "zero_stage": 3, "microbatch_tokens": 512, "forward_tokens": 512}
    elsewhere = configured(layout="one_gpu", train=train)
    assert standing(f"{tmp_path}/ppo", elsewhere, {}).state == "unfinished"


def test_a_key_that_an_older_version_had_not_is_at_its_default(tmp_path):
    root = f"{tmp_path}/sft"
    make(root, {"run": {"seed": 0}, "train": {"lr": 0.1}}, {})
    assert standing(root, configured(), {}).state == "finished"
    assert standing(root, configured(train={"steps": 4}), {}).differences == ("train.steps: 3 -> 4",)
    make(root, {"train": {"momentum": 0.9}}, {})
    found = standing(root, configured(), {})
    assert found.state == "changed" and "train.momentum: 0.9 -> None" in found.differences


def test_what_is_replaced_is_not_what_it_is_made_from(tmp_path):
    root = f"{tmp_path}/sft"
    step = make(root, configured(train={"lr": 1.0}), {})
    with pytest.raises(CheckpointError, match="lies inside"):
        claim(root, configured(run=REPLACE), {"model": step})
    assert standing(root, configured(train={"lr": 1.0}), {}).state == "finished", "nothing was deleted"


def test_a_torn_stage_can_be_replaced(tmp_path):
    root = f"{tmp_path}/sft"
    step = make(root, configured(), {})
    with open(f"{step}/model/config.json", "a") as file:
        file.write("torn")
    with pytest.raises(CheckpointError, match="cannot be read: .*is torn"):
        claim(root, configured(), {})
    assert claim(root, configured(run=REPLACE), {}).state == "absent"


def checkpoints(root, config: Config) -> None:
    for step in (1, 2, 3):
        writer = StageWriter(str(root), step)
        for folder in (writer.model_dir, writer.state_dir):
            with open(f"{folder}/file.bin", "wb") as file:
                file.write(bytes([step]) * 1000)
        writer.finish("sft", config.model_dump(mode="json"), {}, {}, is_final=step == 3, keep=9)


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut short": lambda step: os.truncate(step / "state/file.bin", random.Random(1).randrange(1000)),
    "a file is gone": lambda step: (step / "model/file.bin").unlink(),
    "a byte differs": lambda step: flip(step / "model/file.bin"),
    "manifest cut short": lambda step: os.truncate(step / "stage.json", 200),
    "manifest gone": lambda step: (step / "stage.json").unlink(),
    "manifest of no sense": lambda step: (step / "stage.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_torn_checkpoints_the_newest_whole_one_before_them_is_used_and_said_so(tmp_path, damage, capsys):
    root, config = tmp_path / "sft", configured()
    checkpoints(root, config)
    for step in (2, 3):
        DAMAGES[damage](root / f"step_00000{step}")
    found = standing(str(root), config, {})
    assert (found.state, found.stage.manifest["step"], list(found.torn)) == (
        "unfinished",
        1,
        ["step_000003", "step_000002"],
    )
    assert (root / "latest").read_text() == "step_000003", "nothing was touched yet"
    assert claim(str(root), config, {}).stage.path == str(root / "step_000001")
    printed = capsys.readouterr().out
    assert f"{root}/step_000003" in printed and f"{root} goes on from step 1, which is whole" in printed
    assert find_stage(str(root)).path == str(root / "step_000001")
    assert sorted(path.name for path in root.iterdir()) == [
        "latest", "step_000001", "torn_step_000002", "torn_step_000003",
    ]  # fmt: skip
    claim(str(root), config, {})
    assert capsys.readouterr().out == "", "said once"


def test_a_pointer_of_no_sense_and_steps_that_were_dropped(tmp_path):
    root, config = tmp_path / "sft", configured()
    checkpoints(root, config)
    (root / "latest").write_text("step_000002")  # as a kill in make_final leaves it: step 3 was worse
    assert standing(str(root), config, {}).stage.manifest["step"] == 2
    (root / "latest").write_text("\x00\x00")
    assert standing(str(root), config, {}).stage.manifest["step"] == 3
    claim(str(root), config, {})
    assert find_stage(str(root)).manifest["step"] == 3, "the pointer is mended"


def test_where_no_step_is_whole_each_is_named(tmp_path):
    root, config = tmp_path / "sft", configured()
    checkpoints(root, config)
    for step in (1, 2, 3):
        DAMAGES["cut short"](root / f"step_00000{step}")
    with pytest.raises(
        CheckpointError, match="(?s)cannot be read: no step of .*step_000003 is torn.*step_000001 is torn"
    ):
        claim(str(root), config, {})
