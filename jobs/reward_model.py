"""The reward model: a language model with a scalar head learns which of two texts people prefer, an order of
several, a rating or a label."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from jobs import command
from jobs.supervised import FineTuneConfig, FineTuning
from rayrlhf.training.job import LOSS_ONLY, MIN_DEMONSTRATIONS, PAIR_METRICS, stage_of

if TYPE_CHECKING:
    from ray.data import Dataset

    from rayrlhf.training.losses import Loss

# by loss: the form of its rows and what a validation gives
FORMS = {"pairwise": "preference", "ranking": "ranking", "regression": "scored", "binary": "labelled"}
METRICS = {
    "pairwise": PAIR_METRICS,
    "ranking": PAIR_METRICS,
    "regression": (*LOSS_ONLY, "eval/mae"),
    "binary": (*LOSS_ONLY, "eval/accuracy"),
}


class RewardModelConfig(FineTuneConfig):
    """Training on human judgements (Ouyang et al. 2022); a reward model may be continued."""

    loss: Literal["pairwise", "ranking", "regression", "binary"] = Field(
        default="pairwise",
        description="pairwise: Bradley-Terry on prompt/chosen/rejected rows; ranking: all pairs of prompt/ranked rows, "
        "whose `ranked` lists two texts or more, the best first; regression: squared error against the number `score` "
        "of prompt/completion/score rows; binary: log-odds of the `label` of prompt/completion/label rows",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="pairwise: the chosen text is to lead by this times the row's number `margin`, such as the "
        "difference of two ratings; 0: rows need no margin",
    )

    demonstrations: str | None = Field(
        default=None,
        description="prompt/completion rows whose mean score is to be 0 in the saved model (and in validations): a "
        "file, a folder, a glob or hf://name[[:config]:split], read as `data`; null: scores stay as the loss left them",
    )
    num_demonstrations: int = Field(
        default=512, ge=MIN_DEMONSTRATIONS, description="how many of them, chosen by a hash of their text"
    )

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> RewardModelConfig:
        if self.margin and self.loss != "pairwise":
            raise ValueError(f"margin={self.margin:g} has no effect with loss={self.loss}: leave it out")
        if self.demonstrations and self.loss in ("regression", "binary"):
            raise ValueError(
                f"demonstrations shift all scores, and loss={self.loss} gives them a zero of their own: leave it out"
            )
        if not self.demonstrations and self.num_demonstrations != 512:
            raise ValueError(
                f"num_demonstrations={self.num_demonstrations} has no effect without demonstrations: set them"
            )
        return self


class _RewardModel(FineTuning):
    def form(self, config: Any) -> str:
        return "preference_margin" if config.margin else FORMS[config.loss]

    def validated(self, config: Any) -> tuple[str, ...]:
        return METRICS[config.loss]

    def num_texts(self, config: Any) -> int:
        return 2 if config.loss in ("pairwise", "ranking") else 1  # a ranking has two or more

    def parents(self, config: Any) -> dict[str, str]:
        own = {"demonstrations": stage_of(config.demonstrations)} if config.demonstrations else {}
        return super().parents(config) | own

    def check(self, config: Any) -> None:
        from rayrlhf.data import sources

        if config.demonstrations:
            sources.check(config.demonstrations, config.data.format, "prompt_completion")
        super().check(config)

    def options(self, config: Any) -> dict[str, Any]:
        def derive(ds: Dataset) -> Dataset:
            from rayrlhf.data.tokenize import fitting

            return fitting(ds, config.train.microbatch_tokens)

        more: dict[str, Any] = {"derive": derive} if config.loss == "ranking" else {}
        if config.demonstrations:
            more["demonstrations"] = (config.demonstrations, config.num_demonstrations)
        return super().options(config) | {"loss": _loss(config)} | more


def _loss(config: RewardModelConfig) -> Loss:
    from rayrlhf.training import losses, reward_losses

    if config.loss == "pairwise":
        return losses.PreferenceLoss(config.margin)
    own: dict[str, Loss] = {
        "ranking": reward_losses.RankingLoss(),
        "regression": reward_losses.RegressionLoss(),
        "binary": reward_losses.BinaryLoss(),
    }
    return own[config.loss]


JOB = _RewardModel("reward_model", rows="preference")
parents, check, plan, run, steps = JOB.parents, JOB.check, JOB.plan, JOB.run, JOB.steps


def main(argv: list[str] | None = None) -> int:
    return command.main("reward_model", RewardModelConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
