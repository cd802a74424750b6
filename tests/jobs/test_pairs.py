"""`rayrlhf pairs` on a real local Ray: ranked samples, written as rows that DPO reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as tables
import pytest

from jobs import pairs
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.data import sources
from rayrlhf.errors import ConfigError, DataError, ModelError
from tests.jobs.rewards import vowels


def given(model: str, prompts: str, root: Path) -> list[str]:
    data = [f"prompts.train={prompts}", f"prompts.validation={prompts}", "prompts.max_tokens=40"]
    short = ["sampling.max_new_tokens=40", "rollout.engine=transformers", "samples=4", "batch=7", "num_prompts=20"]
    return ["run.name=try", f"run.root={root}", f"model={model}", *data, *short]


@pytest.fixture(scope="module")
def talker(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, likelier to end its texts."""
    import torch

    from rayrlhf.models import causal_lm

    folder = tiny_model("gpt2")
    model: Any = causal_lm.load_causal_lm(folder)
    tokenizer = causal_lm.load_tokenizer(folder)
    end = model.transformer.wte.weight.data[tokenizer.eos_token_id]
    hidden = model.transformer.ln_f.bias.data
    torch.manual_seed(0)
    hidden.copy_(torch.randn_like(hidden) * 0.5)
    end.copy_(hidden / hidden.norm() ** 2 * 3.0)
    made = str(tmp_path_factory.mktemp("talker"))
    causal_lm.save(model, tokenizer, made)
    return made


def test_samples_are_ranked_and_written_as_preference_rows(
    ray_local: None, talker: str, prompts_file: str, tmp_path: Path
) -> None:
    prompts = [json.loads(line)["prompt"] for line in open(prompts_file)]
    labelled = tmp_path / "openrlhf.jsonl"  # input and label, as OpenRLHF has them
    labelled.write_text("".join(json.dumps({"input": p, "label": p.split()[1]}) + "\n" for p in prompts))
    keys = [*given(talker, str(labelled), tmp_path), "reward_function=tests.jobs.rewards:known", "run.trackers=[]"]
    config = load(pairs.PairsConfig, None, keys)
    pairs.check(config)
    stage = find_stage(pairs.run(config), kind="pairs")
    metrics = stage.manifest["metrics"]
    for split in ("train", "validation"):
        folder = f"{stage.state_dir}/preference/{split}"
        rows = tables.dataset(folder).to_table().to_pylist()
        assert 0 < len(rows) == metrics[f"data/{split}_pairs"] <= metrics[f"data/{split}_prompts"] == 20
        assert len({row["prompt"] for row in rows}) == len(rows) and {row["prompt"] for row in rows} <= set(prompts)
        for row in rows:
            assert [row["chosen_score"], row["rejected_score"]] == vowels(["", ""], [row["chosen"], row["rejected"]])
            assert row["chosen_score"] > row["rejected_score"]
        margins = [row["chosen_score"] - row["rejected_score"] for row in rows]
        assert metrics[f"pairs/margin_{split}"] == pytest.approx(sum(margins) / len(margins))
        sources.check(folder, "auto", "preference")
    assert set(stage.manifest["parents"]) == {"model", "data", "validation", "reward_function"}
    logged = [json.loads(line) for line in (tmp_path / "try" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["total_steps"]) for row in logged] == [(step, 6) for step in range(1, 7)], "20 / 7, twice"
    assert not (tmp_path / "try" / "tensorboard").exists(), "run.trackers"
    assert "pairs/score_train" in logged[2] and "pairs/score_validation" in logged[3]


def test_a_ranker_with_another_tokenizer_is_given_the_text(
    ray_local: None, talker: str, foreign_reward_folder: str, prompts_file: str, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    more = [f"reward_model={foreign_reward_folder}", "prompts.validation=null", "num_prompts=7"]
    config = load(pairs.PairsConfig, None, [*given(talker, prompts_file, tmp_path), *more])
    pairs.check(config)
    stage = find_stage(pairs.run(config), kind="pairs")
    rows = tables.dataset(f"{stage.state_dir}/preference/train").to_table().to_pylist()
    model = AutoModelForSequenceClassification.from_pretrained(foreign_reward_folder)
    tokenizer = AutoTokenizer.from_pretrained(foreign_reward_folder)
    assert rows
    for row in rows:
        for name in ("chosen", "rejected"):
            text = f"<s><user>{row['prompt']}\n<assistant>{row[name]}</s>"
            with torch.no_grad():
                score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
            assert row[f"{name}_score"] == pytest.approx(float(score), abs=1e-4)


def test_mistakes(
    ray_local: None, tiny_model: Callable[[str], str], reward_folder: Any, prompts_file: str, tmp_path: Path
) -> None:
    keys = given(tiny_model("llama"), prompts_file, tmp_path)
    function = "reward_function=tests.jobs.rewards:vowels"
    for more, kind, message in (
        ([], ConfigError, "scores come from one source"),
        ([f"reward_model={tiny_model('llama')}"], ModelError, "gives no scores"),
        ([f"model={reward_folder('llama')}", function], ModelError, "holds a reward model"),
        (["sampling.max_new_tokens=100", function], ConfigError, "prompts.max_tokens to at most 28"),
        (["forward_tokens=79", function], ConfigError, "80 tokens, more than forward_tokens=79"),
        (["prompts.train=/nowhere.jsonl", function], DataError, "no file or folder"),
    ):
        with pytest.raises(kind, match=message):
            pairs.check(load(pairs.PairsConfig, None, [*keys, *more]))
    never = ["sampling.max_new_tokens=1", "num_prompts=2", "prompts.validation=null", function]
    with pytest.raises(DataError, match="none of 2 prompts .* gave a pair: of a prompt's 4 samples fewer than two"):
        pairs.run(load(pairs.PairsConfig, None, [*keys, *never]))
    assert not list(tmp_path.rglob("stage.json"))
