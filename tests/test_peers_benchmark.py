"""What the comparison with peers computes, by hand."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks.peers import limits
from benchmarks.peers.__main__ import ROWS, in_dtype, more_of, named, table
from benchmarks.peers.generation import padded
from benchmarks.peers.our_side import command, phases, steps_of
from benchmarks.peers.rewards import trl_vowels
from benchmarks.peers.steps import Steps


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shape = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"intermediate_size": 16, "vocab_size": 50}))
    return tmp_path


def test_limits(model):
    # a layer: q and o 8 x 8, k and v 8 x 4, three of 8 x 16
    layers = 3 * (2 * 64 + 2 * 32 + 3 * 128)
    assert limits.weights(model) == (layers, 400) == (1728, 400)
    assert limits.tokens_per_s("sft", model, 1e9, is_adapter=False) == 1e9 / (6 * 1728)
    assert limits.tokens_per_s("dpo", model, 1e9, is_adapter=True) == 1e9 / (6 * 1728)
    assert limits.tokens_per_s("sampling", model, 1e9, is_adapter=False) == 1e9 / (2 * 2128)
    rates = {"float32": 1e9, "bf16": 4e9}
    grpo = limits.step_seconds("grpo", model, rates, "float32", 100, is_adapter=False)
    assert grpo == pytest.approx(100 * 10 * 2128 / 1e9)
    ppo = limits.step_seconds("ppo", model, rates, "float32", 100, is_adapter=False)
    assert ppo == pytest.approx(100 * (28 * 2128 + 26 * 1728) / 1e9)
    ppo = limits.step_seconds("ppo", model, rates, "bf16", 100, is_adapter=False)
    assert ppo == pytest.approx(100 * (2 * 2128 / 1e9 + (26 * 2128 + 26 * 1728) / 4e9)), "sampling stays float32"


def test_steps_are_told_by_their_warm_part():
    steps = Steps([9.0, 1.0, 2.0, 3.0], [10, 10, 20, 30]).after(1)
    assert steps.tokens_per_s == 10 and steps.median_s == 2


def test_steps_of_a_run(tmp_path):
    rows = [
        {"stage": "sft", "step": 1, "time_s": 10.0, "time/step_s": 4.0, "data/tokens": 100.0},
        {"stage": "sft", "step": 2, "time_s": 11.5, "time/step_s": 1.0, "data/tokens": 130.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert steps_of(tmp_path / "metrics.jsonl", "sft") == Steps([4.0, 1.5], [100, 30])


def test_phases_of_an_rl_run(tmp_path):
    def row(step: int, generate: float) -> dict[str, object]:
        seconds = {"rollout_generate": generate, "policy_logprobs": 0.5, "critic_values": 1.0, "policy_update": 2.0}
        times = {f"time/{name}_s": s for name, s in (seconds | {"critic_update": 1.0, "step": 8.0}).items()}
        return {"stage": "ppo", "step": step, "sync/publish_s": 0.4} | times

    rows = [row(1, 100.0), row(2, 3.0), row(3, 3.0), row(4, 4.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = phases(tmp_path / "metrics.jsonl", 1)
    assert found["share_outside_models"] == 1 - (3 + 1 + 2) / 8 and found["share_publish"] == 0.4 / 8
    assert found["time/rollout_generate_s"] == 3.0


def test_rows_are_padded_where_a_side_expects_it():
    for on_the_left, ids in ((True, [[0, 1], [2, 3]]), (False, [[1, 0], [2, 3]])):
        found, mask = padded([[1], [2, 3]], on_the_left)
        assert found.tolist() == ids and torch.equal(mask, (found > 0).long())


def test_a_row_in_bfloat16_is_one_of_its_own():
    rows = {row.name: in_dtype(row, "bf16") for row in ROWS}
    assert rows["SFT"].name == "SFT, bf16" and rows["SFT"].dtype == "bf16" and rows["SFT"].kind == "sft"
    assert rows["sampling, 64 tokens each"] is None
    assert all(in_dtype(row, "float32") is row for row in ROWS)


def test_the_pretrained_models_rows_are_asked_for_by_its_name_alone():
    assert {row.name for row in ROWS if named(row) == "sft"} == {"SFT"}
    assert {row.kind for row in ROWS if named(row) == "smollm2"} == {"sft", "grpo"}


def test_the_rows_are_jobs_of_ours(tmp_path):
    for row in (row for row in ROWS if row.kind != "sampling"):
        line = command(row.kind, tmp_path, tmp_path, row.steps, "float32", list(more_of(row, "our")))
        assert line[2] == f"jobs.{'ppo' if row.kind in ('grpo', 'ppo') else row.kind}"
        assert set(row.ours) <= set(line)
        if row.lora:
            key = "policy.peft" if row.kind == "grpo" else "peft"
            assert line[-1] == f"{key}={{rank: {row.lora}, alpha: {2 * row.lora}}}"
            assert more_of(row, "trl") == (str(row.lora),)
    assert trl_vowels(["aeb", ""]) == [2 / 3, 0.0]


def test_the_table():
    row = {"name": "SFT", "is_rate": True, "goal": 1.5}
    one = {"row": row, "unit": "tokens/s", "ours": [2000.0, 1800.0], "theirs": [950.0, 1050.0], "limit": 6000.0}
    line = table([one | {"speed": statistics.median([2000, 1800]) / 1000}]).splitlines()[-1]
    assert line == "| SFT | tokens/s | 1,900 (1,800 to 2,000) | 1,000 (950 to 1,050) | 1.90x as fast | 1.5x | 6,000 |"
