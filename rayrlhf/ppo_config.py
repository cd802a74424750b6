"""The configuration of PPO's own arithmetic and of its loop."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section


class KLConfig(Section):
    """How far the policy may go from the reference, `reward_t = -beta * (logp - ref)`."""

    beta: float = Field(default=0.05, ge=0, description="the (first) coefficient of the KL in the reward")
    target: float | None = Field(
        default=None,
        gt=0,
        description="adapt beta towards this KL in nats a sequence (Ziegler et al. 2019); null: fixed",
    )
    horizon: float = Field(default=10_000, gt=0, description="sequences over which an adaptive beta moves by its error")


class TruncationConfig(Section):
    """What a response is worth that the length limit cut before its end token."""

    handling: Literal["penalty", "bootstrap"] = Field(
        default="penalty",
        description="penalty: its score less `penalty`, and the end of the episode; "
        "bootstrap: no score, the critic's value of the state after its last token stands for the rest",
    )
    penalty: float = Field(default=0.0, ge=0, description="taken from the score of a cut response")

    @model_validator(mode="after")
    def _penalty_needs_penalty(self) -> "TruncationConfig":
        if self.handling == "bootstrap" and self.penalty:
            raise ValueError(
                f"truncation.penalty is {self.penalty} but handling is 'bootstrap', which withholds the score: "
                "set truncation.handling=penalty or truncation.penalty=0"
            )
        return self


class AlgorithmConfig(Section):
    """From scores to advantages."""

    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(default=0.95, ge=0, le=1, description="GAE's lambda")
    score_clip: float | None = Field(default=None, gt=0, description="clip scores to +- this; null: no clip")
    kl: KLConfig = Field(default_factory=KLConfig, description="the KL term")
    truncation: TruncationConfig = Field(default_factory=TruncationConfig, description="responses cut by length")


class LoopConfig(Section):
    """How many RL steps, and what happens beside them."""

    steps: int = Field(default=100, ge=1, description="RL steps")
    rollout_batch: int = Field(default=64, ge=1, description="sequences sampled a step")
    evaluate_every: int = Field(default=20, ge=1, description="steps between evaluations on held-out prompts")
    evaluation_prompts: int = Field(default=128, ge=1, description="held-out prompts of such an evaluation")
    save_every: int = Field(default=20, ge=1, description="steps between checkpoints; the last step is always saved")
    keep: int = Field(default=2, ge=1, description="checkpoints kept beside the best one")
    best: str = Field(default="eval/score", description="the evaluation metric whose highest value marks the best step")
    max_kl: float | None = Field(
        default=None, gt=0, description="a step whose eval/kl is above this is never the best; null: no bound"
    )
