"""KTO: the policy learns from single completions that people found good or bad; pairs are not needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs import command
from jobs.supervised import PreferenceTuning, PreferenceTuningConfig

if TYPE_CHECKING:
    from ray.data import Dataset


class KTOConfig(PreferenceTuningConfig):
    """KTO (Ethayarajh et al. 2024) on prompt/completion/label rows, or on pairs taken apart."""

    paired: bool = Field(
        default=False, description="rows are prompt/chosen/rejected, of which each gives a good and a bad example"
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="weight of good completions in the loss")
    undesirable_weight: float = Field(
        default=1.0,
        ge=0,
        description="of bad ones; the paper keeps the ratio of weight x number of good to bad between 1 and 4/3",
    )


class _KTO(PreferenceTuning):
    def form(self, config: Any) -> str:
        return "preference" if config.paired else "labelled"

    def times(self, config: Any) -> int:
        return 2 if config.paired else 1

    def options(self, config: Any) -> dict[str, Any]:
        from rayrlhf.data.mismatched import labelled, with_mismatched
        from rayrlhf.training.losses import KTOLoss

        def derive(ds: Dataset) -> Dataset:
            return with_mismatched(labelled(ds) if config.paired else ds, config.data.max_tokens)

        loss = KTOLoss(config.beta, config.desirable_weight, config.undesirable_weight)
        return super().options(config) | {"loss": loss, "derive": derive}


JOB = _KTO("kto", rows="labelled", metrics=("eval/loss", "eval/margin"))
parents, check, plan, run, steps = JOB.parents, JOB.check, JOB.plan, JOB.run, JOB.steps


def main(argv: list[str] | None = None) -> int:
    return command.main("kto", KTOConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
