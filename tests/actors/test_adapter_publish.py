"""A policy with an adapter and the engine it publishes to agree on log-probs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from actors.config import RolloutConfig, SamplingConfig
from actors.engines.transformers import TransformersEngine
from rayrlhf.batches import Prompts
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.policy_learner import PolicyLearner
from rayrlhf.training.ppo_config import PolicyUpdateConfig
from tests.training.experience import free_port, policy_batch

PROMPTS = Prompts(
    tokens=torch.tensor([[1, 40, 41], [1, 50, 0], [1, 60, 61]]),
    lengths=torch.tensor([3, 2, 3]),
    prompt_index=torch.arange(3),
)
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=10)


@pytest.fixture(autouse=True, scope="module")
def one_rank():
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())


@pytest.mark.parametrize(
    ("kind", "peft"),
    [("llama", PeftConfig(rank=4)), ("qwen3", PeftConfig(kind="ia3")), ("gpt2", PeftConfig(rank=4))],
)
def test_log_probs_after_a_publish(kind: str, peft: PeftConfig, tiny_model: Callable[[str], str]) -> None:
    def learner(peft: PeftConfig | None) -> PolicyLearner:
        optimizer = EngineConfig(optimizer="adamw", lr=0.03)
        return PolicyLearner(tiny_model(kind), PolicyUpdateConfig(peft=peft, engine=optimizer), 0.7, 10, seed=3)

    policy, engine = learner(peft), TransformersEngine(tiny_model(kind), RolloutConfig(engine="transformers"))
    rollouts = engine.generate(PROMPTS, SAMPLING, seed=1)
    start, mask = learner(None).logprobs(rollouts), rollouts.response_mask
    assert torch.equal(policy.logprobs(rollouts), start), "a fresh adapter changes nothing"
    for step in (1, 2, 3):
        policy.update(policy_batch(rollouts, policy.logprobs(rollouts)), step)
    assert torch.equal(policy.reference_logprobs(rollouts), start)
    moved = policy.logprobs(rollouts)
    assert float((moved - start)[mask].abs().mean()) > 0.05

    def gap(sampled):
        return float((sampled.sampled_logprobs - policy.logprobs(sampled))[sampled.response_mask].abs().max())

    assert gap(engine.generate(PROMPTS, SAMPLING, seed=1)) > 0.05, "nothing is published yet"
    engine.load_weights(1, (bucket for bucket in policy.engine.weight_buckets(50_000) if bucket is not None))
    assert gap(engine.generate(PROMPTS, SAMPLING, seed=1)) < 1e-4
    assert torch.equal(policy.logprobs(rollouts), moved), "publishing leaves the policy as it is"
