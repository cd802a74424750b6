"""`rayrlhf evaluate` on a real local Ray: the numbers against transformers, and mistakes named up front."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from cluster.config import LayoutConfig
from jobs import evaluate
from rayrlhf.checkpoint import find_stage
from rayrlhf.errors import ConfigError, ModelError

NUM_PROMPTS = 6


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory) -> dict[str, str]:
    """A policy, baseline and base of one architecture with different weights, and a reward model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rayrlhf.models import causal_lm, scalar

    baseline = tiny_model("llama")
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(baseline)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, scale in (("policy", 0.05), ("base", 0.02)):
            model = AutoModelForCausalLM.from_pretrained(baseline)
            for parameter in model.parameters():
                parameter.data += scale * torch.randn_like(parameter)
            causal_lm.save(model, tokenizer, str(root / name))
        head = scalar.load_scalar(baseline)
        torch.nn.init.normal_(head.score.weight)
        causal_lm.save(head, tokenizer, str(root / "reward"))
    return {"baseline": baseline, "policy": str(root / "policy"), "base": str(root / "base")} | {
        "reward_model": str(root / "reward")
    }


@pytest.fixture
def config(folders, tmp_path):
    """Six of eight prompts, a gold function in a module on the path, words of a text file."""
    rows = [json.dumps({"prompt": f"The movie number {i}"}) + "\n" for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    (tmp_path / "words.txt").write_text("a b c\n\nd e\n")
    return evaluate.EvaluateConfig(
        run={"name": "try", "root": str(tmp_path / "runs"), "trackers": ()},
        prompts=str(tmp_path / "prompts.jsonl"),
        words=str(tmp_path / "words.txt"),
        num_prompts=NUM_PROMPTS,
        max_prompt_tokens=40,
        sampling={"max_new_tokens": 12},
        rollout={"kv_cache_gib": 0.05},
        gold="rayrlhf.data.demo:gold",
        **folders,
    )


def logprob_sums(folder: str, token_rows: list[tuple[list[int], int]]) -> list[tuple[float, int]]:
    """(sum of log-probs, number) of the tokens from `start` on of each row, by plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    sums = []
    for tokens, start in token_rows:
        with torch.no_grad():
            logp = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        sums.append((sum(float(logp[t - 1, tokens[t]]) for t in range(start, len(tokens))), len(tokens) - start))
    return sums


def test_the_numbers_are_those_of_the_models(config, folders, ray_local, monkeypatch, capsys) -> None:
    seen = []
    make_side = evaluate._side

    async def keep(*arguments):
        seen.append(await make_side(*arguments))
        return seen[-1]

    monkeypatch.setattr(evaluate, "_side", keep)
    evaluate.check(config)
    path = evaluate.run(config)
    stage = find_stage(path, kind="evaluate")
    metrics = stage.manifest["metrics"]
    for side, name in zip(seen, ("baseline", "policy"), strict=True):
        rollouts = side.rollouts
        starts = (rollouts.lengths - rollouts.response_mask.sum(1)).tolist()
        rows = [
            (tokens[:length].tolist(), start)
            for tokens, length, start in zip(rollouts.tokens, rollouts.lengths, starts, strict=True)
        ]
        own, reference, base = (logprob_sums(folders[model], rows) for model in (name, "baseline", "base"))
        kl = sum(a - b for (a, _), (b, _) in zip(own, reference, strict=True)) / NUM_PROMPTS
        assert metrics[f"eval/{name}/kl"] == pytest.approx(kl, abs=1e-3)
        nll = -sum(total for total, _ in base) / sum(count for _, count in base)
        assert metrics[f"eval/{name}/perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
        assert metrics[f"eval/{name}/length"] == sum(count for _, count in own) / NUM_PROMPTS
    assert metrics["eval/baseline/kl"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["eval/policy/kl"] > 0.05, "the policy's own weights sampled"
    assert torch.equal(seen[0].rollouts.prompt_index, seen[1].rollouts.prompt_index)

    scores = reward_scores(folders["reward_model"], seen[1].rollouts)
    assert seen[1].scores == pytest.approx(scores, abs=1e-4)
    assert metrics["eval/policy/score"] == pytest.approx(sum(scores) / NUM_PROMPTS, abs=1e-4)
    assert {"eval/win_rate_reward", "eval/win_rate_gold_low", "eval/policy/known_word_share"} <= set(metrics)

    rows = [json.loads(line) for line in open(f"{stage.state_dir}/samples.jsonl")]
    assert [row["prompt"] for row in rows] == seen[0].prompts and len(rows) == NUM_PROMPTS
    assert set(stage.manifest["parents"]) == {"policy", "baseline", "base", "reward_model", "prompts", "gold"}
    (line,) = [json.loads(line) for line in open(f"{config.run.directory}/metrics.jsonl")]
    assert (line["stage"], line["total_steps"]) == ("evaluate", 0)
    assert not os.path.exists(f"{config.run.directory}/tensorboard"), "run.trackers"
    assert line["eval/policy/kl"] == metrics["eval/policy/kl"]
    out = capsys.readouterr().out
    assert "perplexity" in out and "win rate by gold" in out and "samples" in out


def reward_scores(folder: str, rollouts) -> list[float]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [
            float(model(tokens[None, :length]).logits)
            for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
        ]


def test_known_words_come_from_the_texts(config, ray_local) -> None:
    assert evaluate.known_words(config.words) == {"a", "b", "c", "d", "e"}


def test_the_base_model_takes_the_policys_place() -> None:
    layout = evaluate.evaluation_layout(LayoutConfig.model_validate("cpu"))
    assert set(layout.roles) == {"reference", "reward", "rollout", "base"}
    assert layout.roles["base"].cpus == LayoutConfig.model_validate("cpu").roles["policy"].cpus
    for shipped in ("one_gpu", "eight_gpu", "two_node"):
        from cluster.layout import plan

        plan(evaluate.evaluation_layout(LayoutConfig.model_validate(shipped)))


def test_a_judge_with_another_tokenizer_is_given_the_text(config, foreign_reward_folder) -> None:
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.reward_sources.retokenise import Retokenised

    group, originals = object(), Originals()
    assert evaluate._reward(config, group, originals) is group
    foreign = config.model_copy(update={"reward_model": foreign_reward_folder, "max_prompt_tokens": 110})
    evaluate.check(foreign)  # its context of 100 tokens is of its own tokens
    made = evaluate._reward(foreign, group, originals)
    assert isinstance(made, Retokenised) and made.reward is group and made.retokenise.originals is originals
    assert made.retokenise.max_tokens == 100


def test_mistakes(config, tiny_model, foreign_model_folder, tmp_path) -> None:
    def with_keys(**keys):
        return evaluate.EvaluateConfig.model_validate(config.model_dump() | keys)

    for keys, error, message in (
        ({"policy": str(tmp_path / "nowhere")}, ModelError, "no model at"),
        ({"policy": tiny_model("gpt2")}, ModelError, "different architectures"),
        ({"base": foreign_model_folder}, ModelError, "base=.* has another tokenizer than policy="),
        ({"reward_model": config.policy}, ModelError, "gives no scores"),
        ({"policy": config.reward_model}, ModelError, "holds a reward model"),
        ({"max_prompt_tokens": 120}, ConfigError, "120 tokens and a response of 12.*max_prompt_tokens to at most 116"),
        ({"gold": "rayrlhf.data.demo:silver"}, ConfigError, "no function silver"),
    ):
        with pytest.raises(error, match=message):
            evaluate.check(with_keys(**keys))
    evaluate.check(config)


def numbered(prompts: str, folder: Path) -> str:
    """The prompts "... number N" with a column `number`."""
    rows = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    rows = [row | {"number": row["prompt"].split()[-1]} for row in rows]
    (folder / "numbered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "numbered.jsonl")


@pytest.mark.slow
def test_a_function_scores_in_the_place_of_a_reward_model(config, folders, ray_local, tmp_path) -> None:
    given = config.model_dump() | {
        "reward_model": None,
        "reward_function": "tests.jobs.rewards:known",
        "columns": {"reference": "number"},
        "prompts": numbered(config.prompts, tmp_path),
        "gold": "tests.jobs.rewards:vowels",
        "sampling": {"max_new_tokens": 8, "greedy": True},
        "rollout": {"engine": "transformers"},
    }
    scored = evaluate.EvaluateConfig.model_validate(given)
    evaluate.check(scored)
    stage = find_stage(evaluate.run(scored), kind="evaluate")
    metrics = stage.manifest["metrics"]
    for side in ("baseline", "policy"):
        assert metrics[f"eval/{side}/score"] == metrics[f"eval/{side}/gold"]
    assert "reward_model" not in stage.manifest["parents"]
    with pytest.raises(ValueError, match="one source"):
        evaluate.EvaluateConfig.model_validate(given | {"reward_function": None})
