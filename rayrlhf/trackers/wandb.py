"""Weights & Biases: project `rayrlhf` (or WANDB_PROJECT), a group for the run, a W&B run for each stage."""

from __future__ import annotations

import os
import uuid

import fsspec

from rayrlhf.trackers.base import StageOfRun


class WandB:
    """A W&B run; `WANDB_MODE=offline` writes it to `runs/NAME/wandb` (or WANDB_DIR/wandb) for `wandb sync`.

    W&B cannot take back rows. So our step is a value of its own (`step`, which the charts have as their x axis): steps
    that a rollback or a resumed stage takes again stand there twice, the later row with the greater time.
    """

    def __init__(self, stage: StageOfRun) -> None:
        import wandb

        known = stage.known_id("wandb")
        name = known or uuid.uuid4().hex[:16]
        if known is None:
            stage.remember_id("wandb", name)
        # offline there is no server to ask: what an earlier process wrote is appended to when both are synced
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rayrlhf"),
            group=stage.run,
            name=f"{stage.run}/{stage.stage}",
            job_type=stage.stage,
            id=name,
            resume="allow" if known else None,
            config=stage.config,
            dir=os.environ.get("WANDB_DIR") or fsspec.core.url_to_fs(stage.directory)[1],
            reinit="create_new",  # apart from a run that a user's own code may have
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics | {"step": step})

    def rewind(self, done: int) -> None:
        pass  # see the class

    def close(self, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))
