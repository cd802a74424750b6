"""Direct preference optimisation: the policy learns from pairs, without a reward model or sampling."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from jobs import command
from jobs.supervised import FineTuneConfig, FineTuning


class DPOConfig(FineTuneConfig):
    """DPO (Rafailov et al. 2023) or IPO (Azar et al. 2023) on prompt/chosen/rejected rows."""

    loss: Literal["dpo", "ipo"] = Field(default="dpo", description="dpo: logistic; ipo: squared, with a finite optimum")
    beta: float = Field(
        default=0.1, gt=0, description="how much leaving the reference costs; ipo: 1 / (2 beta) is the margin aimed at"
    )
    reference: str | None = Field(default=None, description="what leaving is measured against; null: model")


class _DPO(FineTuning):
    def parents(self, config: Any) -> dict[str, str]:
        return super().parents(config) | ({"reference": config.reference} if config.reference else {})

    def check(self, config: Any) -> None:
        from rayrlhf.checkpoint import model_folder
        from rayrlhf.models.causal_lm import check_writes

        for key, path in (("model", config.model), ("reference", config.reference)):
            if path:
                check_writes(model_folder(path), f"{key}={path}")
        super().check(config)

    def options(self, config: Any) -> dict[str, Any]:
        from rayrlhf.checkpoint import model_folder
        from rayrlhf.training.losses import DirectPreferenceLoss

        return {
            "loss": DirectPreferenceLoss(config.loss, config.beta),
            "reference": model_folder(config.reference or config.model),
        }


JOB = _DPO("dpo", rows="preference")
parents, check, plan, run = JOB.parents, JOB.check, JOB.plan, JOB.run


def main(argv: list[str] | None = None) -> int:
    return command.main("dpo", DPOConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
