"""How the policy and the critic learn from one RL step's batch."""

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.training.config import EngineConfig


class UpdateConfig(Section):
    """What both learners have in common."""

    epochs: int = Field(default=2, ge=1, description="passes over each rollout batch")
    minibatch: int = Field(default=32, ge=1, description="sequences of one optimizer step, over all ranks")
    microbatch_tokens: int = Field(
        default=2048, ge=1, description="padded tokens of one forward and backward pass, on each rank"
    )
    forward_tokens: int = Field(
        default=4096, ge=1, description="padded tokens of one forward pass without gradients, on each rank"
    )

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


class PolicyUpdateConfig(UpdateConfig):
    """The policy's update: PPO's clipped loss (Schulman et al. 2017, eq. 7)."""

    clip_low: float = Field(default=0.2, ge=0, lt=1, description="the ratio is clipped below 1 - clip_low")
    clip_high: float = Field(default=0.2, ge=0, description="the ratio is clipped above 1 + clip_high")
    entropy: EntropyConfig = Field(default_factory=EntropyConfig, description="the entropy bonus")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="optimizer and partitioning")


class CriticUpdateConfig(UpdateConfig):
    """The critic's update: squared error to the returns, clipped around the old values."""

    clip: float = Field(default=0.2, gt=0, description="values are clipped to the old ones +- this")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="optimizer and partitioning")
