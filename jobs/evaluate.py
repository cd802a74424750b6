"""`rayrlhf evaluate`: a policy against the model it started from, on held-out prompts.

One sampling engine answers for both: first with the baseline's weights, then with the policy's,
published into the running engine as PPO does.  The definitions are in rayrlhf/evaluation/.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from actors.config import EvaluationSamplingConfig, RolloutConfig, check_lengths, check_one_source
from cluster.config import LayoutConfig
from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig, Format, RowFormat
from rayrlhf.errors import ModelError
from rayrlhf.restarts import RecoveryConfig, check_stall
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan
    from cluster.placement import Placement
    from rayrlhf.batches import Prompts
    from rayrlhf.data.prompt_stream import Originals
    from rayrlhf.evaluation.compare import Side
    from rayrlhf.models.targets import Shapes

ROLES = ("base", "reference", "reward", "rollout")
SEED_OFFSET = 2_000_003  # other seeds than in training and in PPO's own evaluations
SHOWN_SAMPLES = 5


class EvaluateConfig(Section):
    """What is compared, on which prompts, by which judges."""

    run: RunConfig = Field(description="the run this stage belongs to")
    policy: str = Field(description="the model to judge: a stage directory or a Hugging Face folder")
    baseline: str = Field(description="what it is compared with and its KL measured against: the SFT stage")
    base: str = Field(description="whose perplexity of the responses is taken: the pretrained stage")
    reward_model: str | None = Field(
        default=None,
        description="the reward model: its stage, or a sequence-classification folder; with another tokenizer or chat "
        "template than the policy it is given responses as text, in its own template",
    )
    reward_function: str | None = Field(
        default=None, description="in its place: module:function(prompts, responses) -> a score each, as in ppo"
    )
    prompts: str = Field(
        min_length=1, description="held-out prompts: a file, a folder, a glob or hf://name[[:config]:split]"
    )
    format: Format = Field(default="auto", description="how the prompt files are read")
    row_format: RowFormat = Field(default="auto", description="the columns that their rows have, as in data.row_format")
    columns: dict[str, str] = Field(default={}, description="a column's name here: its name in the files")
    num_prompts: int = Field(default=500, ge=1, description="how many of them, chosen by a hash of their text")
    max_prompt_tokens: int = Field(default=256, ge=2, description="longer prompts are left out")
    sampling: EvaluationSamplingConfig = Field(
        default=EvaluationSamplingConfig(), description="how the responses are sampled"
    )
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="the engine that samples")
    gold: str | None = Field(default=None, description="module:function(prompts, responses) -> a score each")
    words: str | None = Field(default=None, description="text rows whose words count as known; null: not counted")
    forward_tokens: int = Field(default=8192, ge=1, description="padded tokens of one forward pass")
    layout: LayoutConfig = Field(
        default_factory=lambda: LayoutConfig.model_validate("cpu"),
        description="roles to resources; the base model takes the policy's place",
    )
    call_deadline_s: float = Field(default=900.0, gt=0, description="a role that answers later has failed")
    start_deadline_s: float = Field(default=600.0, gt=0, description="as long may placement and loading take")
    recovery: RecoveryConfig = Field(default=RecoveryConfig(), description="when an actor fails or is late")

    @property
    def data(self) -> DataConfig:
        """The prompts as those of other stages are given."""
        return DataConfig(
            train=self.prompts,
            validation=self.prompts,
            format=self.format,
            row_format=self.row_format,
            columns=self.columns,
            max_tokens=self.max_prompt_tokens,
        )

    @model_validator(mode="after")
    def _is_late_before_it_fails(self) -> EvaluateConfig:
        check_stall(self.recovery, self.call_deadline_s)
        return self

    @model_validator(mode="after")
    def _one_source_of_scores(self) -> EvaluateConfig:
        check_one_source(self.reward_model, self.reward_function)
        return self


def parents(config: EvaluateConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.score_function import source_file

    found = {
        "policy": config.policy,
        "baseline": config.baseline,
        "base": config.base,
        "prompts": config.prompts,
    }
    if config.reward_model:
        found["reward_model"] = config.reward_model
    if config.reward_function:
        found["reward_function"] = source_file(config.reward_function)
    if config.gold:
        found["gold"] = source_file(config.gold)
    return found


def check(config: EvaluateConfig) -> None:
    """Models and prompts are there, lengths fit, policy and baseline are of one architecture."""
    from cluster.bring_up import check_run_root
    from jobs.generate import check_generates
    from rayrlhf.data import sources
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import check_folder, check_scores, load_tokenizer
    from rayrlhf.reward_sources.columns import check_columns
    from rayrlhf.reward_sources.retokenise import reads_tokens
    from rayrlhf.score_function import load_function
    from rayrlhf.training.job import check_data, check_enough

    check_run_root(config.run.root)
    folders = [check_generates(path) for path in (config.policy, config.baseline, config.base)]
    if config.reward_function:
        load_function(config.reward_function, "reward_function")
    contexts = [check_folder(folder) for folder in folders]
    _check_tokenizers(config, folders)
    if config.reward_model:
        folder = model_folder(config.reward_model)
        context = check_scores(folder, f"reward_model={config.reward_model}")
        contexts += [context] if reads_tokens(folder, folders[0]) else []  # of other tokens it may need fewer
    if config.rollout.max_model_len is not None:
        contexts.append(config.rollout.max_model_len)
    check_lengths(config.max_prompt_tokens, config.sampling.max_new_tokens, min(contexts), "max_prompt_tokens")
    _check_same_architecture(folders[0], folders[1])
    tokenizer = load_tokenizer(folders[0])
    rows = check_data(config.data, "prompts", tokenizer=lambda: tokenizer)[config.prompts]
    enough = partial(check_enough, kind="prompts", data=config.data, tokenizer=tokenizer)
    enough(config.prompts, rows, wanted=config.num_prompts, key="num_prompts")
    check_columns(config.reward_function, config.data)
    if config.words is not None:
        sources.check(config.words, kind="text")
    if config.gold is not None:
        load_function(config.gold)
    plan(config)


def _check_tokenizers(config: EvaluateConfig, folders: list[str]) -> None:
    from rayrlhf.data.vocabulary import reads
    from rayrlhf.models.causal_lm import load_tokenizer

    policy = load_tokenizer(folders[0])
    for key, folder in (("baseline", folders[1]), ("base", folders[2])):
        if not reads(load_tokenizer(folder), policy):
            raise ModelError(
                f"{key}={getattr(config, key)} has another tokenizer than policy={config.policy}, whose tokens it has "
                "to read: give a model that the policy was made from"
            )


def _check_same_architecture(policy: str, baseline: str) -> None:
    shapes = []
    for folder in (policy, baseline):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            model = json.load(file)
        keys = ("architectures", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer")
        shapes.append({key: model[key] for key in keys if key in model})
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"policy {policy} and baseline {baseline} are different architectures: {shapes[0]} and "
            f"{shapes[1]}. One engine samples from both, so give a baseline that the policy started from."
        )


def evaluation_layout(layout: LayoutConfig) -> LayoutConfig:
    """The layout without the learners: nothing is trained, and the base model takes the policy's place."""
    kept = layout.only(("policy", "reference", "reward", "rollout"))
    roles = dict(kept.roles)
    roles["base"] = roles.pop("policy").model_copy(update={"ranks": 1, "offload": False})
    return LayoutConfig(base=None, pools=kept.pools, roles=roles)


def plan(config: EvaluateConfig) -> list[RolePlan]:
    """Every role's place, with an estimate of its memory."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.headers import tensor_shapes

    models = {
        "rollout": config.policy,
        "reference": config.baseline,
        "reward": config.reward_model or config.policy,
        "base": config.base,
    }
    return plan_for(config, {role: tensor_shapes(model_folder(path)) for role, path in models.items()})


def plan_for(config: EvaluateConfig, shapes: dict[str, Shapes]) -> list[RolePlan]:
    """The plan for models with weights of these shapes, by role."""
    from cluster import layout, memory

    needs = {role: memory.frozen(shapes[role], config.forward_tokens) for role in ("reference", "base")}
    needs["reward"] = memory.rewarding(shapes["reward"], config.forward_tokens, config.reward_function)
    needs["rollout"] = memory.sampler(shapes["rollout"], config.rollout)
    return layout.plan(evaluation_layout(config.layout), needs)


def run(config: EvaluateConfig) -> str:
    """Compare; returns the stage directory.  Ray is connected."""
    return asyncio.run(_run(config))


async def _run(config: EvaluateConfig) -> str:
    from cluster.placement import Placement
    from rayrlhf.checkpoint import StageWriter
    from rayrlhf.data.prompt_stream import Originals, held_out_prompts
    from rayrlhf.evaluation.compare import compare, sample_rows
    from rayrlhf.lineage import claim
    from rayrlhf.metrics import MetricsLog
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import load_tokenizer
    from rayrlhf.reward_sources.columns import asked_columns

    root, describe, made_from = config.run.stage("evaluate"), config.model_dump(mode="json"), parents(config)
    claim(root, config, made_from)
    writer = StageWriter(root, step=0)
    tokenizer = load_tokenizer(model_folder(config.policy))
    originals = Originals(columns=asked_columns(config.reward_function))
    prompts = await asyncio.to_thread(held_out_prompts, config.data, tokenizer, config.num_prompts, originals)
    vocabulary = await asyncio.to_thread(known_words, config.words) if config.words else None
    placement = Placement.reserve(evaluation_layout(config.layout), config.start_deadline_s, stage=root)
    try:
        baseline, policy = await _both_sides(config, placement, prompts, tokenizer, originals)
    finally:
        placement.release()
    metrics = compare(policy, baseline, vocabulary, config.run.seed)
    rows = sample_rows(policy, baseline)
    with open(os.path.join(writer.state_dir, "samples.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    log = MetricsLog(config.run.directory, "evaluate", 0, trackers=config.run.trackers, config=describe)
    log.log(0, metrics)
    log.close()
    _show(metrics, rows)
    return writer.finish("evaluate", describe, made_from, metrics)


async def _both_sides(
    config: EvaluateConfig, placement: Placement, prompts: Prompts, tokenizer: Any, originals: Originals
) -> tuple[Side, Side]:
    """(baseline, policy) on the same prompts and seeds."""
    from actors.watchdog import Watchdog
    from actors.weight_sync import publish_folder
    from rayrlhf.model_folder import model_folder

    groups: dict[str, Any] = {}
    stall_s = check_stall(config.recovery, config.call_deadline_s)
    watchdog = Watchdog(stall_s, groups, config.run.stage("evaluate"))
    watchdog.start()
    try:
        _make(config, placement, groups)
        await asyncio.gather(*(group.start(config.start_deadline_s) for group in groups.values()))
        reward = _reward(config, groups["reward"], originals)
        baseline = await _side(config, groups, reward, prompts, tokenizer)
        await publish_folder(model_folder(config.policy), groups["rollout"], 1)
        return baseline, await _side(config, groups, reward, prompts, tokenizer)
    finally:
        watchdog.stop()
        for group in groups.values():
            group.stop()


def _make(config: EvaluateConfig, placement: Placement, groups: dict[str, Any]) -> None:
    """Ask for every actor; `groups` fills up, so that the caller can stop what was begun."""
    from actors.group import ReferenceGroup, RewardGroup
    from actors.reference import ReferenceReplica
    from actors.reward import RewardReplica
    from actors.rollout import RolloutGroup
    from rayrlhf.model_folder import model_folder
    from rayrlhf.restarts import Restarts

    restarts = Restarts(config.recovery)

    def frozen(role: str, kind: Any, actor: type, model: str, **more: Any) -> None:
        place = "policy" if role == "base" else role
        kwargs = {
            "folder": model_folder(model),
            "forward_tokens": config.forward_tokens,
            "threads": config.layout.roles[place].threads,
            **more,
        }
        groups[role] = kind(role, actor, kwargs, placement, placement.count(role), config.call_deadline_s, restarts)

    temperature = config.sampling.temperature
    frozen("reference", ReferenceGroup, ReferenceReplica, config.baseline, temperature=temperature)
    frozen("base", ReferenceGroup, ReferenceReplica, config.base, temperature=1.0)
    # a function decodes with the policy's tokenizer
    scored_by = config.reward_model or config.policy
    deadline = config.call_deadline_s
    frozen("reward", RewardGroup, RewardReplica, scored_by, function=config.reward_function, call_deadline_s=deadline)
    groups["rollout"] = RolloutGroup(
        model_folder(config.baseline),
        config.rollout,
        config.sampling,
        placement,
        placement.count("rollout"),
        config.call_deadline_s,
        config.layout.roles["rollout"].offload,
        restarts,
    )


def _reward(config: EvaluateConfig, group: Any, originals: Originals) -> Any:
    """The group of the role reward, or what translates for it."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.reward_sources.columns import WithColumns
    from rayrlhf.reward_sources.retokenise import judge

    if not config.reward_model:
        return WithColumns(group, originals) if originals.columns else group
    folders = model_folder(config.reward_model), model_folder(config.policy)
    return judge(group, *folders, originals, config.forward_tokens)


async def _side(config: EvaluateConfig, groups: dict[str, Any], reward: Any, prompts: Prompts, tokenizer: Any) -> Side:
    from rayrlhf.evaluation.compare import Side
    from rayrlhf.rollout_texts import texts_of
    from rayrlhf.score_function import load_function

    rollouts = await groups["rollout"].generate(prompts, config.run.seed + SEED_OFFSET)
    reference, base, scores = await asyncio.gather(
        groups["reference"].logprobs(rollouts),
        groups["base"].logprobs(rollouts),
        reward.scores(rollouts),
    )
    texts, responses = texts_of(rollouts, tokenizer)
    gold = load_function(config.gold)(texts, responses) if config.gold else None
    return Side(rollouts, texts, responses, scores.total.tolist(), reference, base, gold)


def known_words(path: str) -> set[str]:
    """The words of the text rows at `path`; tasks read the rows, only words come here."""
    from rayrlhf.data import sources

    words: set[str] = set()
    rows = sources.read(path, kind="text").map_batches(_words_of, batch_format="pyarrow")
    for row in rows.iter_rows():
        words.add(row["word"])
    return words


def _words_of(batch: Any) -> Any:
    import pyarrow as pa

    from rayrlhf.evaluation.metrics import vocabulary_of

    return pa.table({"word": pa.array(sorted(vocabulary_of(batch["text"].to_pylist())), pa.string())})


def _show(metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rayrlhf.evaluation.charts import number_text
    from rayrlhf.evaluation.report import evaluation_table, win_rates

    console = Console()
    table = Table("held-out prompts", title="evaluation")
    for side in ("baseline", "policy"):
        table.add_column(side, justify="right")
    for name, before, after in evaluation_table(metrics):
        table.add_row(name, number_text(before), number_text(after))
    console.print(table)
    for judge, rate, low, high in win_rates(metrics):
        console.print(f"win rate by {judge}: {rate:.3f} (95 % interval {low:.3f} to {high:.3f})", highlight=False)
    samples = Table("prompt", "baseline", "policy", title="samples", show_lines=True)
    for row in rows[:SHOWN_SAMPLES]:
        samples.add_row(*(Text(row[column]) for column in ("prompt", "baseline", "policy")))
    console.print(samples)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs import command

    return command.main("evaluate", EvaluateConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
