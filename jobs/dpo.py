"""Direct preference optimisation: the policy learns from pairs, without a reward model or sampling."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from jobs import command
from jobs.supervised import PreferenceTuning, PreferenceTuningConfig
from rayrlhf.training.job import PAIR_METRICS


class DPOConfig(PreferenceTuningConfig):
    """DPO (Rafailov et al. 2023) or IPO (Azar et al. 2023) on prompt/chosen/rejected rows."""

    loss: Literal["dpo", "ipo"] = Field(default="dpo", description="dpo: logistic; ipo: squared, with a finite optimum")
    beta: float = Field(
        default=0.1, gt=0, description="how much leaving the reference costs; ipo: 1 / (2 beta) is the margin aimed at"
    )


class _DPO(PreferenceTuning):
    def options(self, config: Any) -> dict[str, Any]:
        from rayrlhf.training.losses import DirectPreferenceLoss

        return super().options(config) | {"loss": DirectPreferenceLoss(config.loss, config.beta)}


JOB = _DPO("dpo", rows="preference", metrics=PAIR_METRICS, texts_per_row=2)
parents, check, plan, run, steps = JOB.parents, JOB.check, JOB.plan, JOB.run, JOB.steps


def main(argv: list[str] | None = None) -> int:
    return command.main("dpo", DPOConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
