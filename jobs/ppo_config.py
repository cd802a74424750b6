"""What `rayrlhf ppo` is told: the roles' models, the prompts, the algorithm, and where everything runs."""

from __future__ import annotations

from collections.abc import Iterator

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

ROLES = ("policy", "critic", "reference", "reward", "rollout")
STALE_IMPORTANCE_CAP = 2.0  # policy.importance_cap where it is not set and max_staleness is above 0


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
    def models(self) -> dict[str, str]:
        """Where each role's is; of a reward function's role the one whose tokenizer decodes."""
        found = {
            "policy": self.policy_model,
            "rollout": self.policy_model,
            "reward": self.reward_model or self.policy_model,
        }
        if not self.is_own_reference:
            found["reference"] = self.reference_model or self.policy_model
        if self.algorithm.has_critic:
            found["critic"] = self.critic_model or found["reward"]
        return found

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
