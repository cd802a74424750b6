"""What a supervised stage says when optimizer steps are skipped in a row: why it stops, and the report of it."""

from __future__ import annotations

from rayrlhf.training.config import RollbackConfig
from rayrlhf.training.engine import Engine


def why_not(num_rollbacks: int, step: int, total: int, settings: RollbackConfig) -> str:
    """Why there is no rollback after minibatch `step` of `total`; "" where there is one."""
    if num_rollbacks >= settings.max_rollbacks:
        return f"train.rollback.max_rollbacks={settings.max_rollbacks} rollbacks are used up"
    if step + settings.skip_minibatches >= total:
        return "a rollback would leave no minibatch to train on"
    return ""


def report(name: str, why: str, engine: Engine, num_rollbacks: int, newest: str | None) -> str:
    """The stage `name` stops: what happened, and what to set.  `newest`: its newest checkpoint."""
    config, guard, recent = engine.config, engine.guard, "\n  ".join(engine.recent)
    rate = f"{config.lr * engine.lr_scale:g}" + (f" after {num_rollbacks} rollback(s)" if num_rollbacks else "")
    return (
        f"stage {name} diverged: {guard.num_in_row} optimizer steps in a row were skipped ({guard.num_skipped} in the "
        f"whole run), and {why}. The last minibatches:\n  {recent}\n"
        f"Look at those rows. Give another run.name a lower train.engine.lr (now {rate}), a longer "
        f"train.engine.warmup_steps (now {config.warmup_steps}) or train.engine.precision=float32 (now "
        f"{config.precision}); where healthy steps are taken for spikes, a higher train.engine.guard.bound (now "
        f"{config.guard.bound or 'null'}). More train.rollback.max_rollbacks let this run go on from "
        f"{newest or 'its start'} as it is"
    )
