"""`rayrlhf ppo`: reinforcement learning from a reward model or function, with PPO, GRPO, RLOO or
REINFORCE++, on Ray actors.

This file only puts the parts together: the configuration is jobs/ppo_config.py, the step rayrlhf/coordinator.py,
the loop around it rayrlhf/ppo_loop.py, the actors are in actors/ and started by jobs/ppo_roles.py.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from jobs import ppo_roles
from jobs.ppo_config import PPOConfig
from rayrlhf.restarts import check_stall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.layout import RolePlan
    from rayrlhf.batches import Prompts, TextBatch
    from rayrlhf.coordinator import Roles
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.models.targets import Shapes
    from rayrlhf.profile_steps import Steps
    from rayrlhf.sampling import Sampler
    from rayrlhf.stream import Stream

T = TypeVar("T")
EVALUATION_SEED_OFFSET = 1_000_003  # held-out prompts are sampled with other seeds than training prompts


def parents(config: PPOConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.score_function import source_file
    from rayrlhf.training.job import data_parents

    found = {"policy": config.policy_model} | data_parents(config.prompts, "prompts", "held_out_prompts")
    if config.reward_function:
        found["reward_function"] = source_file(config.reward_function)
    if config.reward_model:
        found["reward_model"] = config.reward_model
    if config.policy.pretraining:
        found |= data_parents(config.policy.pretraining.data, "pretraining")
    if config.reference_model:
        found["reference"] = config.reference_model
    if config.critic_model:
        found["critic"] = config.critic_model
    return found


def check(config: PPOConfig) -> None:
    """Everything that can be known before a resource is taken; UserError."""
    from jobs import ppo_checks

    ppo_checks.check(config)
    plan(config)


def plan(config: PPOConfig) -> list[RolePlan]:
    """Every role's place, with an estimate of its memory."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.headers import tensor_shapes

    shapes = {role: tensor_shapes(model_folder(path)) for role, path in config.models.items()}
    return plan_for(config, shapes, adapter_sizes(config, shapes))


def adapter_sizes(config: PPOConfig, shapes: Mapping[str, Shapes], prefix: str = "") -> dict[str, int | None]:
    """Parameters of policy's and critic's adapters on models with weights of these shapes, by role; ConfigError,
    which names its keys with `prefix`, where one has not the layers."""
    from rayrlhf.models.targets import adapter_size

    updates = {"policy": config.policy} | ({"critic": config.critic} if config.algorithm.has_critic else {})
    return {role: adapter_size(update.peft, shapes[role], f"{prefix}{role}.peft") for role, update in updates.items()}


def plan_for(config: PPOConfig, shapes: Mapping[str, Shapes], num_adapter: dict[str, int | None]) -> list[RolePlan]:
    """The plan for models with weights of these shapes and adapters of these sizes, by role."""
    from cluster import layout, memory

    tokens, precision = config.policy.forward_tokens, config.policy.engine.precision
    needs = {
        "rollout": memory.sampler(shapes["rollout"], config.rollout),
        "reward": memory.rewarding(shapes["reward"], tokens, config.reward_function),
    }
    if "reference" in shapes:
        needs["reference"] = memory.frozen(shapes["reference"], tokens, precision)
    for role, update in (("policy", config.policy), ("critic", config.critic)):
        if role in shapes:
            needs[role] = memory.trained(
                shapes[role],
                update.engine,
                config.layout.roles[role].ranks,
                update.microbatch_tokens,
                update.forward_tokens,
                num_adapter.get(role),
                has_logits=role == "policy",
                offload=config.layout.roles[role].offload,
            )
    return layout.plan(config.layout.only(config.roles), needs)


def steps(config: PPOConfig) -> int:
    """How many it takes."""
    return config.loop.steps


def run(config: PPOConfig, profile: Steps | None = None) -> str:
    """Train; returns the last step's stage directory.  `profile`: the steps to record.  Ray is connected."""
    return asyncio.run(_run(config, profile))


async def _run(config: PPOConfig, profile: Steps | None = None) -> str:
    from rich.console import Console

    from actors import calls
    from actors.watchdog import DRIVER, Watchdog
    from cluster.placement import Placement
    from rayrlhf.coordinator import PPO
    from rayrlhf.data.prompt_stream import held_out_prompts, training_prompts
    from rayrlhf.lineage import claim
    from rayrlhf.metrics import MetricsLog
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import load_tokenizer
    from rayrlhf.ppo_loop import Evaluator, PPOLoop, Progress
    from rayrlhf.restarts import Restarts
    from rayrlhf.score_function import load_function
    from rayrlhf.stream import Stream
    from rayrlhf.timing import Stopwatch

    console, root = Console(), config.run.stage("ppo")
    describe, made_from = config.model_dump(mode="json"), parents(config)
    found = claim(root, config, made_from)
    progress = Progress.of(found.stage) if found.stage else Progress()
    loop, seed = config.loop, config.run.seed
    tokenizer = load_tokenizer(model_folder(config.policy_model))
    originals, counts = _originals(config), dict[str, float]()
    held_out = await asyncio.to_thread(held_out_prompts, config.prompts, tokenizer, loop.evaluation_prompts, originals)
    layout = config.layout.only(config.roles)
    placement = Placement.reserve(layout, config.start_deadline_s, console.print, root)
    groups: dict[str, Any] = {}
    stopwatch, done = Stopwatch(), progress.step if found.stage else -1
    log = MetricsLog(config.run.directory, "ppo", loop.steps, done, config.run.trackers, describe)
    texts = _texts(config, tokenizer, progress.batches)
    say = partial(console.print, style="yellow", markup=False, soft_wrap=True)
    restarts = Restarts(config.recovery, say)
    watchdog = Watchdog(check_stall(config.recovery, config.call_deadline_s), groups, root, say)
    watchdog.start()
    prompts = Stream(
        lambda first, last: training_prompts(
            config.prompts,
            tokenizer,
            loop.rollout_batch,
            last,
            seed,
            first,
            config.algorithm.group_size,
            originals,
            counts,
        ),
        progress.batches,
        loop.steps,
        waiting=lambda: calls.wait_for(DRIVER, "a batch of prompts"),
    )
    try:
        roles = await ppo_roles.start(config, placement, groups, stopwatch, texts, originals, restarts)
        gold = _known_to_the_watchdog(load_function(config.gold), "scores of gold") if config.gold else None
        return await PPOLoop(
            ppo=PPO(roles, config.algorithm),
            config=loop,
            sampler=_sampler(config, roles, prompts),
            data_counts=counts,
            memory=partial(_peak_memory, groups),
            profiled=_profiled(config, profile, groups, say),
            evaluator=Evaluator(held_out, tokenizer, gold, seed + EVALUATION_SEED_OFFSET),
            log=log,
            stopwatch=stopwatch,
            stage_root=root,
            describe=describe,
            parents=made_from,
            console=console,
            restarts=restarts,
        ).run(progress if found.stage else None)
    finally:
        watchdog.stop()
        for group in groups.values():
            group.stop()
        placement.release()
        log.close()
        if texts is not None:
            texts.close()


def _originals(config: PPOConfig) -> Originals:
    """What remembers the rows of prompts from when they are read until their step is done."""
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.reward_sources.columns import asked_columns

    return Originals(num_batches=4 + config.max_staleness, columns=asked_columns(config.reward_function))


def _sampler(config: PPOConfig, roles: Roles, prompts: Stream[Prompts]) -> Sampler:
    from rayrlhf.sampling import Ahead, OnPolicy

    around = roles.rollout, roles.publisher, prompts, config.run.seed
    if not config.max_staleness:
        return OnPolicy(*around, config.judge_parts)
    lengths = config.sampling.max_new_tokens, config.partial_rollout_tokens
    return Ahead(*around, config.max_staleness, config.loop.steps, *lengths)


def _known_to_the_watchdog(function: Callable[..., T], what: str) -> Callable[..., T]:
    """`function`, which is listed as waited for while it runs in this process."""
    from actors import calls
    from actors.watchdog import DRIVER

    def known(*args: Any) -> T:
        with calls.wait_for(DRIVER, what):
            return function(*args)

    return known


def _profiled(
    config: PPOConfig, profile: Steps | None, groups: dict[str, Any], say: Callable[[str], None]
) -> Callable[[int], AbstractAsyncContextManager[None]]:
    """What stands around each step: the actors record in those of `profile`."""
    from actors.profiled import Profiled
    from rayrlhf.training.launcher import absolute

    if profile is None:
        return lambda step: nullcontext()
    return Profiled(groups, profile, profile.folder(absolute(config.run.directory), "ppo"), say)


async def _peak_memory(groups: dict[str, Any]) -> dict[str, float]:
    """`perf/ROLE_memory_gib`: what the largest actor of each role has held at most so far."""
    from rayrlhf.side_by_side import gather

    held = await gather(*(group.peak_memory() for group in groups.values()))
    return {f"perf/{role}_{name}": gib for role, one in zip(groups, held, strict=True) for name, gib in one.items()}


def _texts(config: PPOConfig, tokenizer: Any, used: int) -> Stream[TextBatch] | None:
    """The batches of a pretraining mix after the first `used` ones."""
    from actors import calls
    from actors.watchdog import DRIVER
    from rayrlhf.data.prompt_stream import text_batches
    from rayrlhf.stream import Stream

    mix = config.policy.pretraining
    if mix is None:
        return None
    return Stream(
        lambda first, last: text_batches(mix.data, tokenizer, mix.rows, last, config.run.seed, skip=first),
        used,
        config.loop.steps,
        waiting=lambda: calls.wait_for(DRIVER, "a batch of texts"),
    )


def main(argv: list[str] | None = None) -> int:
    from jobs import command

    return command.main("ppo", PPOConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
