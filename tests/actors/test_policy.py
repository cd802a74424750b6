"""Policy and critic over several ranks: real Ray actors, real torch.distributed, real DeepSpeed."""

import asyncio
from dataclasses import replace

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.critic import CriticRank
from actors.group import CriticGroup, PolicyGroup, RankGroup
from actors.policy import PolicyRank
from actors.ranks import EngineRank
from rayrlhf.data.config import DataConfig
from rayrlhf.models.digest import tensor_digest
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.critic_learner import CriticLearner
from rayrlhf.training.policy_learner import PolicyLearner
from rayrlhf.training.ppo_config import CriticUpdateConfig, PolicyUpdateConfig, PretrainingMixConfig
from tests.training.experience import TEXTS, critic_batch, policy_batch, random_rollouts

# pieces of few rows, so that two ranks get different numbers of them and an empty one fills up
SPLIT = {"epochs": 2, "minibatch": 5, "microbatch_tokens": 40, "forward_tokens": 60}
ROLLOUTS = random_rollouts(13)


class Anywhere:
    """A placement for tests: a name, and no resources."""

    def options(self, role, rank):
        return {"name": f"{role}-{rank}", "num_cpus": 0}


def sgd(stage):
    return EngineConfig(optimizer="sgd", lr=0.1, min_lr_ratio=1.0, zero_stage=stage)


def without_speed(metrics):
    """The metrics that a second run has to repeat."""
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


class BothLearners(EngineRank):
    """A rank that makes a policy and a critic at any ZeRO stage, one after the other."""

    def start(self, rank, world_size, address, port, timeout_s, threads, folder):
        self.join(rank, world_size, address, port, timeout_s, threads)
        self.folder = folder

    def one_step(self, stage):
        """Outputs before, weights and metrics after one RL step's update, on rank 0."""
        policy = PolicyLearner(self.folder, PolicyUpdateConfig(**SPLIT, engine=sgd(stage)), 0.7, 6, seed=0)
        critic = CriticLearner(self.folder, CriticUpdateConfig(**SPLIT, engine=sgd(stage)), 6, seed=0)
        logprobs, values = policy.logprobs(ROLLOUTS), critic.values(ROLLOUTS)
        metrics = policy.update(policy_batch(ROLLOUTS, logprobs), step=1)
        metrics |= critic.update(critic_batch(ROLLOUTS, values), step=1)
        outputs = {"logprobs": logprobs, "values": values.values, "bootstrap": values.bootstrap}
        for name, learner in (("policy", policy), ("critic", critic)):
            for bucket in learner.engine.weight_buckets(20_000):
                outputs |= {f"{name}.{key}": tensor for key, tensor in (bucket or {}).items()}
        return self.answer((outputs, without_speed(metrics)))

    def every_term(self, stage):
        """The same for a policy with every term of the loss, an early stop and a moving average."""
        data = DataConfig(train="unused.jsonl")
        config = PolicyUpdateConfig(
            **SPLIT,
            engine=sgd(stage),
            importance_cap=1.2,
            dual_clip=1.5,
            ema_decay=0.5,
            max_approx_kl=2e-3,
            entropy={"coefficient": 0.01},
            pretraining=PretrainingMixConfig(data=data, coefficient=0.5),
        )
        policy = PolicyLearner(self.folder, config, 0.7, 6, seed=0, normaliser="sequence_mean")
        now, mask = policy.logprobs(ROLLOUTS), ROLLOUTS.response_mask
        wave = torch.where(mask, torch.sin(torch.arange(now.numel())).view_as(now), 0.0)
        batch = replace(policy_batch(ROLLOUTS, now), ref_logprobs=now - 0.3 * wave, sampled_logprobs=now + 0.4 * wave)
        # 3 texts in 3 minibatches: with two ranks one of them has none
        metrics = policy.update(batch, step=1, kl_coefficient=0.2, texts=TEXTS)
        outputs = {}
        for bucket in policy.engine.weight_buckets(20_000):
            outputs |= bucket or {}
        outputs |= {f"average.{name}": tensor for name, tensor in policy.average.weights.items()}
        return self.answer((outputs, without_speed(metrics)))


@pytest.fixture
def groups(ray_local):
    made = []

    def make(kind, role, actor_class, count, **kwargs):
        made.append(kind(role, actor_class, {"threads": 1, **kwargs}, Anywhere(), count, 120.0))
        return made[-1]

    yield make
    for group in made:
        group.stop()


@pytest.mark.slow
async def test_ranks_and_zero_stages_change_nothing(groups, tiny_model):
    """One PPO update with 1 and with 2 policy and critic ranks at ZeRO 1, 2 and 3: the same weights."""
    folder = tiny_model("llama")
    alone = groups(RankGroup, "alone", BothLearners, 1, folder=folder)
    pair = groups(RankGroup, "pair", BothLearners, 2, folder=folder)
    await asyncio.gather(alone.start(120), pair.start(120))
    expected, expected_metrics = await alone.together("one_step", 1)
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    moved = max(float((expected[f"policy.{name}"] - p.detach()).abs().max()) for name, p in start.items())
    assert moved > 1e-3

    whole, whole_metrics = await alone.together("every_term", 1)
    assert 1 < whole_metrics["policy/optimizer_steps"] < 6, "the early stop came into it"
    assert whole_metrics["policy/importance_capped_share"] > 0 and whole_metrics["loss/pretraining_avg"] > 0
    for group, stage in ((alone, 3), (pair, 1), (pair, 3)):
        outputs, metrics = await group.together("every_term", stage)
        assert outputs.keys() == whole.keys() and len(outputs) == 2 * len(start)
        for name, tensor in whole.items():
            gap = float((outputs[name] - tensor).abs().max())
            assert gap < 1e-5, f"{name} differs by {gap} with {group.names} at ZeRO {stage}"
        assert metrics == pytest.approx(whole_metrics, rel=1e-3, abs=1e-5)

    for group, stage in ((alone, 2), (alone, 3), (pair, 1), (pair, 2), (pair, 3)):
        outputs, metrics = await group.together("one_step", stage)
        assert outputs.keys() == expected.keys()
        for name, tensor in expected.items():
            gap = float((outputs[name] - tensor).abs().max())
            assert gap < 1e-5, f"{name} differs by {gap} with {group.names} at ZeRO {stage}"
        assert metrics == pytest.approx(expected_metrics, rel=1e-3, abs=1e-5)
        assert metrics["policy/first_ratio_max_dev"] < 1e-4


async def test_the_groups_learn_export_save_and_load(groups, tiny_model, tmp_path):
    """PolicyGroup and CriticGroup as a job uses them, two ranks each at ZeRO 2."""
    folder = tiny_model("qwen3")  # tied embeddings
    learner = {"folder": folder, "total_steps": 10, "seed": 0}
    policy_config = PolicyUpdateConfig(**SPLIT, engine=sgd(2))
    policy = groups(PolicyGroup, "policy", PolicyRank, 2, config=policy_config, temperature=0.7, **learner)
    critic = groups(CriticGroup, "critic", CriticRank, 2, config=CriticUpdateConfig(**SPLIT, engine=sgd(2)), **learner)
    await asyncio.gather(policy.start(120), critic.start(120))

    logprobs, values = await asyncio.gather(policy.logprobs(ROLLOUTS), critic.values(ROLLOUTS))
    to_learn, to_value = policy_batch(ROLLOUTS, logprobs), critic_batch(ROLLOUTS, values)
    metrics, critic_metrics = await asyncio.gather(policy.update(to_learn, 1, 0.0), critic.update(to_value, 1))
    assert not metrics.keys() & critic_metrics.keys()
    assert metrics["policy/first_ratio_max_dev"] < 1e-4

    exported, nothing = await policy.everyone("export_weights", 20_000)
    assert nothing is None and len(exported) > 1
    await asyncio.gather(policy.save(str(tmp_path)), critic.save(str(tmp_path)))
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    sent = {name: stored.tensor() for ref, _ in exported for name, stored in ray.get(ref).items()}
    digests = {name: digest for _, named in exported for name, digest in named.items()}
    assert sent.keys() == saved.keys() == digests.keys()  # tied weights once
    for name, tensor in sent.items():
        assert torch.equal(tensor, saved[name].detach()) and tensor_digest(tensor) == digests[name]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "state" / "critic" / "model")

    async def outputs():
        return await asyncio.gather(policy.logprobs(ROLLOUTS), critic.values(ROLLOUTS))

    logprobs_after, values_after = await outputs()
    await asyncio.gather(policy.update(to_learn, 2, 0.0), critic.update(to_value, 2))
    assert not torch.equal((await outputs())[0], logprobs_after)
    await asyncio.gather(policy.load(str(tmp_path)), critic.load(str(tmp_path)))
    logprobs_loaded, values_loaded = await outputs()
    assert torch.equal(logprobs_loaded, logprobs_after)
    assert torch.equal(values_loaded.values, values_after.values)
