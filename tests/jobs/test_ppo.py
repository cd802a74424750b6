"""The PPO job on a real local Ray: five real roles, vLLM, DeepSpeed, publish, checkpoints, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.util import placement_group_table

from actors import calls
from jobs import dpo, ppo, ppo_roles
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import CheckpointError, ConfigError, DataError, ModelError, ResourceError, RewardError
from rayrlhf.ppo_loop import Progress as PPOProgress

STEPS = 2


def overrides(root: Path, model: str, reward: str, prompts: str, **more: Any) -> list[str]:
    keys: dict[str, Any] = {
        "run.name": "tiny",
        "run.root": root,
        "policy_model": model,
        "reward_model": reward,
        "prompts.train": prompts,
        "prompts.validation": prompts,
        "prompts.max_tokens": 32,
        "sampling.max_new_tokens": 12,
        "rollout.kv_cache_gib": 0.1,
        "loop.steps": STEPS,
        "loop.rollout_batch": 8,
        "loop.evaluate_every": 1,
        "loop.evaluation_prompts": 6,
        "loop.save_every": 1,
        "policy.minibatch": 4,
        "critic.minibatch": 4,
    }
    return [f"{key}={value}" for key, value in (keys | more).items()]


def rows_of(root: Path) -> dict[int, dict[str, float]]:
    lines = (root / "tiny" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def assert_invariants(rows: dict[int, dict[str, float]]) -> None:
    for step in range(1, STEPS + 1):
        assert rows[step]["policy/first_ratio_max_dev"] < 1e-4, "the ratio is 1 on the first minibatch"
        assert rows[step]["sync/logprob_gap"] < 1e-3, "vLLM samples from the policy's weights"
        assert rows[step]["sync/staleness"] == 0
    assert rows[1]["objective/kl_token_max_abs"] < 1e-4, "the KL is 0 before the first update"
    assert rows[2]["objective/kl_token_max_abs"] > 1e-6, "and not after it"


@pytest.mark.parametrize("kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen3", "gpt2"))])
def test_ppo_trains_publishes_and_saves(kind, tiny_model, reward_folder, prompts_file, tmp_path, ray_local):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more = {"run.trackers": "[]"}
    config = load(ppo.PPOConfig, None, overrides(tmp_path, tiny_model(kind), reward_folder(kind), prompts_file, **more))
    ppo.check(config)
    path = ppo.run(config)
    rows = rows_of(tmp_path)
    assert [(step, rows[step]["total_steps"]) for step in sorted(rows)] == [(0, STEPS), (1, STEPS), (2, STEPS)]
    assert not (tmp_path / "tiny" / "tensorboard").exists(), "run.trackers"
    assert_invariants(rows)
    stage = find_stage(path, kind="ppo")
    assert stage.manifest["is_final"] and stage.manifest["step"] == STEPS
    trained = AutoModelForCausalLM.from_pretrained(stage.model_dir).state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model(kind)).state_dict()
    assert any(not before[name].equal(tensor) for name, tensor in trained.items())
    assert AutoTokenizer.from_pretrained(stage.model_dir).chat_template
    assert_roles_left_logs(tmp_path / "tiny" / "logs" / "ppo")
    pools = {group["name"] for group in placement_group_table().values()}
    assert "tiny/ppo/all" in pools


def assert_roles_left_logs(folder: Path) -> None:
    calls = {
        "policy": "start logprobs update export_weights save",
        "critic": "start values update save",
        "reference": "start logprobs",
        "reward": "start scores",
        "rollout": "start generate load",
    }
    assert (folder / "attempt").is_file()
    assert sorted(path.name for path in folder.glob("*.log")) == sorted(f"{role}-0.log" for role in calls)
    for role, names in calls.items():
        text = (folder / f"{role}-0.log").read_text()
        assert f" INFO {role}-0: process " in text.splitlines()[0] and "torch 2." in text.splitlines()[0]
        for name in names.split():
            assert text.count(f" INFO begin {name}(") == text.count(f" INFO end {name} after ") > 0, (role, name)


@pytest.mark.slow
def test_a_resumed_run_gives_the_numbers_of_the_undisturbed_one(
    tiny_model, reward_folder, prompts_file, tmp_path, ray_local
):
    def config(root: Path, **more: Any) -> ppo.PPOConfig:
        more["rollout.engine"] = "transformers"
        keys = overrides(root, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
        return load(ppo.PPOConfig, None, keys)

    ppo.run(config(tmp_path / "whole"))
    half = tmp_path / "half"
    ppo.run(config(half))
    stage = Path(find_stage(str(half / "tiny" / "ppo")).path).parent
    # as if killed while it wrote the second checkpoint: no manifest, the pointer still at the first
    (stage / f"step_{STEPS:06d}" / "stage.json").unlink()
    (stage / "latest").write_text("step_000001")
    ppo.run(config(half))
    whole, resumed = rows_of(tmp_path / "whole")[STEPS], rows_of(half)[STEPS]
    compared = [name for name in whole if not name.startswith(("time", "perf", "sync/publish"))]
    assert {name: resumed[name] for name in compared} == {name: whole[name] for name in compared}

    with pytest.raises(CheckpointError, match=r"algorithm.gamma: 1.0 -> 0.5"):
        ppo.run(config(half, **{"algorithm.gamma": 0.5}))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_judged_in_parts_a_run_gives_the_same_numbers(
    ranks, tiny_model, reward_folder, prompts_file, tmp_path, ray_local
):
    def rows(name: str, **more: Any) -> dict[int, dict[str, float]]:
        more |= {"layout.roles.policy.ranks": ranks, "layout.roles.policy.cpus": 0.1, "sampling.max_new_tokens": 90}
        keys = overrides(tmp_path / name, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
        ppo.run(load(ppo.PPOConfig, None, keys))
        return rows_of(tmp_path / name)

    whole, parts = rows("whole"), rows("parts", judge_parts=8)
    assert_invariants(parts)
    for step in range(1, STEPS + 1):
        assert parts[step].keys() == whole[step].keys()
        for name, value in whole[step].items():
            if name.startswith(("objective", "rollout", "loss", "eval")):
                assert parts[step][name] == pytest.approx(value, abs=1e-4, rel=1e-3), name
    logs = tmp_path / "parts" / "tiny" / "logs" / "ppo"
    sampled, judged = ((logs / f"{role}-0.log").read_text() for role in ("rollout", "reward"))
    assert sampled.count("INFO end stream after") == STEPS
    evaluations = STEPS + 1
    assert STEPS < judged.count("INFO end scores after") - evaluations <= 8 * STEPS


@pytest.mark.slow
def test_a_run_of_two_policy_ranks_is_resumed_with_one(tiny_model, reward_folder, prompts_file, tmp_path, ray_local):
    def config(**more: Any) -> ppo.PPOConfig:
        keys = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
        return load(ppo.PPOConfig, None, keys)

    two = {"layout.roles.policy.ranks": 2, "layout.roles.policy.cpus": 0.1, "policy.engine.zero_stage": 2}
    more = {"rollout.engine": "transformers"}
    ppo.run(config(**more, **two))
    whole = rows_of(tmp_path)[STEPS]
    stage = Path(find_stage(str(tmp_path / "tiny" / "ppo")).path).parent
    (stage / f"step_{STEPS:06d}" / "stage.json").unlink()
    (stage / "latest").write_text("step_000001")
    ppo.run(config(**more))
    resumed = rows_of(tmp_path)[STEPS]
    for name in (name for name in whole if name.startswith(("objective/", "loss/", "eval/", "policy/", "critic/"))):
        assert resumed[name] == pytest.approx(whole[name], rel=2e-3, abs=2e-4), name


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("policy.minibatch", 3, ConfigError, r"rollout_batch=8 is not a multiple of policy.minibatch=3"),
        ("sampling.max_new_tokens", 100, ConfigError, r"context is 128; set max_new_tokens to at most 96"),
        ("prompts.train", "/nowhere/rows.jsonl", DataError, r"no file or folder /nowhere/rows.jsonl"),
        ("policy_model", "/nowhere/model", ModelError, r"no model at /nowhere/model"),
        ("layout.pools.all.cpus", 0.5, ConfigError, r"no bundle of pool all"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    key, value, error, words, tiny_model, reward_folder, prompts_file, tmp_path
):
    given = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **{key: value})
    with pytest.raises(error, match=words):
        ppo.check(load(ppo.PPOConfig, None, given))
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_more_than_the_cluster_has_is_refused_with_both_numbers(tiny_model, reward_folder, prompts_file, tmp_path):
    from cluster.layout import fits

    more = {"layout.pools.all.cpus": 64, "layout.roles.policy.cpus": 60}
    given = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
    with pytest.raises(ResourceError, match=r"(?s)asked: 64 CPU.*available: 4 CPU"):
        fits(ppo.plan(load(ppo.PPOConfig, None, given)), [{"CPU": 4.0, "memory": 16 * 2.0**30}])


def verl_file(prompts: str, folder: Path) -> str:
    """The prompts as verl's RL files have them, with the number in each as its answer."""
    rows = []
    for line in Path(prompts).read_text().splitlines():
        text = json.loads(line)["prompt"]
        number = text.split()[1]
        row = {"prompt": [{"role": "user", "content": text}], "data_source": f"source {number}", "ability": "none"}
        rows.append(row | {"reward_model": {"style": "rule", "ground_truth": number}, "extra_info": {"split": "train"}})
    (folder / "verl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "verl.jsonl")


def test_grpo_has_no_critic_and_takes_a_function_for_a_reward(tiny_model, prompts_file, tmp_path, ray_local):
    """Its function gets the answers and sources of verl's rows, each with its prompt."""
    import ray

    keys = {
        "reward_function": "tests.jobs.rewards:known",
        "reward_failures": "{score: 0.5, timeout_s: 5}",
        "algorithm.estimator": "grpo",
        "algorithm.group_size": 4,
        "policy.engine.lr": 1e-2,
        "policy.pretraining": f"{{data: {{train: {texts_file(tmp_path)}, max_tokens: 32}}, rows: 4}}",
        "policy.ema_decay": 0.5,
        "rollout.engine": "transformers",
    }
    given = overrides(tmp_path, tiny_model("llama"), "null", verl_file(prompts_file, tmp_path), **keys)
    given.remove("critic.minibatch=4")
    config = load(ppo.PPOConfig, None, given)
    ppo.check(config)
    assert [role.name for role in ppo.plan(config)] == ["policy", "rollout", "reference", "reward"]
    path = ppo.run(config)
    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert not any(name.startswith("critic") for name in names)
    rows = rows_of(tmp_path)
    assert_invariants(rows)
    assert not any(name.startswith(("critic/", "loss/value")) for row in rows.values() for name in row)
    assert 0 <= rows[1]["objective/scores_function"] <= 12
    counts = {name for name in rows[1] if name.startswith("objective/failed_")} | {"objective/scored_alone"}
    assert len(counts) == 7 and not any(rows[1][name] for name in counts)
    assert rows[1]["loss/kl_avg"] >= 0 and rows[1]["loss/pretraining_avg"] > 1
    assert rows[2]["loss/pretraining_avg"] < rows[1]["loss/pretraining_avg"]
    assert not (Path(path) / "state" / "critic").exists()
    assert find_stage(path).manifest["metrics"]["data/rows_read"] == rows[1]["data/rows_read"] == 24


@pytest.mark.slow
def test_a_step_of_spoilt_scores_is_taken_back(tiny_model, prompts_file, tmp_path, ray_local, capsys):
    """The scores of step 2 (call 1: before training, 2: step 1, 3: its evaluation) overflow; its prompts are left."""
    keys = {"reward_function": "tests.jobs.rewards:spoilt", "rollout.engine": "transformers"}
    keys |= {"policy.engine.min_lr_ratio": 1.0, "critic.engine.min_lr_ratio": 1.0, "loop.rollback.lr_factor": 0.25}
    config = load(ppo.PPOConfig, None, overrides(tmp_path, tiny_model("llama"), "null", prompts_file, **keys))
    ppo.check(config)
    path = ppo.run(config)
    rows = rows_of(tmp_path)
    assert sorted(rows) == [0, 1, 2]
    assert_invariants(rows)
    for role in ("policy", "critic"):
        assert rows[2][f"optim/{role}_lr"] == rows[1][f"optim/{role}_lr"] / 4
        assert rows[2][f"optim/{role}_skipped_steps"] == 3, "they stay counted"
    assert (rows[1]["optim/rollbacks"], rows[2]["optim/rollbacks"]) == (0, 1)
    said = capsys.readouterr().out
    assert "training diverged: 3 optimizer steps in a row were skipped" in said
    assert f"rolled back to {tmp_path}/tiny/ppo/step_000001 (1 of 2)" in said
    progress = PPOProgress.of(find_stage(path))
    assert (progress.step, progress.batches, progress.lr_scale) == (2, 3, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("score", [None, -1.0])
def test_a_reward_function_that_fails_in_a_run(score, tiny_model, prompts_file, tmp_path, ray_local, capfd):
    """It hangs, raises or gives NaN on some responses of every batch."""
    function = {"reward_function": "tests.jobs.rewards:unsteady", "rollout.engine": "transformers"}
    failures = {"timeout_s": 2.0} | ({} if score is None else {"score": score, "max_share": 0.9})
    keys = function | {f"reward_failures.{key}": value for key, value in failures.items()}
    config = load(ppo.PPOConfig, None, overrides(tmp_path, tiny_model("llama"), "null", prompts_file, **keys))
    ppo.check(config)
    if score is None:
        with pytest.raises(RewardError, match=r"(?s)reward_function=tests.jobs.rewards:unsteady failed.*response: "):
            ppo.run(config)
        return
    ppo.run(config)
    rows = rows_of(tmp_path)
    kinds = ("timeout", "exception", "not_finite")
    counts = [sum(rows[step][f"objective/failed_{kind}"] for step in (1, 2)) for kind in kinds]
    assert sum(counts) >= 3 and all(counts) and rows[1]["objective/scored_alone"] == 8
    assert_invariants(rows)
    log = (tmp_path / "tiny" / "logs" / "ppo" / "reward-0.log").read_text()
    assert "ZeroDivisionError" in log and "WARNING reward_function=tests.jobs.rewards:unsteady failed on" in log


@pytest.mark.parametrize(
    ("estimator", "normaliser", "kl_kind"),
    [
        ("gae", "tokens", "k1"),
        ("grpo", "sequence_mean", "k3"),
        ("dr_grpo", "constant", "k3"),
        ("rloo", "tokens", "k1"),
        ("reinforce_pp", "tokens", "k1"),
    ],
)
def test_what_the_learners_are_given(estimator, normaliser, kl_kind, tmp_path):
    def config(**keys):
        given = overrides(tmp_path, "model", "reward", "prompts", **{"algorithm.estimator": estimator} | keys)
        if estimator != "gae":
            given.remove("critic.minibatch=4")
        if estimator in ("grpo", "dr_grpo", "rloo"):
            given.append("algorithm.group_size=2")
        return load(ppo.PPOConfig, None, given)

    chosen = config(**{"sampling.temperature": 0.7, "sampling.stop_strings": ["###"]})
    expected = {"temperature": 0.7, "normaliser": normaliser, "normaliser_constant": 12.0, "kl_kind": kl_kind}
    expected |= {"stop_strings": ("###",)}
    steps = 2 * 2 * 2  # RL steps, epochs, minibatches
    assert ppo_roles.learner_arguments(chosen, "policy") == expected | {"config": chosen.policy, "total_steps": steps}
    more = {"policy.normaliser": "constant", "policy.normaliser_constant": 7, "algorithm.kl.kind": "k2"}
    found = ppo_roles.learner_arguments(config(**more), "policy")
    assert (found["normaliser"], found["normaliser_constant"], found["kl_kind"]) == ("constant", 7.0, "k2")
    if estimator == "gae":
        warm = config(**{"algorithm.critic_warmup_steps": 1, "critic.epochs": 3})
        assert ppo_roles.learner_arguments(warm, "policy")["total_steps"] == 1 * 2 * 2
        assert ppo_roles.learner_arguments(warm, "critic") == {"config": warm.critic, "total_steps": 2 * 3 * 2}


def test_the_watchdog_knows_of_what_runs_in_the_driver():
    told = ppo._known_to_the_watchdog(lambda *args: (args, calls.waiting()[-1]), "scores of gold")
    args, entry = told([1], [2])
    assert args == ([1], [2]) and (entry.role, entry.what) == ("driver", "scores of gold")
    assert entry not in calls.waiting()


def test_an_adaptive_kl_must_bear_a_rollout_batch(tmp_path, tiny_model, prompts_file):
    keys = {"algorithm.kl.target": 6, "algorithm.kl.horizon": 1.6}
    model = tiny_model("llama")
    config = load(ppo.PPOConfig, None, overrides(tmp_path, model, model, prompts_file, **keys))
    with pytest.raises(ConfigError, match="horizon=1.6 lets a step of loop.rollout_batch=8 sequences turn beta to 0"):
        ppo.check(config)


@pytest.mark.slow
def test_a_reward_model_with_another_tokenizer_scores_the_text(
    tiny_model, foreign_reward_folder, prompts_file, tmp_path, ray_local
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    keys = {"rollout.engine": "transformers", "algorithm.estimator": "rloo", "algorithm.group_size": 2}
    given = overrides(tmp_path, tiny_model("llama"), foreign_reward_folder, prompts_file, **keys)
    given.remove("critic.minibatch=4")
    config = load(ppo.PPOConfig, None, given)
    ppo.check(config)
    path = ppo.run(config)
    assert_invariants(rows_of(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(foreign_reward_folder)
    tokenizer = AutoTokenizer.from_pretrained(foreign_reward_folder)
    samples = (Path(path).parent / "samples" / "step_000002.jsonl").read_text().splitlines()
    for sample in map(json.loads, samples):
        text = f"<s><user>{sample['prompt']}\n<assistant>{sample['response']}"
        both = [tokenizer(t, add_special_tokens=False, return_tensors="pt") for t in (text, text + "</s>")]
        assert sample["score"] in [pytest.approx(float(model(**ids).logits), abs=1e-4) for ids in both]
    assert len(samples) == 6


def test_critic_and_reference_read_the_policys_tokens(
    tiny_model, foreign_reward_folder, foreign_model_folder, prompts_file, tmp_path
):
    def check(**keys):
        ppo.check(load(ppo.PPOConfig, None, overrides(tmp_path, *models, prompts_file, **keys)))

    models = tiny_model("llama"), foreign_reward_folder
    with pytest.raises(ConfigError, match=f"cannot start from it: set critic_model, such as critic_model={models[0]}"):
        check()
    with pytest.raises(ConfigError, match="critic_model=.*whose tokens it has to read"):
        check(critic_model=foreign_reward_folder)
    with pytest.raises(ConfigError, match="reference_model=.*whose tokens it has to read"):
        check(critic_model=models[0], reference_model=foreign_model_folder)
    # its context of 100 tokens is of its own tokens: 116 of the policy's may be fewer
    check(critic_model=models[0], **{"prompts.max_tokens": 104})


def texts_file(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {n % 2}"}) + "\n" for n in range(8)))
    return path


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"reward_function": "tests.jobs.rewards:vowels"}, "one source"),
        ({"reward_model": "null"}, "one source"),
        ({"reward_model": "null", "reward_function": "tests.jobs.rewards:missing"}, "has no function missing"),
        (
            {"algorithm.group_size": 3},
            "rollout_batch=8 is not a multiple of algorithm",
        ),
        ({"algorithm.estimator": "reinforce_pp", "algorithm.critic_warmup_steps": 2}, "has no critic"),
        ({"algorithm.estimator": "reinforce_pp", "critic.engine.lr": 0.5}, r"leave critic_model and critic.\* out"),
        ({"reward_failures.score": 0}, "reward_failures has no effect without a reward_function"),
        ({"reward_failures.score": ".inf"}, "finite number"),
        (
            {"reward_model": "null", "reward_function": "tests.jobs.rewards:vowels", "reward_failures.timeout_s": 60},
            "gives 8 responses of one actor 480 s.*call_deadline_s to at least 1067",
        ),
        (
            {"algorithm.estimator": "reinforce_pp", "loop.health.explained_variance.below": 0.1},
            "critic/explained_variance, which this run has not: .*reinforce_pp has no critic",
        ),
        ({"loop.health.equal_groups.steps": 2}, "which this run has not: algorithm.group_size is 1"),
        (
            {"loop.health.metrics": "{eval/gold: {below: 0}}"},
            "metrics.eval/gold watches eval/gold, which .*gold is null",
        ),
        ({"loop.health.metrics": "{eval/gould: {below: 0}}"}, "no metric eval/gould; did you mean eval/gold"),
        ({"algorithm.critic_warmup_steps": 2}, "leaves the policy none of loop.steps=2"),
        ({"policy.pretraining": "{data: {train: x.jsonl}, rows: 1}"}, "rows=1 leaves some of the 2 minibatches"),
        ({"policy.entropy.rate": 0.1}, "no effect without entropy.target"),
        ({"sampling.greedy": "true"}, "ppo.sampling.greedy|sampling.greedy: unknown key"),
        ({"policy.normaliser_constant": 5}, "no effect with policy.normaliser=tokens"),
    ],
)
def test_what_does_not_go_together(more, words, tiny_model, reward_folder, prompts_file, tmp_path):
    given = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
    with pytest.raises(ConfigError, match=words):
        ppo.check(load(ppo.PPOConfig, None, given))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gold": "foo:bar"}, "cannot import foo"),
        ({"loop.best": "eval/gold"}, "needs a gold function"),
        ({"loop.best": "eval/scores"}, "eval/score"),
        ({"policy.microbatch_tokens": 32}, r"44 tokens, more than policy.microbatch_tokens or forward_tokens \(32\)"),
        ({"layout.roles.polcy": "{pool: all}"}, "did you mean policy"),
        ({"prompts.max_tokens": 200}, "context is 128; set prompts.max_tokens to at most 116"),
        ({"prompts.train": "foo://x.jsonl"}, "foo://x.jsonl cannot be reached"),
        ({"policy_model": "hf://gpt2"}, "models of a hub are not fetched"),
    ],
)
def test_what_would_fail_late_is_found_at_once(more, words, tiny_model, reward_folder, prompts_file, tmp_path):
    given = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
    with pytest.raises((ConfigError, DataError, ModelError), match=words):
        ppo.check(load(ppo.PPOConfig, None, given))


def test_models_of_the_wrong_kind(tiny_model, reward_folder, prompts_file, tmp_path):
    causal, reward = tiny_model("llama"), reward_folder("llama")
    for model, scores, words in ((reward, reward, "writes none"), (causal, causal, "gives no scores")):
        with pytest.raises(ModelError, match=words):
            ppo.check(load(ppo.PPOConfig, None, overrides(tmp_path, model, scores, prompts_file)))
    with pytest.raises(ModelError, match="writes none"):
        dpo.check(
            load(dpo.DPOConfig, None, ["run.name=x", f"model={reward}", "data.train=x.jsonl", "data.max_tokens=64"])
        )
    broken = tmp_path / "broken"
    shutil.copytree(causal, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="no whole safetensors file"):
        ppo.check(load(ppo.PPOConfig, None, overrides(tmp_path, str(broken), reward, prompts_file)))
    (broken / "config.json").write_text('{"architectures": ["Ll')
    with pytest.raises(ModelError, match="config.json cannot be read"):
        ppo.check(load(ppo.PPOConfig, None, overrides(tmp_path, str(broken), reward, prompts_file)))
