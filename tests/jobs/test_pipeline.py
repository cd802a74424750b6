"""The pipeline's wiring and refusals; the slow test runs every stage for real, twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.role_memory import compare
from jobs import pipeline
from rayrlhf.config import load
from rayrlhf.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]
SHORT = str(ROOT / "jobs/configs/demo_short.yaml")
DEMO_STAGES = ("prepare", "pretrain", "sft", "reward_model", "ppo", "evaluate")


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
    assert {getattr(config, stage).run.seed for stage in config.stages} == {3} and config.stages == DEMO_STAGES
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


def test_stages_left_out_are_taken_from_upstream():
    config = load(pipeline.PipelineConfig, str(ROOT / "jobs/configs/demo_dpo.yaml"), ["run.root=/there"])
    assert config.stages == ("pairs", "dpo", "evaluate")
    tables = "runs/demo/prepare/step_000000/state"
    assert (config.pairs.model, config.pairs.prompts.train) == ("runs/demo/sft/latest", f"{tables}/prompts/train")
    assert config.pairs.reward_model == config.evaluate.reward_model == "runs/demo/reward_model/latest"
    made = "/there/demo-dpo/pairs/step_000000/state/preference"
    assert (config.dpo.model, config.dpo.data.train) == ("runs/demo/sft/latest", f"{made}/train")
    assert (config.evaluate.policy, config.evaluate.baseline) == ("/there/demo-dpo/dpo/latest", "runs/demo/sft/latest")
    kto = load(pipeline.PipelineConfig, str(ROOT / "jobs/configs/demo_kto.yaml"), [])
    assert kto.kto.data.validation == f"{tables}/labelled/validation"
    assert kto.evaluate.policy == "runs/demo-kto/kto/latest"
    people = load(pipeline.PipelineConfig, None, ["run.name=x", "upstream=runs/demo", "dpo.beta=0.2"])
    assert people.dpo.data.train == f"{tables}/preference/train", "without samples: the pairs that people rated"
    function = ["pairs.reward_function=tests.jobs.rewards:vowels", "pairs.samples=4"]
    assert load(pipeline.PipelineConfig, None, ["run.name=x", "upstream=y", *function]).pairs.reward_model is None


def test_what_waits_for_no_other_stage_is_checked_at_once(tmp_path):
    dpo = str(ROOT / "jobs/configs/demo_dpo.yaml")
    config = load(pipeline.PipelineConfig, dpo, [f"upstream={tmp_path}/nothing", f"run.root={tmp_path}"])
    with pytest.raises(ConfigError, match="upstream=.*/nothing: .* no such folder"):
        pipeline.check(config)
    (tmp_path / "nothing/prepare").mkdir(parents=True)
    (tmp_path / "nothing/prepare/latest").write_text("step_000000")
    with pytest.raises(CheckpointError, match="nothing/sft/latest is not a finished stage"):
        pipeline.check(config)


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
        ("kto.beta=0.2", "kto and ppo are given, but a pipeline trains one policy: .* upstream=runs/demo-short"),
        ("ppo.policy.minibatch=7", "rollout_batch=32 is not a multiple of policy.minibatch=7"),
        ("sft.peft.kind=prefix_tuning", "sft.peft.kind=prefix_tuning cannot be merged into weights"),
        ("sft.peft.target_modules=[mlp.up]", "sft.peft.target_modules: the model has no linear layer 'mlp.up'"),
        ("ppo.policy.peft.target_modules=[c_attn]", "ppo.policy.peft.target_modules: .*'c_attn'; There are down_proj"),
        ("reward_model.loss=ranking", "reward_model.loss=ranking has no rows: prepare makes pairs and labels"),
    ],
)
def test_what_no_stage_could_do_is_refused_before_the_first(override, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.check(load(pipeline.PipelineConfig, SHORT, [override]))


def test_the_configuration_of_the_documentation_is_right(tiny_model, tmp_path, monkeypatch):
    text = (ROOT / "docs/your_data.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    chat, block = [one for one in blocks if one.startswith("run:")]
    row = {"prompt": "a", "completion": " b", "chosen": " c", "rejected": " d"}
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(block)
    Path("data").mkdir()
    for name in set(re.findall(r"data/(\w+\.jsonl)", block)):
        Path("data", name).write_text((json.dumps(row) + "\n") * 100)
    shutil.copytree(tiny_model("llama"), "path/to/hf_folder")
    model = json.loads(Path("path/to/hf_folder/config.json").read_text())
    Path("path/to/hf_folder/config.json").write_text(json.dumps(model | {"max_position_embeddings": 1024}))
    config = load(pipeline.PipelineConfig, "mine.yaml", [])
    pipeline.check(config)
    assert list(pipeline.plan(config)) == list(config.stages) == ["sft", "reward_model", "ppo", "evaluate"]
    (mixed,) = [one for one in blocks if one.startswith("data:")]
    (made,) = [one for one in blocks if one.startswith("prepare:")]
    Path("parts.yaml").write_text(f"run: {{name: mine}}\n{made}pretrain:\n" + textwrap.indent(mixed, "  "))
    more = "pretrain.model={hidden: 64, layers: 1, heads: 2, kv_heads: 2, intermediate: 64, context: 512}"
    parts = load(pipeline.PipelineConfig, "parts.yaml", [more])
    assert len(parts.pretrain.data.sources) == 3 and parts.prepare.tokenizer.vocab_size == 32_000

    Path("chat.yaml").write_text(chat)
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    Path("data/chats.jsonl").write_text((json.dumps({"talk": talk}) + "\n") * 100)
    config = load(pipeline.PipelineConfig, "chat.yaml", [])
    pipeline.check(config)
    assert list(pipeline.plan(config)) == ["sft"]


def test_a_pipeline_needs_a_stage_and_what_it_takes():
    with pytest.raises(ConfigError, match="no stage is given; there are prepare, pretrain"):
        load(pipeline.PipelineConfig, None, ["run.name=x"])
    with pytest.raises(ConfigError, match=r"dpo\.model"):
        load(pipeline.PipelineConfig, None, ["run.name=x", "dpo.beta=0.2"])


def test_adapters_need_less_memory_and_no_reference():
    whole = pipeline.plan(load(pipeline.PipelineConfig, SHORT, []))
    adapters = ["sft.peft.rank=2", "reward_model.peft.kind=ia3", "ppo.policy.peft.rank=2", "ppo.critic.peft.rank=2"]
    light = pipeline.plan(load(pipeline.PipelineConfig, SHORT, adapters))
    before, after = ({role.name: role.memory.total for role in plan["ppo"]} for plan in (whole, light))
    assert before.keys() - after.keys() == {"reference"}
    assert after["policy"] < before["policy"] and after["critic"] < before["critic"]
    assert all(light[stage][0].memory.total < whole[stage][0].memory.total for stage in ("sft", "reward_model"))
    assert light["pretrain"] == whole["pretrain"]


def rayrlhf(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_dry_run_plans_stage_by_stage(tmp_path):
    shown = rayrlhf("pipeline", SHORT, "--dry-run", f"run.root={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    for stage in ("pretrain:", "sft:", "reward_model:", "ppo:", "evaluate:", "serve:"):
        assert stage in shown.stdout
    assert all(f"{stage}: would be made" in shown.stdout for stage in DEMO_STAGES)
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
    assert set(summary["stages"]) == set(DEMO_STAGES)
    report, sft = (run / "report.html").read_text(), json.loads((run / "sft/step_000020/stage.json").read_text())
    assert 'id="changes-ppo"' in report and ">stale<" not in report
    assert sft["environment"]["command"].startswith(f"rayrlhf pipeline {SHORT} run.root=")

    memory = compare(run)  # the plan's estimates, within 30 % of what each role held at most
    assert {name.partition("/")[2] for name in memory} == {
        "worker",
        "policy",
        "critic",
        "reference",
        "reward",
        "rollout",
    }
    assert all(0.7 < found["ratio"] < 1.3 for found in memory.values()), memory

    again = rayrlhf("pipeline", SHORT, *keys)
    assert again.stdout.count("there already, made from the same inputs; skipped") == len(DEMO_STAGES)

    changed = "evaluate.num_prompts=32"
    refused = rayrlhf("pipeline", SHORT, *keys, changed)
    assert refused.returncode == 2
    assert "num_prompts: 64 -> 32" in refused.stderr and "run.when_changed=replace" in refused.stderr
    replaced = rayrlhf("pipeline", SHORT, *keys, changed, "run.when_changed=replace")
    assert replaced.returncode == 0, replaced.stderr[-3000:]
    assert replaced.stdout.count("same inputs; skipped") == len(DEMO_STAGES) - 1
