"""Sampling ahead of training on a real local Ray: versions, metrics, a kill, and the numbers of a resumed run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import ppo
from jobs.ppo_config import STALE_IMPORTANCE_CAP
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from tests.jobs.test_ppo import overrides, rows_of

pytestmark = pytest.mark.slow

STEPS, AHEAD = 4, 1


@pytest.fixture
def config(tiny_model, reward_folder, prompts_file):
    def made(root: Path, **more: Any) -> ppo.PPOConfig:
        keys = {"loop.steps": STEPS, "loop.evaluate_every": 2, "loop.keep": 9, "max_staleness": AHEAD} | more
        given = overrides(root, tiny_model("llama"), reward_folder("llama"), prompts_file, **keys)
        return load(ppo.PPOConfig, None, given)

    return made


@pytest.mark.parametrize("more", [{}, {"max_staleness": 2, "partial_rollout_tokens": 7}], ids=["whole", "parts"])
def test_a_resumed_run_gives_the_numbers_of_the_undisturbed_one(config, tmp_path, ray_local, more):
    """With batches in the checkpoint that were sampled, but not learnt from, and responses that were cut."""
    whole_config = config(tmp_path, **{"rollout.engine": "transformers"} | more)
    ahead = whole_config.max_staleness
    ppo.run(whole_config)
    whole = rows_of(tmp_path)
    assert [whole[step]["sync/staleness"] for step in range(1, STEPS + 1)] == [min(n, ahead) for n in range(STEPS)]
    if more:
        assert 0 < whole[STEPS]["sync/partial_share"] <= 1
    stage = Path(find_stage(str(tmp_path / "tiny" / "ppo")).path).parent
    for step in range(3, STEPS + 1):  # as if killed in step 3
        shutil.rmtree(stage / f"step_{step:06d}")
    (stage / "latest").write_text("step_000002")
    assert len(list((stage / "step_000002").rglob("sampled_*.safetensors"))) == ahead
    ppo.run(whole_config)
    resumed = rows_of(tmp_path)
    assert resumed[3]["time_s"] > whole[STEPS]["time_s"], "step 3 was run anew"
    for step in range(3, STEPS + 1):
        compared = [name for name in whole[step] if not name.startswith(("time", "perf", "sync/publish"))]
        assert {name: resumed[step][name] for name in compared} == {name: whole[step][name] for name in compared}


def test_vllm_samples_from_the_weights_it_says(config, tmp_path, ray_local):
    ppo.run(config(tmp_path))
    rows = rows_of(tmp_path)
    for step in range(1, STEPS + 1):
        assert rows[step]["sync/staleness"] == min(step - 1, AHEAD)
        assert "sync/logprob_gap" not in rows[step] or step % 2 == 0, "only an evaluation can tell of it"
        assert 0 < rows[step]["policy/importance_avg"] <= STALE_IMPORTANCE_CAP
    assert rows[1]["sync/logprob_drift"] < 1e-3 < rows[3]["sync/logprob_drift"], "the policy has moved on"
    assert all(rows[step]["sync/logprob_gap"] < 1e-3 for step in (0, 2, 4)), "settled, it has the newest"
