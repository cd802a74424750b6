"""The pipeline's wiring and refusals; the slow test runs every stage for real, twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import pipeline
from rayrlhf.config import load
from rayrlhf.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHORT = str(ROOT / "jobs/configs/demo_short.yaml")


def test_each_stage_takes_what_the_ones_before_it_left():
    config = load(pipeline.PipelineConfig, SHORT, ["run.name=mine", "run.seed=3", "sft.model=elsewhere/model"])
    tables = "runs/mine/prepare/step_000000/state"
    assert config.pretrain.model.tokenizer == "runs/mine/prepare/step_000000/model"
    assert config.sft.model == "elsewhere/model", "what is given is kept"
    assert config.sft.data.train == f"{tables}/prompt_completion/train"
    assert config.reward_model.data.validation == f"{tables}/preference/validation"
    assert (config.ppo.policy_model, config.ppo.reward_model) == (
        "runs/mine/sft/latest",
        "runs/mine/reward_model/latest",
    )
    assert config.ppo.prompts.max_tokens == 32, "what the file says is kept beside what is filled in"
    assert (config.evaluate.policy, config.evaluate.baseline) == ("runs/mine/ppo/best", "runs/mine/sft/latest")
    assert {getattr(config, stage).run.seed for stage in config.stages} == {3} and config.stages == pipeline.STAGES
    assert config.serve is not None and config.serve.model == "runs/mine/ppo/best"


def test_a_reward_model_of_labels_takes_those_of_prepare():
    config = load(pipeline.PipelineConfig, SHORT, ["reward_model.loss=binary"])
    assert config.reward_model.data.train.endswith("/prepare/step_000000/state/labelled/train")


def test_scores_of_a_function_need_no_reward_model():
    config = load(pipeline.PipelineConfig, str(ROOT / "jobs/configs/arithmetic.yaml"), [])
    assert config.stages == ("prepare", "pretrain", "sft", "ppo", "evaluate")
    assert config.ppo.reward_model is None and config.evaluate.reward_model is None
    assert config.ppo.reward_function == config.evaluate.reward_function == "rayrlhf.data.arithmetic:reward"
    assert "critic" not in config.ppo.roles and config.evaluate.sampling.greedy
    pipeline.check(config)
    assert list(pipeline.plan(config)) == ["pretrain", "sft", "ppo", "evaluate"]


def test_without_a_serve_section_nothing_is_served():
    assert load(pipeline.PipelineConfig, SHORT, ["serve=null"]).serve is None


def test_the_demo_fits_sixty_lines():
    assert len((ROOT / "jobs/configs/demo.yaml").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.train.minbatch=3", "sft.train.minbatch: unknown key; did you mean sft.train.minibatch"),
        ("ppo.sampling.max_new_tokens=100", "context is 128; set max_new_tokens to at most 96"),
        ("sft.data.max_tokens=500", "sft.data.max_tokens=500 is above the context of 128"),
        ("sft.run.seed=5", "sft.run differs from run"),
        ("ppo.policy.minibatch=7", "rollout_batch=32 is not a multiple of policy.minibatch=7"),
        ("reward_model.loss=ranking", "reward_model.loss=ranking has no rows: prepare makes pairs and labels"),
    ],
)
def test_what_no_stage_could_do_is_refused_before_the_first(override, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.check(load(pipeline.PipelineConfig, SHORT, [override]))


def rayrlhf(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_dry_run_plans_stage_by_stage():
    shown = rayrlhf("pipeline", SHORT, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for stage in ("pretrain:", "sft:", "reward_model:", "ppo:", "evaluate:", "serve:"):
        assert stage in shown.stdout
    too_much = rayrlhf("pipeline", SHORT, "--dry-run", "sft.train.num_workers=64", "sft.train.cpus_per_worker=1")
    assert too_much.returncode == 2
    assert "asked: 64 CPU" in too_much.stdout and "available:" in too_much.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_stages_then_skipped_then_refused_then_replaced(tmp_path):
    keys = (f"run.root={tmp_path}", "serve=null")
    first = rayrlhf("pipeline", SHORT, *keys)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    run = tmp_path / "demo-short"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["stages"]) == set(pipeline.STAGES)
    assert (run / "report.html").stat().st_size > 10_000

    again = rayrlhf("pipeline", SHORT, *keys)
    assert again.stdout.count("there already, made from the same inputs; skipped") == len(pipeline.STAGES)

    changed = "evaluate.num_prompts=32"
    refused = rayrlhf("pipeline", SHORT, *keys, changed)
    assert refused.returncode == 2
    assert "num_prompts: 64 -> 32" in refused.stderr and "run.when_changed=replace" in refused.stderr
    replaced = rayrlhf("pipeline", SHORT, *keys, changed, "run.when_changed=replace")
    assert replaced.returncode == 0, replaced.stderr[-3000:]
    assert replaced.stdout.count("same inputs; skipped") == len(pipeline.STAGES) - 1
