"""Stages that train an adapter, on a real local Ray: what they save, and RL without a copy for the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import ray
import torch
from transformers import AutoModelForSequenceClassification

from jobs import dpo, pretrain, reward_model, sft
from jobs.ppo import check as check_ppo
from jobs.ppo import plan as plan_ppo
from jobs.ppo import run as run_ppo
from jobs.ppo_config import PPOConfig
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import ConfigError
from tests.adapter_stage import TOKENS, check_saved
from tests.jobs.test_ppo import assert_invariants, overrides, rows_of

SHORT = ["train.minibatch=8", "train.microbatch_tokens=256", "train.engine.lr=2e-2", "data.max_tokens=64"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    rows: dict[str, list[dict[str, str]]] = {"completions": [], "pairs": []}
    for n in range(24):
        rows["completions"].append({"prompt": f"row {n}", "completion": " is red"})
        rows["pairs"].append({"prompt": f"row {n}", "chosen": " good", "rejected": " bad"})
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


@pytest.mark.usefixtures("ray_local")
def test_an_sft_job_trains_an_adapter(tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path) -> None:
    base = tiny_model("gpt2")
    given = ["run.name=run", f"run.root={tmp_path}", f"model={base}", f"data.train={files['completions']}"]
    more = ["peft={kind: lora, rank: 4, dropout: 0.1}", "train.engine.zero_stage=2"]
    config = load(sft.SFTConfig, None, [*given, *SHORT, *more])
    sft.check(config)
    stage = sft.run(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/train"] < rows[0]["loss/train"] - 0.1
    check_saved(stage, base)


@pytest.mark.parametrize(
    ("job", "cls", "more", "words"),
    [
        (dpo, dpo.DPOConfig, ["peft.kind=prefix_tuning"], "peft.kind=prefix_tuning is for SFT only"),
        (reward_model, reward_model.RewardModelConfig, ["peft.kind=prompt_tuning"], "is for SFT only"),
        (sft, sft.SFTConfig, ["peft={kind: prompt_tuning, num_virtual_tokens: 65}"], "more than .* context of 128"),
    ],
)
def test_where_virtual_tokens_do_not_serve(
    job: Any, cls: Any, more: list[str], words: str, tiny_model: Callable[[str], str], files: dict[str, str]
) -> None:
    rows = files["completions" if job is sft else "pairs"]
    given = ["run.name=run", f"model={tiny_model('llama')}", f"data.train={rows}", *SHORT, *more]
    with pytest.raises(ConfigError, match=words):
        job.check(load(cls, None, given))


def test_an_adapters_keys_are_checked_before_anything_starts(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    given = ["run.name=run", f"run.root={tmp_path}", f"model={tiny_model('llama')}", f"data.train={files['pairs']}"]
    config = load(reward_model.RewardModelConfig, None, [*given, *SHORT, "peft.target_modules=[qproj]"])
    with pytest.raises(ConfigError, match=r"peft.target_modules: .*'qproj'; did you mean q_proj\? There are down_proj"):
        reward_model.check(config)
    with pytest.raises(ConfigError, match=r"rank=4 has no effect with kind=ia3"):
        load(sft.SFTConfig, None, [*given, "peft.kind=ia3", "peft.rank=4"])
    with pytest.raises(ConfigError, match="peft: unknown key"):
        load(pretrain.PretrainConfig, None, ["run.name=x", "data.train=x.jsonl", "peft.rank=4"])
    assert not list(tmp_path.iterdir())


PEFT = {"policy.peft": "{rank: 4}", "policy.engine.lr": 1e-2, "policy.engine.zero_stage": 2}


def ppo_config(root: Path, model: str, reward: str, prompts: str, **more: Any) -> PPOConfig:
    return load(PPOConfig, None, overrides(root, model, reward, prompts, **PEFT | more))


@pytest.mark.slow
def test_ppo_with_adapters_needs_no_reference_actor(tiny_model, reward_folder, prompts_file, tmp_path, ray_local):
    """Two steps; that vLLM has the merged weights is what `sync/logprob_gap` tells in `assert_invariants`."""
    base, reward = tiny_model("llama"), reward_folder("llama")
    more = {"critic.peft": "{kind: ia3}", "critic.engine.lr": 1e-2, "layout.roles.policy.ranks": 2}
    config = ppo_config(tmp_path, base, reward, prompts_file, **more)
    check_ppo(config)
    assert [role.name for role in plan_ppo(config)] == ["policy", "critic", "rollout", "reward"]
    path = run_ppo(config)
    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert not any(name.startswith("reference") for name in names)
    rows = rows_of(tmp_path)
    assert_invariants(rows)
    assert rows[1]["objective/kl_token_max_abs"] == 0, "exactly: the same weights in the same passes"
    assert rows[2]["objective/kl_token_max_abs"] > 1e-3
    check_saved(path, base)
    critic = find_stage(path).path + "/state/critic"
    with torch.no_grad():
        merged = AutoModelForSequenceClassification.from_pretrained(f"{critic}/model")(input_ids=TOKENS).logits
        under = AutoModelForSequenceClassification.from_pretrained(reward)
        beside = peft.PeftModel.from_pretrained(under, f"{critic}/adapter")(input_ids=TOKENS).logits
    torch.testing.assert_close(beside, merged, atol=1e-5, rtol=0)


def test_a_reference_of_its_own_has_an_actor(tiny_model, reward_folder, prompts_file, tmp_path):
    base, reward = tiny_model("llama"), reward_folder("llama")
    config = ppo_config(tmp_path, base, reward, prompts_file, reference_model=tiny_model("qwen3"))
    check_ppo(config)
    assert "reference" in {role.name for role in plan_ppo(config)}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"policy.peft": "{dropout: 0.1}"}, "dropout=0.1: in RL the ratio of the first minibatch is 1"),
        ({"policy.peft": "{kind: prefix_tuning}"}, "kind=prefix_tuning cannot be merged into weights"),
        ({"policy.ema_decay": 0.5}, "leave one of ema_decay and peft out"),
        ({"policy.peft": "{target_modules: [up]}"}, r"policy.peft.target_modules: .*'up'; .*There are down_proj"),
        ({"critic.peft": "{target_modules: [score]}"}, r"critic.peft.target_modules: .*'score'"),
    ],
)
def test_what_an_adapter_does_not_go_with(more, words, tiny_model, reward_folder, prompts_file, tmp_path):
    with pytest.raises(ConfigError, match=words):
        check_ppo(ppo_config(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more))
