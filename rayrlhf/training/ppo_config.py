"""How the policy and the critic learn from one RL step's batch."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.training.config import EngineConfig

Normaliser = Literal["tokens", "sequence_mean", "constant"]  # rayrlhf.algorithms.loss_weights has their meaning


class UpdateConfig(Section):
    """What both learners have in common."""

    epochs: int = Field(default=2, ge=1, description="passes over each rollout batch")
    minibatch: int = Field(default=32, ge=1, description="sequences of one optimizer step, over all ranks")
    microbatch_tokens: int = Field(
        default=2048, ge=1, description="tokens of one forward and backward pass, on each rank"
    )
    forward_tokens: int = Field(
        default=4096, ge=1, description="tokens of one forward pass without gradients, on each rank"
    )

    peft: PeftConfig | None = Field(
        default=None,
        description="train an adapter (and the critic's head), merged into the weights where they are published or "
        "saved; null: all weights",
    )

    @model_validator(mode="after")
    def _adapter_for_rl(self) -> "UpdateConfig":
        if self.peft is not None and not self.peft.is_mergeable:
            raise ValueError(
                f"peft.kind={self.peft.kind} cannot be merged into weights, which are what the rollout engines sample "
                "from and what checkpoints hold: set lora or ia3"
            )
        if self.peft is not None and self.peft.dropout:
            raise ValueError(
                f"peft.dropout={self.peft.dropout}: in RL the ratio of the first minibatch is 1, and a value what the "
                "advantages were made of, only without dropout: leave it out"
            )
        return self

    def optimizer_steps(self, rl_steps: int, rollout_batch: int) -> int:
        """Optimizer steps of a whole run: what the learning rate's schedule spans."""
        return rl_steps * self.epochs * -(-rollout_batch // self.minibatch)


class EntropyConfig(Section):
    """The entropy bonus of the policy's loss."""

    coefficient: float = Field(default=0.0, ge=0, description="its (first) weight")
    target: float | None = Field(
        default=None, gt=0, description="adapt the weight to hold this entropy, in nats a token; null: fixed"
    )
    rate: float = Field(
        default=0.005, gt=0, description="with a target, how much the weight moves an RL step and nat of difference"
    )

    @model_validator(mode="after")
    def _rate_needs_a_target(self) -> "EntropyConfig":
        if self.target is None and self.rate != 0.005:
            raise ValueError(f"entropy.rate={self.rate} has no effect without entropy.target: set one, or leave it out")
        return self


class PretrainingMixConfig(Section):
    """Text whose log-likelihood the policy's loss keeps up (PPO-ptx, Ouyang et al. 2022, eq. 2)."""

    data: DataConfig = Field(description="text rows; their `train` is read")
    rows: int = Field(default=64, ge=1, description="texts mixed into an RL step, shared out over its minibatches")
    coefficient: float = Field(default=1.0, gt=0, description="weight of the mean negative log-likelihood of a token")

    @model_validator(mode="after")
    def _no_validation(self) -> "PretrainingMixConfig":
        if self.data.validation is not None:
            raise ValueError("pretraining.data.validation has no effect: texts are mixed in, not validated on")
        return self


class PolicyUpdateConfig(UpdateConfig):
    """The policy's update: PPO's clipped loss (Schulman et al. 2017, eq. 7).

    With epochs=1, minibatch=loop.rollout_batch and critic.clip=.inf it is A2C: the ratio is 1, and nothing is clipped.
    """

    clip_low: float = Field(default=0.2, ge=0, le=1, description="the ratio is clipped below 1 - clip_low")
    clip_high: float = Field(
        default=0.2, ge=0, allow_inf_nan=True, description="the ratio is clipped above 1 + clip_high; .inf: never"
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="bound on the ratio of tokens with a negative advantage; null: none"
    )
    normaliser: Normaliser | None = Field(
        default=None,
        description="the loss is a mean over tokens, over sequences of their means, or a sum divided by a constant; "
        "null: the estimator's own, sequence_mean for grpo, constant for dr_grpo, tokens for the others",
    )
    normaliser_constant: float | None = Field(
        default=None, gt=0, description="normaliser=constant: tokens a sequence; null: sampling.max_new_tokens"
    )
    importance_cap: float | None = Field(
        default=None,
        ge=1,
        description="weigh tokens by the ratio of the trainer's probability to the sampling engine's, up to this; "
        "null: take them as equal",
    )
    recompute_logprobs_every: int = Field(
        default=1,
        ge=1,
        description="steps between passes over the responses that make the policy's own log-probs anew; in the others "
        "the sampling engine's are taken, which the next such pass must find within 0.01 nats of the policy's",
    )
    max_approx_kl: float | None = Field(
        default=None,
        gt=0,
        description="end the RL step's update after a minibatch whose policy/approxkl is above this; null: never",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="save in model/ the weights' moving average over RL steps with this decay, while the weights "
        "themselves sample and are what eval/* speaks of; null: save the weights",
    )
    pretraining: PretrainingMixConfig | None = Field(default=None, description="PPO-ptx; null: none")
    entropy: EntropyConfig = Field(default_factory=EntropyConfig, description="the entropy bonus")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="optimizer and partitioning")

    @model_validator(mode="after")
    def _importance_needs_two_logprobs(self) -> "PolicyUpdateConfig":
        if self.recompute_logprobs_every > 1 and self.importance_cap is not None:
            raise ValueError(
                f"importance_cap={self.importance_cap:g} weighs tokens by the gap between two log-probs, and with "
                f"recompute_logprobs_every={self.recompute_logprobs_every} most steps have one: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _no_average_of_adapters(self) -> "PolicyUpdateConfig":
        if self.peft is not None and self.ema_decay is not None:
            raise ValueError(
                f"ema_decay={self.ema_decay} averages whole weights; no adapter of the same rank gives their average, "
                "so model/ and adapter/ would differ: leave one of ema_decay and peft out"
            )
        return self


class CriticUpdateConfig(UpdateConfig):
    """The critic's update: squared error to the returns, clipped around the old values."""

    clip: float = Field(
        default=0.2, gt=0, allow_inf_nan=True, description="values are clipped to the old ones +- this; .inf: never"
    )
    engine: EngineConfig = Field(default_factory=EngineConfig, description="optimizer and partitioning")
