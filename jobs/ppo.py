"""`rayrlhf ppo`: reinforcement learning from a reward model or function, with PPO, GRPO, RLOO or
REINFORCE++, on Ray actors.

This file only puts the parts together: the step is rayrlhf/coordinator.py, the loop around it
rayrlhf/ppo_loop.py, the actors are in actors/.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, model_validator

from actors.config import RolloutConfig, SamplingConfig, check_one_source
from cluster.config import LayoutConfig
from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.health import check_known
from rayrlhf.ppo_config import AlgorithmConfig, LoopConfig
from rayrlhf.restarts import RecoveryConfig, check_stall
from rayrlhf.reward_sources.config import RewardFailuresConfig
from rayrlhf.run import RunConfig
from rayrlhf.training.ppo_config import CriticUpdateConfig, Normaliser, PolicyUpdateConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cluster.layout import RolePlan
    from cluster.placement import Placement
    from rayrlhf.batches import Prompts, TextBatch
    from rayrlhf.coordinator import Roles
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.models.targets import Shapes
    from rayrlhf.profile_steps import Steps
    from rayrlhf.restarts import Restarts
    from rayrlhf.sampling import Sampler
    from rayrlhf.stream import Stream

T = TypeVar("T")
ROLES = ("policy", "critic", "reference", "reward", "rollout")
STALE_IMPORTANCE_CAP = 2.0  # policy.importance_cap where it is not set and max_staleness is above 0
EVALUATION_SEED_OFFSET = 1_000_003  # held-out prompts are sampled with other seeds than training prompts


class PPOConfig(Section):
    """The roles' models, the prompts, the algorithm, and where everything runs."""

    run: RunConfig = Field(description="the run this stage belongs to")
    policy_model: str = Field(description="where the policy starts: the SFT stage, or a Hugging Face folder")
    reward_model: str | None = Field(
        default=None,
        description="the reward model: its stage, or a sequence-classification folder; with another tokenizer or chat "
        "template than policy_model it is given responses as text, in its own template",
    )
    reward_function: str | None = Field(
        default=None,
        description="in its place: module:function(prompts, responses) -> a score each; further parameters, such as "
        "reference or data_source, get the columns of the prompts' rows, a list each",
    )
    reward_failures: RewardFailuresConfig = Field(
        default=RewardFailuresConfig(), description="where reward_function gives a response no score"
    )
    reference_model: str | None = Field(
        default=None,
        description="what the KL is measured against; null: policy_model (with policy.peft without a second copy: the "
        "policy's own actors, its adapter off)",
    )
    critic_model: str | None = Field(
        default=None,
        description="where the critic starts; it reads policy_model's tokens; null: reward_model, or policy_model "
        "without one",
    )
    prompts: DataConfig = Field(description="prompts to train on, and held-out ones to evaluate on")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how responses are sampled")
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="the engine that samples")
    algorithm: AlgorithmConfig = Field(default=AlgorithmConfig(), description="from scores to advantages")
    policy: PolicyUpdateConfig = Field(default=PolicyUpdateConfig(), description="the policy's update")
    critic: CriticUpdateConfig = Field(default=CriticUpdateConfig(), description="the critic's update")
    loop: LoopConfig = Field(default=LoopConfig(), description="steps, evaluation, checkpoints")
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="RL steps that the weights which sample may be behind those that learn; 0: sampling and learning "
        "take turns; above 0 they overlap, and policy.importance_cap is 2 where it is not set",
    )
    partial_rollout_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a response that one version of the weights samples at most; a longer one goes on beside "
        "the next batch, by newer weights; null: one version samples it to its end",
    )
    judge_parts: int = Field(
        default=1,
        ge=1,
        description="parts of each engine's responses of a step, those that end first in the first one; one is judged "
        "(log-probs, values, scores) while the next is still being sampled, and a reward function called once a part; "
        "1: judged when all have ended",
    )
    layout: LayoutConfig = Field(
        default_factory=lambda: LayoutConfig.model_validate("cpu"), description="roles to resources"
    )
    gold: str | None = Field(
        default=None, description="module:function that scores evaluation texts and is never trained on"
    )
    call_deadline_s: float = Field(default=900.0, gt=0, description="a role that answers later than this has failed")
    start_deadline_s: float = Field(default=600.0, gt=0, description="as long may placement and loading take")
    recovery: RecoveryConfig = Field(default=RecoveryConfig(), description="when an actor fails or is late")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have actors."""
        is_there = {"critic": self.algorithm.has_critic, "reference": not self.is_own_reference}
        return tuple(role for role in ROLES if is_there.get(role, True))

    @property
    def is_own_reference(self) -> bool:
        """Whether the policy's actors are the reference too, their adapter off."""
        return self.policy.peft is not None and self.reference_model is None

    @property
    def importance_cap(self) -> float | None:
        """Where the weights for the engine's other log-probs are cut; null: no weights."""
        cap = self.policy.importance_cap
        return STALE_IMPORTANCE_CAP if cap is None and self.max_staleness else cap

    @property
    def normaliser(self) -> Normaliser:
        """Of the policy's loss."""
        own: dict[str, Normaliser] = {"grpo": "sequence_mean", "dr_grpo": "constant"}
        return self.policy.normaliser or own.get(self.algorithm.estimator, "tokens")

    def _missing(self) -> Iterator[tuple[str, str]]:
        """What some metrics need and this run has not, as rayrlhf/metric_names.py calls it, and why."""
        algorithm = self.algorithm
        if not algorithm.has_critic:
            yield "a critic", f"algorithm.estimator={algorithm.estimator} has no critic"
        if algorithm.group_size == 1:
            yield "algorithm.group_size", "algorithm.group_size is 1"
        if not algorithm.kl_in_loss:
            yield "algorithm.kl.kind k2 or k3", "the KL is in the reward"
        if not self.max_staleness:
            yield "max_staleness", "max_staleness is 0"
        if self.partial_rollout_tokens is None:
            yield "partial_rollout_tokens", "partial_rollout_tokens is null"
        if self.reward_failures.score is None:
            yield "reward_failures.score", "reward_failures.score is null"
        for key, value in (
            ("reward_model", self.reward_model),
            ("reward_function", self.reward_function),
            ("policy.pretraining", self.policy.pretraining),
            ("importance_cap", self.importance_cap),
            ("gold", self.gold),
        ):
            if value is None:
                yield key, f"{key} is null"

    @model_validator(mode="after")
    def _takes_no_turns(self) -> PPOConfig:
        moved = [role for role in self.roles if role in self.layout.roles and self.layout.roles[role].offload]
        if self.max_staleness and moved:
            raise ValueError(
                f"max_staleness={self.max_staleness} samples while the other roles learn, but "
                f"layout.roles.{moved[0]}.offload has them take turns on a GPU: set max_staleness=0, or a layout in "
                "which the rollout role has GPUs of its own"
            )
        if self.judge_parts > 1 and (self.max_staleness or moved):
            why = f"max_staleness={self.max_staleness} has a step's responses ready before it begins"
            if moved:
                why = f"layout.roles.{moved[0]}.offload has it and sampling take turns on a GPU"
            raise ValueError(
                f"judge_parts={self.judge_parts} judges responses while others are sampled, but {why}: leave one out"
            )
        failures = self.reward_failures
        if self.judge_parts > 1 and failures.score is not None and failures.max_share < 1:
            raise ValueError(
                f"judge_parts={self.judge_parts} gives the reward function a few responses at a time, of which "
                f"reward_failures.max_share={failures.max_share:g} would often allow none to fail: set "
                "reward_failures.max_share=1 (objective/failed_* counts them), or leave judge_parts out"
            )
        if self.max_staleness and self.policy.recompute_logprobs_every > 1:
            raise ValueError(
                f"policy.recompute_logprobs_every={self.policy.recompute_logprobs_every} takes the sampler's log-probs "
                f"for the policy's, which with max_staleness={self.max_staleness} are of other weights: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_there_in_time(self) -> PPOConfig:
        tokens, longest = self.partial_rollout_tokens, self.sampling.max_new_tokens
        if tokens is None:
            return self
        given = f"partial_rollout_tokens={tokens}"
        if tokens >= longest:
            raise ValueError(
                f"{given} cuts no response: sampling.max_new_tokens is {longest}. Set less, or leave it out"
            )
        later = -(-longest // tokens) - 1
        if self.max_staleness < later:
            raise ValueError(
                f"{given} makes up to {later + 1} parts of a response of sampling.max_new_tokens={longest}, the last "
                f"one {later} steps after the first; max_staleness is {self.max_staleness}: set at least {later} "
                f"({later + 1} for sampling beside learning), or longer parts"
            )
        return self

    @model_validator(mode="after")
    def _is_late_before_it_fails(self) -> PPOConfig:
        check_stall(self.recovery, self.call_deadline_s)
        return self

    @model_validator(mode="after")
    def _one_source_of_scores(self) -> PPOConfig:
        check_one_source(self.reward_model, self.reward_function)
        if not self.reward_function and self.reward_failures != RewardFailuresConfig():
            raise ValueError("reward_failures has no effect without a reward_function: leave it out")
        return self

    @model_validator(mode="after")
    def _no_critic_no_critic_keys(self) -> PPOConfig:
        check_known(self.loop.health, dict(self._missing()))
        if not self.algorithm.has_critic and (self.critic_model or self.critic != CriticUpdateConfig()):
            raise ValueError(
                f"algorithm.estimator={self.algorithm.estimator} has no critic: leave critic_model and critic.* out"
            )
        if self.loop.best.startswith("eval/gold") and not self.gold:
            raise ValueError(f"loop.best={self.loop.best} needs a gold function: set gold, or another loop.best")
        if self.algorithm.critic_warmup_steps >= self.loop.steps:
            raise ValueError(
                f"algorithm.critic_warmup_steps={self.algorithm.critic_warmup_steps} leaves the policy none of "
                f"loop.steps={self.loop.steps}: lower one or raise the other"
            )
        if self.policy.normaliser_constant is not None and self.normaliser != "constant":
            raise ValueError(
                f"policy.normaliser_constant has no effect with policy.normaliser={self.normaliser}: leave it out"
            )
        return self


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

    ppo_checks.check(config, _folders(config))
    plan(config)


def plan(config: PPOConfig) -> list[RolePlan]:
    """Every role's place, with an estimate of its memory."""
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.models.headers import tensor_shapes

    shapes = {role: tensor_shapes(model_folder(path)) for role, path in _folders(config).items()}
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
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.coordinator import PPO
    from rayrlhf.data.prompt_stream import held_out_prompts, training_prompts
    from rayrlhf.lineage import claim
    from rayrlhf.metrics import MetricsLog
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
        roles = await _start(config, placement, groups, stopwatch, texts, originals, restarts)
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


async def _start(
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
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.coordinator import Roles
    from rayrlhf.estimators import NoCritic
    from rayrlhf.policy_roles import AdapterOff, CriticWarmup, PretrainingMix, SampledLogprobs
    from rayrlhf.reward_sources.columns import WithColumns
    from rayrlhf.reward_sources.retokenise import judge

    folders = {role: model_folder(path) for role, path in _folders(config).items()}
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


def _folders(config: PPOConfig) -> dict[str, str]:
    """Each role's model; of a reward function's role the one whose tokenizer decodes."""
    folders = {
        "policy": config.policy_model,
        "rollout": config.policy_model,
        "reward": config.reward_model or config.policy_model,
    }
    if not config.is_own_reference:
        folders["reference"] = config.reference_model or config.policy_model
    if config.algorithm.has_critic:
        folders["critic"] = config.critic_model or folders["reward"]
    return folders


def main(argv: list[str] | None = None) -> int:
    from jobs import command

    return command.main("ppo", PPOConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
