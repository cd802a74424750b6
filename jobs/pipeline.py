"""All stages as one job: prepare -> pretrain -> SFT -> reward model -> PPO -> evaluate -> one served answer.

The policy may come from DPO or KTO in PPO's place.  Stages that the configuration leaves out are not run; what
later ones need of them comes from the run `upstream`.  A stage that is there and was made from the same inputs
is skipped; one that was cut off goes on from its newest checkpoint.  One Ray connection serves all stages, and a
stage that fails leaves the finished ones as they are.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from jobs import command
from jobs.dpo import DPOConfig
from jobs.evaluate import EvaluateConfig
from jobs.kto import KTOConfig
from jobs.pairs import PairsConfig
from jobs.ppo_config import PPOConfig
from jobs.prepare import PrepareConfig
from jobs.pretrain import PretrainConfig
from jobs.reward_model import RewardModelConfig
from jobs.serve_config import ServeConfig
from jobs.sft import SFTConfig
from rayrlhf.config import Section
from rayrlhf.data.config import TokenizerConfig
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.layout import RolePlan
    from rayrlhf.models.targets import Shapes

STAGES = ("prepare", "pretrain", "sft", "reward_model", "pairs", "dpo", "kto", "ppo", "evaluate")
SUPERVISED = ("pretrain", "sft", "reward_model", "dpo", "kto")
POLICY = ("dpo", "kto", "ppo")
MODEL_KEYS = {"ppo": "policy_model", "evaluate": "baseline"}  # where a stage's model stands, if not under "model"
OPTIONAL = "; left out: not run"


class PipelineConfig(Section):
    """Every stage's own configuration; what one takes from another is filled in where it is not given."""

    run: RunConfig = Field(description="the run all stages belong to")
    upstream: str | None = Field(
        default=None, description="a run (runs/NAME) whose finished stages stand for those left out here"
    )
    prepare: PrepareConfig | None = Field(default=None, description=f"raw text to tables and a tokenizer{OPTIONAL}")
    pretrain: PretrainConfig | None = Field(default=None, description=f"the base model{OPTIONAL}")
    sft: SFTConfig | None = Field(default=None, description=f"supervised fine-tuning{OPTIONAL}")
    reward_model: RewardModelConfig | None = Field(default=None, description=f"the reward model{OPTIONAL}")
    pairs: PairsConfig | None = Field(default=None, description=f"SFT's samples, ranked, for DPO{OPTIONAL}")
    dpo: DPOConfig | None = Field(default=None, description=f"the policy from pairs{OPTIONAL}")
    kto: KTOConfig | None = Field(default=None, description=f"the policy from labelled completions{OPTIONAL}")
    ppo: PPOConfig | None = Field(default=None, description=f"the policy by reinforcement learning{OPTIONAL}")
    evaluate: EvaluateConfig | None = Field(default=None, description=f"the policy against SFT{OPTIONAL}")
    serve: ServeConfig | None = Field(default=None, description="serve the policy for one answer; left out: do not")
    question: str = Field(default="the movie is", min_length=1, description="what the served model is asked")

    @model_validator(mode="before")
    @classmethod
    def _wire(cls, given: Any) -> Any:
        """Every stage gets the run, and the paths of the stages before it."""
        if not isinstance(given, dict) or not isinstance(given.get("run"), dict) or "name" not in given["run"]:
            return given
        return _over(_wiring(given), given)

    @model_validator(mode="after")
    def _one_run_one_policy(self) -> PipelineConfig:
        if not self.stages:
            raise ValueError(f"no stage is given; there are {', '.join(STAGES)}")
        policies = [stage for stage in POLICY if getattr(self, stage) is not None]
        if len(policies) > 1:
            raise ValueError(
                f"{' and '.join(policies)} are given, but a pipeline trains one policy: keep one here, and give the "
                f"other a run of its own with upstream={self.run.directory}"
            )
        for stage in self.stages:
            if getattr(self, stage).run != self.run:
                raise ValueError(
                    f"{stage}.run differs from run: the pipeline's run is every stage's; remove {stage}.run"
                )
        return self

    @model_validator(mode="after")
    def _later_stages_read_weights(self) -> PipelineConfig:
        peft = self.sft.peft if self.sft is not None else None
        if peft is not None and not peft.is_mergeable and len(self.stages) > self.stages.index("sft") + 1:
            raise ValueError(
                f"sft.peft.kind={peft.kind} cannot be merged into weights, which are what the stages after it "
                "read: set lora or ia3"
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


def _wiring(given: dict[str, Any]) -> dict[str, Any]:
    """For each stage of a configuration what it takes from others: from this run's, or else from upstream's."""
    run = given["run"]
    here = f"{str(run.get('root', 'runs')).rstrip('/')}/{run['name']}"
    upstream = str(given["upstream"]).rstrip("/") if given.get("upstream") else None
    present = [stage for stage in STAGES if given.get(stage) is not None]

    def of(stage: str, path: str) -> str | None:
        root = here if stage in present else upstream
        return root and f"{root}/{stage}/{path}"

    def rows(kind: str, stage: str = "prepare") -> dict[str, str | None] | None:
        splits = ("train", "validation")
        found = {split: of(stage, f"step_000000/state/{kind}/{split}") for split in splits}
        return found if found["train"] else None

    policy = next((stage for stage in POLICY if stage in present), "ppo")
    trained, sft = of(policy, "best" if policy == "ppo" else "latest"), of("sft", "latest")
    base, scores = of("pretrain", "latest"), of("reward_model", "latest")
    tables = rows("prompts") or {}
    pairs = rows("preference", "pairs" if "pairs" in present else "prepare")
    wiring: dict[str, dict[str, Any]] = {
        "prepare": {},
        "pretrain": {"model": {"tokenizer": of("prepare", "step_000000/model")}, "data": rows("text")},
        "sft": {"model": base, "data": rows("prompt_completion")},
        "reward_model": {"model": base, "data": rows(_table(given.get("reward_model")))},
        "pairs": {"model": sft, "reward_model": scores, "prompts": rows("prompts")},
        "dpo": {"model": sft, "data": pairs},
        "kto": {"model": sft, "data": rows("labelled")},
        "ppo": {"policy_model": sft, "reward_model": scores, "prompts": rows("prompts")},
        "evaluate": {
            "policy": trained,
            "baseline": sft,
            "base": base,
            "reward_model": scores,
            "prompts": tables.get("validation"),
            "words": of("prepare", "step_000000/state/text/train"),
        },
        "serve": {"model": trained},
    }
    wired = {}
    for stage, keys in wiring.items():
        if given.get(stage) is None:
            continue
        if isinstance(given[stage], dict) and given[stage].get("reward_function"):
            keys.pop("reward_model", None)
        if stage == "serve" and isinstance(given[stage], dict) and given[stage].get("models"):
            keys.pop("model")
        wired[stage] = {key: value for key, value in keys.items() if value is not None}
        if stage in present:
            wired[stage]["run"] = run
    return wired


def _over(base: Any, given: Any) -> Any:
    """`given` over `base`, mapping by mapping."""
    if not (isinstance(base, dict) and isinstance(given, dict)):
        return given
    return base | {key: _over(base[key], value) if key in base else value for key, value in given.items()}


def check(config: PipelineConfig) -> None:
    """What is known before the first stage has run: all of those that wait for no other, and that lengths fit the
    model to come."""
    from actors.config import check_lengths
    from jobs.ppo_checks import check_batches
    from rayrlhf.errors import CheckpointError, ConfigError
    from rayrlhf.evaluation.run_files import check_run
    from rayrlhf.score_function import load_function

    if config.upstream is not None:
        try:
            check_run(config.upstream)
        except CheckpointError as error:
            raise ConfigError(f"upstream={config.upstream}: {error}") from None
    judge = config.reward_model
    if (
        judge is not None
        and judge.loss in ("ranking", "regression")
        and any("/prepare/" in source.path for source in judge.data.sources)
    ):
        raise ConfigError(
            f"reward_model.loss={judge.loss} has no rows: prepare makes pairs and labels. Set reward_model.data.train "
            "(and data.validation, which may be null)"
        )
    for stage in config.stages:
        job, own = _job(stage), getattr(config, stage)
        if not any(_is_inside(path, config.run.directory) for path in job.parents(own).values()):
            job.check(own)
    ppo, evaluate = config.ppo, config.evaluate
    for stage, own in (("ppo", ppo), ("evaluate", evaluate)):
        if own is not None and own.gold:
            load_function(own.gold, f"{stage}.gold")
    if ppo is not None:
        check_batches(ppo)
    if config.pretrain is None or config.pretrain.model.from_folder:
        return
    context = config.pretrain.model.context
    if ppo is not None:
        check_lengths(ppo.prompts.max_tokens, ppo.sampling.max_new_tokens, context, "ppo.prompts.max_tokens")
    if evaluate is not None:
        new, key = evaluate.sampling.max_new_tokens, "evaluate.max_prompt_tokens"
        check_lengths(evaluate.max_prompt_tokens, new, context, key)
    for stage in config.stages:
        if stage not in SUPERVISED:
            continue
        longest = getattr(config, stage).data.max_tokens
        if longest > context:
            raise ConfigError(
                f"{stage}.data.max_tokens={longest} is above the context of {context} tokens that "
                "pretrain.model.context gives: set one of them"
            )
    plan(config)  # finds the layers of adapters


def _is_inside(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def plan(config: PipelineConfig) -> dict[str, list[RolePlan]]:
    """Stage by stage, as they run one after the other."""
    from jobs.ppo import adapter_sizes
    from jobs.supervised import worker_plan
    from rayrlhf.models.targets import adapter_size

    shapes = _shapes(config)
    plans = {}
    for stage in config.stages:
        job, own = _job(stage), getattr(config, stage)
        if stage in SUPERVISED:
            adapter = adapter_size(getattr(own, "peft", None), shapes, f"{stage}.peft")
            plans[stage] = worker_plan(stage, own.train, shapes, adapter)
        elif stage == "ppo":
            sizes = adapter_sizes(own, dict.fromkeys(("policy", "critic"), shapes), "ppo.")
            plans[stage] = job.plan_for(own, dict.fromkeys(own.roles, shapes), sizes)
        elif stage in ("pairs", "evaluate"):
            plans[stage] = job.plan_for(own, dict.fromkeys(job.ROLES, shapes))
    if config.serve is not None:
        plans["serve"] = _job("serve").plan(config.serve)
    return plans


def _shapes(config: PipelineConfig) -> Shapes:
    """The weights of the models of this run, which are all of one size; none where no stage has a model."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.headers import tensor_shapes

    pretrain = config.pretrain
    if pretrain is not None:
        if _is_inside(pretrain.model.source(), config.run.directory) and config.prepare is not None:
            return pretrain.model.shapes(_vocabulary(config.prepare.tokenizer))
        return dict(_job("pretrain").shapes(pretrain))
    for stage in config.stages:
        path = getattr(getattr(config, stage), MODEL_KEYS.get(stage, "model"), None)
        if path is not None:
            return tensor_shapes(model_folder(path))
    return {}


def _vocabulary(tokenizer: TokenizerConfig) -> int:
    """Most tokens of the tokenizer that `prepare` is to make."""
    from jobs.prepare import tokenizer_folder
    from rayrlhf.models.causal_lm import vocabulary_size

    if tokenizer.from_folder is None:
        return tokenizer.vocab_size
    return vocabulary_size(tokenizer_folder(tokenizer.from_folder))


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


def stages(config: PipelineConfig) -> dict[str, command.Made]:
    """What each stage is made from."""
    found = {}
    for stage in config.stages:
        own = getattr(config, stage)
        found[stage] = command.Made(own, _job(stage).parents(own))
    return found


def _report(config: PipelineConfig, console: Console) -> None:
    import fsspec

    from jobs.stage_configs import config_class
    from rayrlhf.evaluation.report import write_report, write_summary

    filesystem, directory = fsspec.core.url_to_fs(config.run.directory)
    if filesystem.isdir(directory):
        write_summary(config.run.directory)
        console.print(f"report: {write_report(config.run.directory, config_class)}", highlight=False, markup=False)


def _stage(name: str, stage_config: Any, config: PipelineConfig, console: Console) -> None:
    from rayrlhf import lineage

    job = _job(name)
    found = lineage.check(config.run.stage(name), stage_config, job.parents(stage_config))
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
        name = config.served[0].name
        answer = serve.ask(base_url, name, question, max_tokens=32, temperature=1.0, api_key=config.api_key)
        console.print(f"{base_url}/completions: {question!r} -> {answer!r}", highlight=False, markup=False)
    finally:
        serve.stop()


def _job(name: str) -> Any:
    return importlib.import_module(f"jobs.{name}")


def main(argv: list[str] | None = None) -> int:
    return command.main("pipeline", PipelineConfig, check, plan, run, argv, stages=stages)


if __name__ == "__main__":
    sys.exit(main())
