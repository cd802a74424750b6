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
