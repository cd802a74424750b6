"""How a model is trained: the optimizer with its precision and partitioning, and the supervised loop."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section

# Trained parameters up to which each rank holds all optimizer states: sharing them out saves memory, and costs that all
# weights are gathered after each step
_SMALL = 100_000_000
Factor = Annotated[float, Field(ge=0, lt=1)]


class GuardConfig(Section):
    """Optimizer steps that are not taken: loss or gradient norm not finite, or above a running bound."""

    bound: float | None = Field(
        default=None,
        gt=0,
        description="skip a step whose loss or gradient norm is more than this many (robust) standard deviations above "
        "the median of the last steps; null: only what is not finite is skipped",
    )
    window: int = Field(default=64, ge=2, description="steps that the bound is made of; there is none before")
    max_skips: int = Field(
        default=3, ge=1, description="steps skipped in a row that make a supervised stage roll back, and PPO stop"
    )

    @model_validator(mode="after")
    def _window_needs_a_bound(self) -> "GuardConfig":
        if self.bound is None and self.window != 64:
            raise ValueError(f"guard.window={self.window} has no effect without guard.bound: set one, or leave it out")
        return self


class EngineConfig(Section):
    """The optimizer over DeepSpeed; the same for supervised stages, policy and critic."""

    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd without momentum")
    lr: float = Field(default=1e-3, gt=0, description="learning rate after warm-up")
    betas: tuple[Factor, Factor] = Field(default=(0.9, 0.95), description="AdamW's averaging factors")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decay of matrices and embeddings; biases and norms are never decayed"
    )
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps of linear warm-up from 0")
    min_lr_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="the cosine after warm-up ends at this share of lr; 1 keeps lr constant",
    )
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        default="auto",
        description="DeepSpeed ZeRO, what the ranks split: 0 nothing, 1 optimizer states, 2 gradients, 3 weights too; "
        "auto: 0 for one rank or up to 100 million trained parameters, which is faster, else 1",
    )
    precision: Literal["float32", "bf16", "auto"] = Field(
        default="float32",
        description="bf16: matrix products in bfloat16, weights and optimizer in float32; "
        "auto: bf16 where the device has instructions for it, else float32",
    )
    grad_clip: float = Field(default=1.0, ge=0, description="largest gradient norm of a step; 0 does not clip")
    guard: GuardConfig = Field(default=GuardConfig(), description="steps that are skipped")

    def stage(self, ranks: int, num_trained: int, offload: bool = False) -> int:
        """The ZeRO stage of `ranks` ranks that train `num_trained` parameters; `offload`: DeepSpeed is to move the
        optimizer's states, which it does from stage 1 on."""
        if self.zero_stage != "auto":
            return self.zero_stage
        is_small = ranks == 1 or num_trained <= _SMALL
        return 0 if is_small and not offload else 1

    @model_validator(mode="after")
    def _sgd_has_no_moments(self) -> "EngineConfig":
        if self.optimizer == "sgd" and (self.betas != (0.9, 0.95) or self.eps != 1e-8):
            raise ValueError("betas and eps are AdamW's and have no effect with optimizer=sgd: leave them out")
        return self


class EarlyStopping(Section):
    """Stop when the validation no longer improves, and keep the best weights seen."""

    metric: str = Field(default="eval/loss", description="a metric of the validation")
    goal: Literal["min", "max"] = Field(default="min", description="whether less or more of it is better")
    patience: int = Field(default=3, ge=1, description="validations without improvement before stopping")


class RollbackConfig(Section):
    """What a supervised stage does when steps are skipped in a row: back to the newest checkpoint (or the
    start), on with the minibatches after the trouble (Chowdhery et al. 2022, PaLM, section 5.1)."""

    max_rollbacks: int = Field(
        default=2, ge=0, description="rollbacks of a stage; the next one is a stop with a report"
    )
    lr_factor: float = Field(default=0.5, gt=0, le=1, description="every rollback multiplies the learning rate by this")
    skip_minibatches: int = Field(
        default=0, ge=0, description="minibatches left out after a rollback, beside those since the checkpoint"
    )

    @model_validator(mode="after")
    def _needs_a_rollback(self) -> "RollbackConfig":
        if not self.max_rollbacks and (self.lr_factor != 0.5 or self.skip_minibatches):
            raise ValueError("rollback.lr_factor and rollback.skip_minibatches have no effect with max_rollbacks=0")
        return self


class TrainConfig(Section):
    """A supervised stage: workers, batch sizes, length, validation."""

    num_workers: int = Field(default=1, ge=1, le=100_000, description="Ray Train workers (data-parallel ranks)")
    cpus_per_worker: float = Field(default=0.5, gt=0, description="logical CPUs that Ray reserves for a worker")
    gpus_per_worker: float = Field(default=0, ge=0, description="GPUs of a worker; 0 trains on CPU")
    threads_per_worker: int = Field(default=1, ge=1, description="torch CPU threads of a worker")
    minibatch: int = Field(default=64, ge=1, description="sequences (pairs) of one optimizer step, over all workers")
    microbatch_tokens: int = Field(
        default=4096, ge=1, description="most tokens of one forward and backward pass of one worker"
    )
    epochs: int = Field(default=1, ge=1, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many optimizer steps")
    validate_every: int = Field(
        default=0, ge=0, description="optimizer steps between validations; 0: only once at the end"
    )
    validation_rows: int = Field(default=512, ge=1, description="most validation rows of one validation")
    early_stopping: EarlyStopping | None = Field(default=None, description="stop early and keep the best weights")
    save_every: int = Field(
        default=500, ge=0, description="optimizer steps between checkpoints to resume from; 0: only at the end"
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept beside the best one")
    max_restarts: int = Field(
        default=3,
        ge=0,
        description="times in a row, without a further checkpoint between, that workers are begun anew from the newest "
        "checkpoint when one dies or raises an error that is not the user's",
    )
    stall_s: float = Field(
        default=600.0,
        gt=0,
        description="a step (with its rows, validation and checkpoint) that takes longer is reported, with where each "
        "worker is",
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="optimizer, precision and partitioning")
    rollback: RollbackConfig = Field(default=RollbackConfig(), description="when steps are skipped in a row")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.early_stopping and not self.validate_every:
            raise ValueError("early_stopping needs validations while training: set validate_every to 1 or more")
        if self.minibatch < self.num_workers:
            raise ValueError(
                f"minibatch={self.minibatch} leaves some of the {self.num_workers} workers without a row: "
                "raise minibatch or lower num_workers"
            )
        if self.max_steps is not None and self.engine.warmup_steps >= self.max_steps:
            raise ValueError(
                f"engine.warmup_steps={self.engine.warmup_steps} leaves none of max_steps={self.max_steps} at "
                f"engine.lr={self.engine.lr:g}: lower one or raise the other"
            )
        return self
