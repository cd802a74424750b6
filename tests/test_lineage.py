"""What a pipeline may skip, what it resumes, and what it refuses to overwrite."""

import json

import pytest

from rayrlhf.checkpoint import StageWriter
from rayrlhf.errors import CheckpointError
from rayrlhf.lineage import check, claim, standing


def make(root: str, config: dict, parents: dict[str, str], **options) -> str:
    writer = StageWriter(root, 1)
    with open(f"{writer.model_dir}/config.json", "w") as file:
        json.dump(config, file)
    return writer.finish("sft", config, parents, {}, **options)


def test_the_same_inputs_are_finished_and_others_are_named(tmp_path):
    data, root = f"{tmp_path}/prepare", f"{tmp_path}/sft"
    config = {"train": {"lr": 0.1, "steps": 3}}
    assert standing(root, config, {"data": data}).state == "absent"
    make(data, {"seed": 0}, {})
    make(root, config, {"data": f"{data}/step_000001"})
    parents = {"data": f"{data}/step_000001"}
    assert standing(root, config, parents).state == "finished"
    changed = standing(root, {"train": {"lr": 0.2, "steps": 3}}, parents)
    assert (changed.state, changed.differences) == ("changed", ("train.lr: 0.1 -> 0.2",))
    other = {"train": {"lr": 0.2, "steps": 3}, "run": {"when_changed": "refuse"}}
    with pytest.raises(CheckpointError, match=r"train.lr: 0.1 -> 0.2"):
        claim(root, other, parents)

    make(data, {"seed": 1}, {})
    assert standing(root, config, parents).differences == (f"parent data: {data}/step_000001 is another one now",)
    replacing = config | {"run": {"when_changed": "replace"}}
    assert check(root, replacing, parents).state == "changed"
    assert claim(root, replacing, parents).state == "absent"
    assert standing(root, config, parents).state == "absent"


def test_how_to_treat_changes_is_no_change(tmp_path):
    make(f"{tmp_path}/sft", {"run": {"seed": 0, "when_changed": "refuse"}}, {})
    assert claim(f"{tmp_path}/sft", {"run": {"seed": 0, "when_changed": "replace"}}, {}).state == "finished"


def test_a_checkpoint_on_the_way_is_unfinished(tmp_path):
    make(f"{tmp_path}/ppo", {}, {}, is_final=False)
    assert standing(f"{tmp_path}/ppo", {}, {}).state == "unfinished"


def test_waiting_longer_or_keeping_more_changes_nothing(tmp_path):
    root = f"{tmp_path}/ppo"
    make(root, {"call_deadline_s": 900.0, "loop": {"save_every": 20, "keep": 2, "steps": 5}}, {})
    now = {"call_deadline_s": 9.0, "loop": {"save_every": 3, "keep": 9, "steps": 5}}
    assert standing(root, now, {}).state == "finished"
    make(f"{tmp_path}/sft", {"train": {"rollback": {"max_rollbacks": 2}}}, {})
    assert standing(f"{tmp_path}/sft", {"train": {"rollback": {"max_rollbacks": 5}}}, {}).state == "finished"
    now["loop"]["steps"] = 6
    assert standing(root, now, {}).differences == ("loop.steps: 5 -> 6",)


def test_what_is_replaced_is_not_what_it_is_made_from(tmp_path):
    root, replace = f"{tmp_path}/sft", {"run": {"when_changed": "replace"}}
    step = make(root, {"lr": 1.0}, {})
    with pytest.raises(CheckpointError, match="lies inside"):
        claim(root, replace, {"model": step})
    assert standing(root, {"lr": 1.0}, {}).state == "finished", "nothing was deleted"


def test_a_torn_stage_can_be_replaced(tmp_path):
    root = f"{tmp_path}/sft"
    step = make(root, {"run": {"when_changed": "refuse"}}, {})
    with open(f"{step}/model/config.json", "a") as file:
        file.write("torn")
    with pytest.raises(CheckpointError, match="cannot be read: .*is torn"):
        claim(root, {"run": {"when_changed": "refuse"}}, {})
    assert claim(root, {"run": {"when_changed": "replace"}}, {}).state == "absent"
