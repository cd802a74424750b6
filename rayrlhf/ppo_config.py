"""The configuration of PPO's own arithmetic and of its loop."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.health import HealthConfig

EvaluationMetric = Literal[
    "eval/score",
    "eval/gold",
    "eval/gold_positive_share",
    "eval/kl",
    "eval/length",
    "eval/finished_share",
    "eval/distinct_2",
]
EstimatorName = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
GROUPED: tuple[EstimatorName, ...] = ("grpo", "dr_grpo", "rloo")


class KLConfig(Section):
    """How far the policy may go from the reference."""

    beta: float = Field(default=0.05, ge=0, description="the (first) weight of the KL")
    placement: Literal["reward", "loss"] | None = Field(
        default=None,
        description="reward: -beta * KL on each token; loss: beta * KL added to the policy's loss; "
        "null: the estimator's own, loss for grpo and dr_grpo, reward for the others",
    )
    kind: Literal["k1", "k2", "k3"] | None = Field(
        default=None,
        description="the estimate of a token's KL: k1 = logp - ref, k2 = k1^2 / 2, k3 = exp(-k1) - 1 + k1; "
        "null: k1 in the reward, k3 in the loss",
    )
    target: float | None = Field(
        default=None,
        gt=0,
        description="adapt beta towards this KL in nats a sequence (Ziegler et al. 2019); null: fixed",
    )
    horizon: float = Field(default=10_000, gt=0, description="sequences over which an adaptive beta moves by its error")

    @model_validator(mode="after")
    def _adaptive(self) -> "KLConfig":
        if self.target is None and self.horizon != 10_000:
            raise ValueError(f"kl.horizon={self.horizon:g} has no effect without kl.target: set one, or leave it out")
        if self.target is not None and not self.beta:
            raise ValueError(f"kl.target={self.target:g} multiplies kl.beta, which is 0 and would stay so: raise it")
        return self

    @model_validator(mode="after")
    def _k1_is_no_loss(self) -> "KLConfig":
        if self.placement == "loss" and self.kind == "k1":
            raise ValueError(
                "kl.kind=k1 in the loss has a gradient of 0 in expectation and would hold nothing back: "
                "set kl.kind=k2 or k3, or kl.placement=reward"
            )
        return self


class TruncationConfig(Section):
    """What a response is worth that the length limit cut before its end token."""

    handling: Literal["penalty", "replace", "bootstrap"] = Field(
        default="penalty",
        description="penalty: its score less `penalty`, and the end of the episode; replace: -`penalty` in the place "
        "of its score; bootstrap: no score, the critic's value of the state after its last token stands for the rest",
    )
    penalty: float = Field(default=0.0, ge=0, description="what a cut response loses")
    level: Literal["sequence", "token"] = Field(
        default="sequence",
        description="sequence: the penalty is part of the score, which grpo, dr_grpo and rloo compare within the "
        "group; token: it is taken from the advantage of the last token alone",
    )

    @model_validator(mode="after")
    def _level_needs_a_penalty(self) -> "TruncationConfig":
        if self.level == "token" and (self.handling != "penalty" or not self.penalty):
            raise ValueError(
                f"truncation.level=token places a penalty, but handling={self.handling} and penalty={self.penalty:g}: "
                "set handling=penalty and a penalty above 0"
            )
        return self

    @model_validator(mode="after")
    def _penalty_needs_penalty(self) -> "TruncationConfig":
        if self.handling == "bootstrap" and self.penalty:
            raise ValueError(
                f"truncation.penalty is {self.penalty} but handling is 'bootstrap', which withholds the score: "
                "set truncation.handling=penalty or truncation.penalty=0"
            )
        return self


class ScoreConfig(Section):
    """What a score goes through before it becomes a reward."""

    normalise: bool = Field(default=False, description="subtract the running mean, divide by the running std")
    clip: float | None = Field(default=None, gt=0, description="then clip to +- this; null: no clip")


class AlgorithmConfig(Section):
    """From scores to advantages."""

    estimator: EstimatorName = Field(
        default="gae",
        description="gae: with a critic (PPO); without one, against the other samples of the prompt: grpo, dr_grpo, "
        "rloo; or against the batch: reinforce_pp",
    )
    group_size: int = Field(
        default=1, ge=1, description="samples of each prompt; at least 2 for grpo, dr_grpo and rloo"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(default=0.95, ge=0, le=1, description="gae: lambda")
    whiten: bool = Field(
        default=True, description="gae, reinforce_pp: advantages of mean 0 and variance 1 over the rollout batch"
    )
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="what a score goes through first")
    kl: KLConfig = Field(default_factory=KLConfig, description="the KL term")
    truncation: TruncationConfig = Field(default_factory=TruncationConfig, description="responses cut by length")
    critic_warmup_steps: int = Field(
        default=0, ge=0, description="gae: first steps in which the critic learns and the policy does not"
    )

    @property
    def has_critic(self) -> bool:
        return self.estimator == "gae"

    @property
    def kl_in_loss(self) -> bool:
        own = "loss" if self.estimator in ("grpo", "dr_grpo") else "reward"
        return (self.kl.placement or own) == "loss"

    @property
    def kl_kind(self) -> Literal["k1", "k2", "k3"]:
        return self.kl.kind or ("k3" if self.kl_in_loss else "k1")

    @model_validator(mode="after")
    def _fits_the_estimator(self) -> "AlgorithmConfig":
        name, is_grouped = self.estimator, self.estimator in GROUPED
        if is_grouped and self.group_size < 2:
            raise ValueError(
                f"estimator={name} compares the samples of a prompt: group_size is {self.group_size}, set 2 or more"
            )
        if name in ("grpo", "dr_grpo") and not self.kl_in_loss:
            raise ValueError(f"estimator={name} sees the score alone: set kl.placement=loss, or estimator=rloo")
        if self.kl_in_loss and self.kl_kind == "k1":
            raise ValueError(f"estimator={name} has the KL in the loss, where kl.kind=k1 has no gradient: set k2 or k3")
        if self.truncation.level == "token" and not is_grouped:
            raise ValueError(
                f"truncation.level=token: with estimator={name} the score stands on the last token anyway: leave it out"
            )
        if not self.has_critic and self.truncation.handling == "bootstrap":
            raise ValueError(f"truncation.handling=bootstrap needs a critic; estimator={name} has none: set penalty")
        if not self.has_critic and self.critic_warmup_steps:
            raise ValueError(f"critic_warmup_steps={self.critic_warmup_steps}, but estimator={name} has no critic")
        if not self.has_critic and self.lam != 0.95:
            raise ValueError(f"lam={self.lam} has no effect with estimator={name}: leave it out")
        if is_grouped and (self.gamma != 1.0 or not self.whiten):
            raise ValueError(f"gamma and whiten have no effect with estimator={name}: leave them out")
        return self


class RollbackConfig(Section):
    """What RL does when optimizer steps are skipped in a row: back to the newest checkpoint, on with prompts that
    were not used yet (Chowdhery et al. 2022, PaLM, section 5.1)."""

    max_rollbacks: int = Field(default=2, ge=0, description="rollbacks of a run; the next one is a stop with a report")
    lr_factor: float = Field(
        default=0.5, gt=0, le=1, description="every rollback multiplies the learning rates of policy and critic by this"
    )

    @model_validator(mode="after")
    def _factor_needs_a_rollback(self) -> "RollbackConfig":
        if not self.max_rollbacks and self.lr_factor != 0.5:
            raise ValueError(f"rollback.lr_factor={self.lr_factor} has no effect with max_rollbacks=0: leave it out")
        return self


class LoopConfig(Section):
    """How many RL steps, and what happens beside them."""

    steps: int = Field(default=100, ge=1, description="RL steps")
    rollout_batch: int = Field(default=64, ge=1, description="sequences sampled a step")
    evaluate_every: int = Field(default=20, ge=1, description="steps between evaluations on held-out prompts")
    evaluation_prompts: int = Field(default=128, ge=1, description="held-out prompts of such an evaluation")
    save_every: int = Field(default=20, ge=1, description="steps between checkpoints; the last step is always saved")
    keep: int = Field(default=2, ge=1, description="checkpoints kept beside the best one")
    rollback: RollbackConfig = Field(
        default_factory=RollbackConfig, description="when optimizer steps are skipped in a row"
    )
    health: HealthConfig = Field(
        default=HealthConfig(), description="watches over the metrics that warn, roll back or stop"
    )
    best: EvaluationMetric = Field(
        default="eval/score", description="the evaluation metric whose highest value marks the best step"
    )
    max_kl: float | None = Field(
        default=None, gt=0, description="a step whose eval/kl is above this is never the best; null: no bound"
    )
