"""The roles of a PPO job as Ray actors, and what stands around them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobs.ppo_config import PPOConfig

if TYPE_CHECKING:
    from cluster.placement import Placement
    from rayrlhf.batches import TextBatch
    from rayrlhf.coordinator import Roles
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.restarts import Restarts
    from rayrlhf.stream import Stream


async def start(
    config: PPOConfig,
    placement: Placement,
    groups: dict[str, Any],
    stopwatch: Any,
    texts: Stream[TextBatch] | None,
    originals: Originals,
    restarts: Restarts,
) -> Roles:
    """All groups, started side by side; `groups` fills up first, so that the caller can stop what was begun."""
    from actors import critic, group, policy, reference, reward, rollout
    from actors.weight_sync import Publisher
    from rayrlhf.coordinator import Roles
    from rayrlhf.estimators import NoCritic
    from rayrlhf.model_folder import model_folder
    from rayrlhf.policy_roles import AdapterOff, CriticWarmup, PretrainingMix, SampledLogprobs
    from rayrlhf.reward_sources.columns import WithColumns
    from rayrlhf.reward_sources.retokenise import judge

    folders = {role: model_folder(path) for role, path in config.models.items()}
    algorithm = config.algorithm
    temperature, seed, deadline = config.sampling.temperature, config.run.seed, config.call_deadline_s
    threads = {role: config.layout.roles[role].threads for role in config.roles}

    def learner(role: str) -> dict[str, Any]:
        place = {"threads": config.layout.roles[role].threads, "offload": config.layout.roles[role].offload}
        return {"folder": folders[role], "seed": seed} | place | learner_arguments(config, role)

    def make(kind: Any, role: str, actor: type, kwargs: dict[str, Any]) -> Any:
        groups[role] = kind(role, actor, kwargs, placement, placement.count(role), deadline, restarts)
        return groups[role]

    make(group.PolicyGroup, "policy", policy.PolicyRank, learner("policy"))
    if algorithm.has_critic:
        make(group.CriticGroup, "critic", critic.CriticRank, learner("critic"))
    frozen = {"forward_tokens": config.policy.forward_tokens}
    if not config.is_own_reference:
        make(
            group.ReferenceGroup,
            "reference",
            reference.ReferenceReplica,
            frozen
            | {
                "folder": folders["reference"],
                "temperature": temperature,
                "threads": threads["reference"],
                "precision": config.policy.engine.precision,  # in another one the KL at step 0 were not 0
            },
        )
    make(
        group.RewardGroup,
        "reward",
        reward.RewardReplica,
        frozen
        | {
            "folder": folders["reward"],
            "threads": threads["reward"],
            "function": config.reward_function,
            "failures": config.reward_failures,
            "call_deadline_s": deadline,
        },
    )
    groups["rollout"] = rollout.RolloutGroup(
        folders["rollout"],
        config.rollout,
        config.sampling,
        placement,
        placement.count("rollout"),
        deadline,
        config.layout.roles["rollout"].offload,
        restarts,
    )
    rollout_group = groups["rollout"]
    if config.layout.roles["rollout"].offload:
        # vLLM measures its GPU as it starts and as it falls asleep: nobody else may be loading there
        await rollout_group.start(config.start_deadline_s)
        others = [group for group in groups.values() if group is not rollout_group]
        await asyncio.gather(*(group.start(config.start_deadline_s) for group in others))
    else:
        await asyncio.gather(*(group.start(config.start_deadline_s) for group in groups.values()))
    publisher = Publisher(groups["policy"], groups["rollout"])
    parts: dict[str, Any] = {"critic": NoCritic(), "reference": AdapterOff(groups["policy"])} | groups
    if config.algorithm.critic_warmup_steps:
        parts["policy"] = CriticWarmup(parts["policy"], config.algorithm.critic_warmup_steps)
    if config.policy.recompute_logprobs_every > 1:
        parts["policy"] = SampledLogprobs(parts["policy"], config.policy.recompute_logprobs_every)
    if config.reward_model:
        limit = config.policy.forward_tokens
        parts["reward"] = judge(groups["reward"], folders["reward"], folders["policy"], originals, limit)
    if originals.columns:
        parts["reward"] = WithColumns(groups["reward"], originals)
    if texts is not None:
        parts["policy"] = PretrainingMix(parts["policy"], texts, config.loop.rollout_batch)
    timed = {role: stopwatch.timed(part, role) for role, part in parts.items()}
    return Roles(**timed, publisher=stopwatch.timed(publisher, "publisher"))


def learner_arguments(config: PPOConfig, role: str) -> dict[str, Any]:
    """What PolicyLearner or CriticLearner takes from the configuration, their model aside."""
    algorithm, loop = config.algorithm, config.loop
    if role == "critic":
        return {"config": config.critic, "total_steps": config.critic.optimizer_steps(loop.steps, loop.rollout_batch)}
    rl_steps = loop.steps - algorithm.critic_warmup_steps
    return {
        "config": config.policy.model_copy(update={"importance_cap": config.importance_cap}),
        "total_steps": config.policy.optimizer_steps(rl_steps, loop.rollout_batch),
        "temperature": config.sampling.temperature,
        "normaliser": config.normaliser,
        "normaliser_constant": config.policy.normaliser_constant or float(config.sampling.max_new_tokens),
        "kl_kind": algorithm.kl_kind,
        "stop_strings": config.sampling.stop_strings,
    }
