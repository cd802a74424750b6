"""All stages as one job: prepare -> pretrain -> SFT -> reward model -> PPO -> evaluate -> one served answer.

A run whose scores come from a function has no reward model.  A stage that is there and was made from the
same inputs is skipped; one that was cut off goes on from its newest checkpoint.  One Ray connection serves
all stages, and a stage that fails leaves the finished ones as they are.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from jobs.evaluate import EvaluateConfig
from jobs.ppo import PPOConfig
from jobs.prepare import PrepareConfig
from jobs.pretrain import PretrainConfig
from jobs.reward_model import RewardModelConfig
from jobs.serve import ServeConfig
from jobs.sft import SFTConfig
from rayrlhf.config import Section
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.layout import RolePlan

STAGES = ("prepare", "pretrain", "sft", "reward_model", "ppo", "evaluate")
SUPERVISED = ("pretrain", "sft", "reward_model")


class PipelineConfig(Section):
    """Every stage's own configuration; what one takes from another is filled in where it is not given."""

    run: RunConfig = Field(description="the run all stages belong to")
    prepare: PrepareConfig = Field(description="raw text to tables and a tokenizer")
    pretrain: PretrainConfig = Field(description="the base model")
    sft: SFTConfig = Field(description="supervised fine-tuning")
    reward_model: RewardModelConfig | None = Field(
        default=None, description="the reward model; null where a reward_function gives the scores"
    )
    ppo: PPOConfig = Field(description="reinforcement learning")
    evaluate: EvaluateConfig = Field(description="the policy against SFT")
    serve: ServeConfig | None = Field(default=None, description="serve the best policy for one answer; null: do not")
    question: str = Field(default="the movie is", min_length=1, description="what the served model is asked")

    @model_validator(mode="before")
    @classmethod
    def _wire(cls, given: Any) -> Any:
        """Every stage gets the run, and the paths of the stages before it."""
        if not isinstance(given, dict) or not isinstance(given.get("run"), dict) or "name" not in given["run"]:
            return given
        optional = [stage for stage in ("reward_model", "serve") if given.get(stage) is not None]
        return _over(_wiring(given["run"], optional, _table(given.get("reward_model"))), given)

    @model_validator(mode="after")
    def _one_run(self) -> PipelineConfig:
        for stage in self.stages:
            if getattr(self, stage).run != self.run:
                raise ValueError(
                    f"{stage}.run differs from run: the pipeline's run is every stage's; remove {stage}.run"
                )
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this run has, in their order."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)


def _table(reward_model: Any) -> str:
    """The table of `prepare` that a reward model learns from."""
    loss = reward_model.get("loss") if isinstance(reward_model, dict) else None
    return "labelled" if loss == "binary" else "preference"


def _wiring(run: dict[str, Any], optional: list[str], table: str) -> dict[str, Any]:
    """What each stage takes from the ones before it; `optional`: those of the optional stages that there are;
    `table`: the reward model's."""
    root = f"{str(run.get('root', 'runs')).rstrip('/')}/{run['name']}"
    tables = f"{root}/prepare/step_000000/state"

    def data(kind: str) -> dict[str, str]:
        return {"train": f"{tables}/{kind}/train", "validation": f"{tables}/{kind}/validation"}

    base, sft, policy = f"{root}/pretrain/latest", f"{root}/sft/latest", f"{root}/ppo/best"
    wiring: dict[str, Any] = {
        "prepare": {},
        "pretrain": {"model": {"tokenizer": f"{root}/prepare/step_000000/model"}, "data": data("text")},
        "sft": {"model": base, "data": data("prompt_completion")},
        "ppo": {"policy_model": sft, "prompts": data("prompts")},
        "evaluate": {
            "policy": policy,
            "baseline": sft,
            "base": base,
            "prompts": f"{tables}/prompts/validation",
            "words": f"{tables}/text/train",
        },
    }
    if "reward_model" in optional:
        wiring["reward_model"] = {"model": base, "data": data(table)}
        wiring["ppo"]["reward_model"] = wiring["evaluate"]["reward_model"] = f"{root}/reward_model/latest"
    wiring = {stage: keys | {"run": run} for stage, keys in wiring.items()}
    return wiring | ({"serve": {"model": policy}} if "serve" in optional else {})


def _over(base: Any, given: Any) -> Any:
    """`given` over `base`, mapping by mapping."""
    if not (isinstance(base, dict) and isinstance(given, dict)):
        return given
    return base | {key: _over(base[key], value) if key in base else value for key, value in given.items()}


def check(config: PipelineConfig) -> None:
    """What is known before the first stage has run: the raw data, and that lengths fit the model to come."""
    from actors.config import check_lengths
    from jobs.ppo import check_batches
    from rayrlhf.errors import ConfigError
    from rayrlhf.score_function import load_function

    _job("prepare").check(config.prepare)
    judge = config.reward_model
    if judge is not None and judge.loss in ("ranking", "regression") and "/prepare/" in judge.data.train:
        raise ConfigError(
            f"reward_model.loss={judge.loss} has no rows: prepare makes pairs and labels. Set reward_model.data.train "
            "(and data.validation, which may be null)"
        )
    if config.pretrain.model.from_folder:
        return
    context = config.pretrain.model.context
    new, key = config.ppo.sampling.max_new_tokens, "ppo.prompts.max_tokens"
    check_lengths(config.ppo.prompts.max_tokens, new, context, key)
    new, key = config.evaluate.sampling.max_new_tokens, "evaluate.max_prompt_tokens"
    check_lengths(config.evaluate.max_prompt_tokens, new, context, key)
    for stage, name in (("ppo", config.ppo.gold), ("evaluate", config.evaluate.gold)):
        if name:
            load_function(name, f"{stage}.gold")
    for stage in config.stages:
        if stage not in SUPERVISED:
            continue
        longest = getattr(config, stage).data.max_tokens
        if longest > context:
            raise ConfigError(
                f"{stage}.data.max_tokens={longest} is above the context of {context} tokens that "
                "pretrain.model.context gives: set one of them"
            )
    check_batches(config.ppo)


def plan(config: PipelineConfig) -> dict[str, list[RolePlan]]:
    """Stage by stage, as they run one after the other."""
    from cluster.memory import parameters_in
    from jobs.ppo import plan_for
    from jobs.supervised import worker_plan
    from rayrlhf.checkpoint import model_folder

    model = config.pretrain.model
    if model.from_folder:
        count = parameters_in(model_folder(model.from_folder))
    else:
        count = model.num_parameters(config.prepare.tokenizer.vocab_size)
    supervised = [stage for stage in config.stages if stage in SUPERVISED]
    plans = {stage: worker_plan(stage, getattr(config, stage).train, count) for stage in supervised}
    plans["ppo"] = plan_for(config.ppo, dict.fromkeys(config.ppo.roles, count))
    evaluate = _job("evaluate")
    plans["evaluate"] = evaluate.plan_for(config.evaluate, dict.fromkeys(evaluate.ROLES, count))
    if config.serve is not None:
        plans["serve"] = _job("serve").plan(config.serve)
    return plans


def run(config: PipelineConfig) -> str:
    """All stages; returns the run's directory.  Ray is connected."""
    from rich.console import Console

    console, started = Console(), time.time()
    try:
        for stage in config.stages:
            _stage(stage, getattr(config, stage), config, console)
        if config.serve is not None:
            _ask_once(config.serve, config.question, console)
    finally:
        _report(config, console)  # also of a run that failed: what is there is worth reading
    console.print(f"pipeline: {time.time() - started:.0f} s", highlight=False)
    return config.run.directory


def _report(config: PipelineConfig, console: Console) -> None:
    import fsspec

    from rayrlhf.evaluation.report import write_report, write_summary

    filesystem, directory = fsspec.core.url_to_fs(config.run.directory)
    if filesystem.isdir(directory):
        write_summary(config.run.directory)
        console.print(f"report: {write_report(config.run.directory)}", highlight=False, markup=False)


def _stage(name: str, stage_config: Any, config: PipelineConfig, console: Console) -> None:
    from rayrlhf import lineage

    job = _job(name)
    found = lineage.check(config.run.stage(name), stage_config.model_dump(mode="json"), job.parents(stage_config))
    if found.state == "finished":
        console.print(f"{name}: there already, made from the same inputs; skipped", highlight=False)
        return
    console.rule(name)
    started = time.time()
    job.check(stage_config)
    path = job.run(stage_config)
    console.print(f"{name}: {time.time() - started:.0f} s, {path}", highlight=False, markup=False)


def _ask_once(config: ServeConfig, question: str, console: Console) -> None:
    """One completion of the served policy, then the server goes away."""
    serve = _job("serve")
    console.rule("serve")
    serve.check(config)
    try:
        base_url = serve.start(config)
        answer = serve.ask(base_url, config.name, question, max_tokens=32, temperature=1.0)
        console.print(f"{base_url}/completions: {question!r} -> {answer!r}", highlight=False, markup=False)
    finally:
        serve.stop()


def _job(name: str) -> Any:
    return importlib.import_module(f"jobs.{name}")


def main(argv: list[str] | None = None) -> int:
    from jobs import command

    return command.main("pipeline", PipelineConfig, check, plan, run, argv)


if __name__ == "__main__":
    sys.exit(main())
