"""`rayrlhf pairs`: preference rows from a model's own samples, ranked by a reward model or function.

    runs/NAME/pairs/step_000000/state/preference/{train,validation}/   Parquet: prompt, chosen, rejected, scores

Of each prompt's samples the best and the worst make a pair: what DPO learns from without people.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from actors.config import RolloutConfig, SamplingConfig, check_lengths, check_one_source
from cluster.config import LayoutConfig
from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig, MixedSource
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.restarts import RecoveryConfig, check_stall
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset
    from rich.console import Console

    from cluster.layout import RolePlan
    from rayrlhf.metrics import MetricsLog
    from rayrlhf.models.targets import Shapes

KIND = "pairs"
ROLES = ("reward", "rollout")
SEED_OFFSET = 3_000_017  # other seeds than in training and evaluation
LABELS = {"pairs/score": "score", "pairs/margin": "margin", "pairs/kept_share": "kept"}


class PairsConfig(Section):
    """Which model samples, on which prompts, and who ranks."""

    run: RunConfig = Field(description="the run this stage belongs to")
    model: str = Field(description="the model that samples: a stage directory or a Hugging Face folder")
    reward_model: str | None = Field(
        default=None,
        description="who ranks: a reward model's stage, or a sequence-classification folder; with another tokenizer or "
        "chat template than the model it is given responses as text, in its own template",
    )
    reward_function: str | None = Field(
        default=None, description="in its place: module:function(prompts, responses) -> a score each, as in ppo"
    )
    prompts: DataConfig = Field(description="prompts of the training pairs, and of held-out ones")
    num_prompts: int | None = Field(default=None, ge=1, description="most prompts of each; null: all")
    samples: int = Field(default=2, ge=2, description="responses to a prompt; the best and the worst make the pair")
    min_margin: float = Field(default=0.0, ge=0, description="pairs whose scores are no further apart are left out")
    batch: int = Field(default=128, ge=1, description="prompts sampled at once")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how the responses are sampled")
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="the engine that samples")
    forward_tokens: int = Field(default=8192, ge=1, description="padded tokens of one pass of the reward model")
    layout: LayoutConfig = Field(
        default_factory=lambda: LayoutConfig.model_validate("cpu"), description="roles to resources"
    )
    call_deadline_s: float = Field(default=900.0, gt=0, description="a role that answers later has failed")
    start_deadline_s: float = Field(default=600.0, gt=0, description="as long may placement and loading take")
    recovery: RecoveryConfig = Field(default=RecoveryConfig(), description="when an actor fails or is late")

    @property
    def splits(self) -> tuple[str, ...]:
        """Of the prompts, as tables are named."""
        return ("train", "validation") if self.prompts.validation else ("train",)

    @model_validator(mode="after")
    def _is_late_before_it_fails(self) -> PairsConfig:
        check_stall(self.recovery, self.call_deadline_s)
        return self

    @model_validator(mode="after")
    def _one_source_of_scores(self) -> PairsConfig:
        check_one_source(self.reward_model, self.reward_function)
        return self


def parents(config: PairsConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.score_function import source_file
    from rayrlhf.training.job import data_parents

    found = {"model": config.model} | data_parents(config.prompts)
    if config.reward_model:
        found["reward_model"] = config.reward_model
    if config.reward_function:
        found["reward_function"] = source_file(config.reward_function)
    return found


def check(config: PairsConfig) -> None:
    """Models and prompts are there, lengths fit."""
    from cluster.bring_up import check_run_root
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import check_scores, check_writes, load_tokenizer
    from rayrlhf.reward_sources.columns import check_columns
    from rayrlhf.reward_sources.retokenise import reads_tokens
    from rayrlhf.score_function import load_function
    from rayrlhf.training.job import check_data

    check_run_root(config.run.root)
    contexts = [check_writes(model_folder(config.model), f"model={config.model}")]
    if config.reward_function:
        load_function(config.reward_function, "reward_function")
    if config.reward_model:
        folder = model_folder(config.reward_model)
        context = check_scores(folder, f"reward_model={config.reward_model}")
        same = reads_tokens(folder, model_folder(config.model))
        contexts += [context] if same else []  # of other tokens it may need fewer
    if config.rollout.max_model_len:
        contexts.append(config.rollout.max_model_len)
    longest = config.prompts.max_tokens + config.sampling.max_new_tokens
    check_lengths(config.prompts.max_tokens, config.sampling.max_new_tokens, min(contexts), "prompts.max_tokens")
    if longest > config.forward_tokens:
        raise ConfigError(
            f"a prompt and its response may have {longest} tokens, more than forward_tokens={config.forward_tokens} "
            "holds: raise it, or lower prompts.max_tokens or sampling.max_new_tokens"
        )
    if config.prompts.is_mixed:
        raise ConfigError(
            "prompts.train is a mixture, but every prompt is sampled once: give one path (a folder or a glob may hold "
            "several files)"
        )
    check_data(config.prompts, "prompts", "prompts", partial(load_tokenizer, model_folder(config.model)))
    check_columns(config.reward_function, config.prompts)
    plan(config)


def plan(config: PairsConfig) -> list[RolePlan]:
    """Every role's place, with an estimate of its memory."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.headers import tensor_shapes

    models = {"rollout": config.model, "reward": config.reward_model or config.model}
    return plan_for(config, {role: tensor_shapes(model_folder(path)) for role, path in models.items()})


def plan_for(config: PairsConfig, shapes: dict[str, Shapes]) -> list[RolePlan]:
    """The plan for models with weights of these shapes, by role."""
    from cluster import layout, memory

    needs = {
        "rollout": memory.sampler(shapes["rollout"], config.rollout),
        "reward": memory.rewarding(shapes["reward"], config.forward_tokens, config.reward_function),
    }
    return layout.plan(config.layout.only(ROLES), needs)


def run(config: PairsConfig) -> str:
    """Sample and rank; returns the stage directory.  Ray is connected."""
    return asyncio.run(_run(config))


async def _run(config: PairsConfig) -> str:
    from rich.console import Console

    from actors.watchdog import Watchdog
    from cluster.placement import Placement
    from rayrlhf.checkpoint import StageWriter
    from rayrlhf.lineage import claim
    from rayrlhf.metrics import MetricsLog

    root, describe, made_from = config.run.stage(KIND), config.model_dump(mode="json"), parents(config)
    claim(root, config, made_from)
    writer, console = StageWriter(root, step=0), Console()
    placement = Placement.reserve(config.layout.only(ROLES), config.start_deadline_s, console.print, root)
    groups: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    log: MetricsLog | None = None
    watchdog = Watchdog(check_stall(config.recovery, config.call_deadline_s), groups, root, console.print)
    watchdog.start()
    try:
        groups |= _groups(config, placement)
        await asyncio.gather(*(group.start(config.start_deadline_s) for group in groups.values()))
        folder = os.path.join(writer.state_dir, "preference")
        rankings = [_Ranking(config, split, groups, os.path.join(folder, split)) for split in config.splits]
        for ranking in rankings:
            await asyncio.to_thread(ranking.read)
        total, done = sum(ranking.num_batches for ranking in rankings), 0
        log = MetricsLog(config.run.directory, KIND, total, trackers=config.run.trackers, config=describe)
        for ranking in rankings:
            metrics |= await ranking.run(log, console, done)
            done += ranking.num_batches
    finally:
        watchdog.stop()
        for group in groups.values():
            group.stop()
        placement.release()
        if log is not None:
            log.close()
    return writer.finish(KIND, describe, made_from, metrics)


def _groups(config: PairsConfig, placement: Any) -> dict[str, Any]:
    from actors.group import RewardGroup
    from actors.reward import RewardReplica
    from actors.rollout import RolloutGroup
    from rayrlhf.model_folder import model_folder
    from rayrlhf.restarts import Restarts

    restarts = Restarts(config.recovery)
    deadline, folder = config.call_deadline_s, model_folder(config.model)
    ranker = {
        "folder": model_folder(config.reward_model or config.model),  # a function decodes with the sampler's tokenizer
        "forward_tokens": config.forward_tokens,
        "threads": config.layout.roles["reward"].threads,
        "function": config.reward_function,
        "call_deadline_s": deadline,
    }
    count, sampler = placement.count, (config.rollout, config.sampling, placement)
    offload = config.layout.roles["rollout"].offload
    return {
        "reward": RewardGroup("reward", RewardReplica, ranker, placement, count("reward"), deadline, restarts),
        "rollout": RolloutGroup(folder, *sampler, count("rollout"), deadline, offload, restarts),
    }


class _Ranking:
    """The pairs of one split, batch by batch into one file."""

    def __init__(self, config: PairsConfig, split: str, groups: dict[str, Any], folder: str) -> None:
        from rayrlhf.data.prompt_stream import Originals
        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.causal_lm import load_tokenizer
        from rayrlhf.ranked_pairs import Totals
        from rayrlhf.reward_sources.columns import WithColumns, asked_columns
        from rayrlhf.reward_sources.retokenise import judge

        self.config, self.split, self.groups, self.folder = config, split, groups, folder
        self.path = getattr(config.prompts, split)
        self.tokenizer = load_tokenizer(model_folder(config.model))
        self.totals = Totals()
        self.counts: dict[str, float] = {}
        self.originals, self.reward = Originals(columns=asked_columns(config.reward_function)), groups["reward"]
        if self.originals.columns:
            self.reward = WithColumns(groups["reward"], self.originals)
        if config.reward_model:
            folders = model_folder(config.reward_model), model_folder(config.model)
            self.reward = judge(self.reward, *folders, self.originals, config.forward_tokens)

    def read(self) -> None:
        """Read and encode the prompts.  Raises DataError when none is short enough."""
        self.rows = self._prompts()
        self.num_prompts = self.rows.count()
        self.num_batches = -(-self.num_prompts // self.config.batch)
        if not self.num_prompts:
            most = self.config.prompts.max_tokens
            raise DataError(f"{self.path}: no prompt has at most prompts.max_tokens={most} tokens; raise it")

    async def run(self, log: MetricsLog, console: Console, done: int) -> dict[str, float]:
        """Write all pairs, the first batch as step `done` + 1; returns the split's metrics.  Raises DataError when
        there is none."""
        from pyarrow import parquet

        from rayrlhf.metrics import console_line

        os.makedirs(self.folder)
        out: parquet.ParquetWriter | None = None
        try:
            for step, batch in enumerate(self._batches(self.rows), start=1):
                table, metrics = await self._rank(batch)
                out = out or parquet.ParquetWriter(os.path.join(self.folder, "pairs.parquet"), table.schema)
                out.write_table(table)
                log.log(done + step, {f"{name}_{self.split}": value for name, value in metrics.items()})
                line = console_line(f"{KIND} {self.split}", step, self.num_batches, metrics, LABELS)
                console.print(line, highlight=False)
        finally:
            if out is not None:
                out.close()
        self._require_pairs()
        counts = {"prompts": self.totals.num_prompts, "pairs": self.totals.num_pairs}
        metrics = {f"{name}_{self.split}": value for name, value in self.totals.means().items()}
        return metrics | self.counts | {f"data/{self.split}_{name}": float(count) for name, count in counts.items()}

    def _prompts(self) -> Dataset:
        """Encoded prompts in the order of their hash."""
        from rayrlhf.data.formats import EXTRAS
        from rayrlhf.data.order import by_content
        from rayrlhf.data.tally import Tally, report
        from rayrlhf.data.token_rows import token_rows

        data, tally = self.config.prompts, Tally()
        source, with_extras = MixedSource(path=self.path), bool(self.originals.columns)
        rows = token_rows(source, "prompts", data, self.tokenizer, tally, with_extras)
        ordered = by_content(rows, ties=(EXTRAS,))
        chosen = (ordered if self.config.num_prompts is None else ordered.limit(self.config.num_prompts)).materialize()
        self.counts = report(self.path, tally, data.max_dropped_share, f"{self.split}_")
        return chosen

    def _batches(self, rows: Dataset) -> Iterator[pa.Table]:
        batches: Any = rows.iter_batches(batch_size=self.config.batch, batch_format="pyarrow")
        yield from batches

    async def _rank(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """The pairs of one batch of prompts, and their means."""
        import pyarrow as pa

        from rayrlhf.data.formats import EXTRAS
        from rayrlhf.data.prompt_stream import pad
        from rayrlhf.ranked_pairs import ranked_pairs

        config, prompts, given = self.config, batch.column("prompt").to_pylist(), batch.column("prompt_ids").to_pylist()
        self.originals.add(given, prompts, is_held_out=False)
        # each prompt stands `samples` times side by side, numbered, so that each has a sampling seed of its own
        ids = [prompt for prompt in given for _ in range(config.samples)]
        first = self.totals.num_prompts * config.samples
        if self.originals.columns:
            extras = [values for values in batch.column(EXTRAS).to_pylist() for _ in range(config.samples)]
            self.originals.add_columns(ids, extras, first, is_held_out=False)
        padded = pad(ids, first, self.tokenizer.pad_token_id)
        rollouts = await self.groups["rollout"].generate(padded, config.run.seed + SEED_OFFSET)
        scores = (await self.reward.scores(rollouts)).total
        found = ranked_pairs(prompts, rollouts, scores, self.tokenizer, config.samples, config.min_margin)
        text, number = pa.string(), pa.float32()
        fields = [("prompt", batch.schema.field("prompt").type), ("chosen", text), ("rejected", text)]
        schema = pa.schema([*fields, ("chosen_score", number), ("rejected_score", number)])
        table = pa.Table.from_pylist([vars(pair) for pair in found], schema=schema)
        return table, self.totals.add(found, scores, len(prompts))

    def _require_pairs(self) -> None:
        config = self.config
        if not self.totals.num_pairs:
            raise DataError(
                f"none of {self.num_prompts} prompts of {self.path} gave a pair: of a prompt's {config.samples} "
                f"samples fewer than two had ended, or they were alike, or within min_margin={config.min_margin} of "
                "each other. Raise samples or sampling.max_new_tokens, or lower min_margin"
            )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs import command

    return command.main(KIND, PairsConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
