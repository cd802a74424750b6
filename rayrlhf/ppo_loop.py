"""The loop around PPO's step: evaluation on held-out prompts, checkpoints, metrics, resume, recovery.

step -> metrics, evaluation, checkpoint -> next step
  |- DivergenceError   back to the newest checkpoint, on with new prompts and lower learning rates
  '- StateLost         policy and critic in new processes as the newest checkpoint left them, and the steps since
                       again with the same prompts: the numbers are those of a run in which nothing failed
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import fsspec
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayrlhf import stopping
from rayrlhf.batches import Prompts
from rayrlhf.checkpoint import StageDir, StageWriter, find_stage, writing
from rayrlhf.coordinator import PPO, Roles
from rayrlhf.errors import CheckpointError, DivergenceError, HealthError, StateLost
from rayrlhf.evaluation.metrics import distinct_n, positive_share
from rayrlhf.health import Change, Health, State, rolled_back
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.ppo_config import LoopConfig
from rayrlhf.ppo_metrics import CONSOLE, logprob_gap, speeds
from rayrlhf.restarts import Restarts
from rayrlhf.rollout_texts import texts_of
from rayrlhf.sampling import Sampler
from rayrlhf.side_by_side import gather
from rayrlhf.timing import Stopwatch

T = TypeVar("T")
_PROGRESS = "loop.json"
_STATEFUL = "policy and critic"
Gold = Callable[[list[str], list[str]], list[float]]
# label of each evaluation metric on the console line
_EVALUATION = {
    "eval/score": "score",
    "eval/gold": "gold",
    "eval/kl": "kl",
    "eval/length": "length",
    "eval/distinct_2": "distinct-2",
}


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and what the policy made of it."""

    prompt: str
    response: str
    score: float
    gold: float | None


class Evaluator:
    """The policy on the same held-out prompts each time, one sample each, same seed.

    `gold` scores texts by something that training never sees; without it no `eval/gold` is logged.
    """

    def __init__(self, prompts: Prompts, tokenizer: Any, gold: Gold | None, seed: int) -> None:
        self.prompts, self.tokenizer, self.gold, self.seed = prompts, tokenizer, gold, seed

    async def __call__(self, roles: Roles, with_gap: bool = False) -> tuple[dict[str, float], list[Sample]]:
        """(metrics `eval/*`, one Sample a prompt).  `with_gap`: `sync/logprob_gap` too, of these responses."""
        rollouts = await roles.rollout.generate(self.prompts, self.seed)
        ref_logprobs, scores = await gather(roles.reference.logprobs(rollouts), roles.reward.scores(rollouts))
        mask = rollouts.response_mask
        kl = torch.where(mask, rollouts.sampled_logprobs - ref_logprobs, 0.0).sum(1)
        texts, responses = texts_of(rollouts, self.tokenizer)
        metrics = {
            "eval/score": float(scores.total.mean()),
            "eval/kl": float(kl.mean()),
            "eval/length": float(mask.sum(1).float().mean()),
            "eval/finished_share": float(rollouts.finished.float().mean()),
            "eval/distinct_2": distinct_n(responses, 2),
        }
        if with_gap:
            metrics |= logprob_gap(rollouts, await roles.policy.logprobs(rollouts), "sync/logprob_gap")
        gold: list[float] | list[None] = [None] * len(texts)
        if self.gold is not None:
            gold = self.gold(texts, responses)
            metrics |= {"eval/gold": sum(gold) / len(gold), "eval/gold_positive_share": positive_share(gold)}
        samples = [Sample(*s) for s in zip(texts, responses, scores.total.tolist(), gold, strict=True)]
        return metrics, samples


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    step: int = 0  # RL steps that are in the weights
    best: float = -math.inf  # evaluation so far
    batches: int = 0  # of prompts that steps were given: more than steps after a rollback
    num_rollbacks: int = 0
    is_fresh: bool = False  # since a rollback: what the checkpoint holds for steps to come is not used
    lr_scale: float = 1.0  # what the rollbacks left of the learning rates
    health: State = field(default_factory=dict)  # what the watches have seen
    seconds: float = 0.0  # spent up to the checkpoint

    @classmethod
    def of(cls, stage: StageDir) -> Progress:
        """That of a checkpoint."""
        with open(os.path.join(stage.state_dir, _PROGRESS), encoding="utf-8") as file:
            return cls(**json.load(file)["progress"])


@dataclass
class PPOLoop:
    """Runs `config.steps` steps from wherever the newest checkpoint left off.

    `stage_root` is `runs/NAME/ppo`; `describe` and `parents` go into each `stage.json`; `restarts` says how often
    policy and critic are begun anew.  `sampler` is closed at the end.
    """

    ppo: PPO
    config: LoopConfig
    sampler: Sampler
    evaluator: Evaluator
    log: MetricsLog
    stopwatch: Stopwatch
    stage_root: str
    describe: dict[str, Any]
    parents: dict[str, str]
    console: Console
    restarts: Restarts
    data_counts: dict[str, float] = field(default_factory=dict)  # filled as prompts are read with metrics of their rows
    memory: Callable[[], Awaitable[dict[str, float]]] | None = None  # metrics of what the roles held at most so far
    # around the roles' work in each step
    profiled: Callable[[int], AbstractAsyncContextManager[None]] = field(default=lambda step: nullcontext())

    async def run(self, resume: Progress | None = None) -> str:
        """All remaining steps; returns the last step's stage directory.  `resume`: the newest checkpoint's progress.

        Raises DivergenceError when rolling back did not help, HealthError when a watch stops it, GaveUp when
        beginning anew did not help, Interrupted when the run was asked to end.
        """
        self.progress = resume or Progress()
        self._kept = deepcopy(self.progress)  # to begin anew from: the newest checkpoint's, or the run's beginning
        self._untrained = self.ppo.state_dict()
        self._farthest = self.progress.step
        self.health = Health(self.config.health)
        self._began = time.time() - self.progress.seconds
        try:
            await self._surely(self._first if resume is None else self._resume)
            with stopping.after_step("ppo"):
                while self.progress.step < self.config.steps:
                    if await self._surely(self._step_or_roll_back):
                        break
            return f"{self.stage_root}/step_{self.progress.step:06d}"
        finally:
            await self.sampler.close()

    async def _first(self) -> None:
        await self.sampler.begin(0, self.progress.batches)
        self.log.log(0, await self._evaluate(0))

    async def _resume(self) -> None:
        self._print(f"resumed after step {self.progress.step} from {await self._load()}")

    async def _step_or_roll_back(self) -> bool:
        try:
            return await self._step(self.progress.step + 1)
        except DivergenceError as error:
            await self._roll_back(error)
            return False

    async def _step(self, step: int) -> bool:
        """One RL step with what belongs to it: metrics, evaluation, checkpoint.  Whether the run is to end here, as it
        was asked to and has saved the step."""
        config, progress, began = self.config, self.progress, time.perf_counter()
        self.stopwatch.take()
        try:
            async with self.profiled(step):
                result = await self.ppo.step(self.sampler, step)
                step_s = time.perf_counter() - began
        finally:
            progress.batches = self.sampler.used  # where it diverged too: a rollback goes on after it
        metrics = result.metrics | self.stopwatch.take() | {"time/step_s": step_s}
        metrics |= speeds(metrics)
        metrics["optim/rollbacks"] = float(progress.num_rollbacks)
        metrics["perf/role_restarts"] = float(self.restarts.count)
        progress.step = step
        if step > self._farthest:
            self._farthest = step
            self.restarts.succeeded(_STATEFUL)
        self._print(console_line("ppo", step, config.steps, metrics, CONSOLE))
        is_evaluated = step % config.evaluate_every == 0 or step == config.steps
        if is_evaluated:
            metrics |= await self._evaluate(step)
            metrics |= await self.memory() if self.memory else {}
        flags, changes = self.health.see(metrics, progress.health)
        metrics |= flags
        self.log.log(step, metrics | (self.data_counts if step == 1 else {}))
        self._heed(changes)
        is_good = not self.health.is_suspicious(progress.health)
        is_best = is_evaluated and is_good and self._beats(metrics, progress.best)
        progress.best = metrics[config.best] if is_best else progress.best
        is_due = is_best or (step % config.save_every == 0 and is_good) or step == config.steps or stopping.asked()
        if is_due:
            await self._save(step, metrics, is_best)
        return is_due and stopping.asked()  # it may have been asked while it saved

    def _beats(self, metrics: dict[str, float], best: float) -> bool:
        bound = self.config.max_kl
        return metrics[self.config.best] > best and (bound is None or metrics["eval/kl"] <= bound)

    def _heed(self, changes: list[Change]) -> None:
        """Say what the watches have found, and do what they are for.  Raises DivergenceError to roll back, HealthError
        to stop."""
        for change in changes:
            if not change.is_fired or change.action == "warn":
                self._print(f"warning: {change.text}" if change.is_fired else change.text, style="yellow")
        found = {change.action: change.text for change in reversed(changes) if change.is_fired}
        if "stop" in found:
            raise HealthError(f"{found['stop']}\n{self._goes_on()}")
        if "roll_back" in found:
            raise DivergenceError(found["roll_back"])

    def _goes_on(self) -> str:
        if not self._kept.step:
            return "There is no checkpoint from before it began: the same command starts anew"
        path = f"{self.stage_root}/step_{self._kept.step:06d}"
        if self.health.is_suspicious(self._kept.health):
            return f"{path}, saved on request, is from when it was counting: the same command goes on from there"
        return f"{path} is from before it began: the same command goes on from there"

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style), soft_wrap=True)  # one line, however narrow the console

    async def _evaluate(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        await self.sampler.settle()
        metrics, samples = await self.evaluator(self.ppo.roles, with_gap=self.sampler.max_staleness > 0)
        metrics["time/evaluate_s"] = time.perf_counter() - began
        self._print(console_line("eval", step, self.config.steps, metrics, _EVALUATION), style="bold")
        table = Table("prompt", "response", "score", "gold", show_lines=False)
        for sample in samples[:2]:
            gold = "" if sample.gold is None else f"{sample.gold:.2f}"
            table.add_row(Text(sample.prompt), Text(sample.response), f"{sample.score:.2f}", gold)
        self.console.print(table)
        filesystem, directory = fsspec.core.url_to_fs(f"{self.stage_root}/samples")
        filesystem.makedirs(directory, exist_ok=True)
        rows = "".join(json.dumps(sample.__dict__) + "\n" for sample in samples[:50])
        filesystem.pipe_file(f"{directory}/step_{step:06d}.jsonl", rows.encode())
        return metrics

    async def _save(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        self.progress.seconds, self.progress.is_fresh = time.time() - self._began, False
        writer = StageWriter(self.stage_root, step)
        try:
            await self._write(writer, step, metrics, is_best)
        except BaseException:
            writer.discard()
            raise
        self._kept = deepcopy(self.progress)

    async def _write(self, writer: StageWriter, step: int, metrics: dict[str, float], is_best: bool) -> None:
        roles = self.ppo.roles
        await gather(
            roles.policy.save(writer.path), roles.critic.save(writer.path), self.sampler.save(writer.state_dir)
        )
        path = os.path.join(writer.state_dir, _PROGRESS)
        with writing(path), open(path, "w", encoding="utf-8") as file:
            json.dump({"progress": asdict(self.progress), "algorithm": self.ppo.state_dict()}, file)
        writer.finish(
            "ppo",
            self.describe,
            self.parents,
            metrics | self.data_counts,
            is_best=is_best,
            is_final=step == self.config.steps,
            keep=self.config.keep,
            seconds=self.progress.seconds,
        )

    async def _load(self) -> str:
        """Put every role where the newest checkpoint left it; returns its directory."""
        await self.sampler.stop()
        roles, stage = self.ppo.roles, find_stage(self.stage_root, kind="ppo")
        with open(os.path.join(stage.state_dir, _PROGRESS), encoding="utf-8") as file:
            self.ppo.load_state_dict(json.load(file)["algorithm"])
        scale = self.progress.lr_scale
        await gather(roles.policy.load(stage.path, scale), roles.critic.load(stage.path, scale))
        sampled = None if self.progress.is_fresh else stage.state_dir
        await self.sampler.begin(self.progress.step, self.progress.batches, sampled)
        return stage.path

    async def _surely(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` returns; done again where policy or critic were lost in it."""
        while True:
            try:
                return await work()
            except StateLost as error:
                await self._begin_anew(error)

    async def _begin_anew(self, error: StateLost) -> None:
        """Policy and critic in new processes, and everything as the newest checkpoint left it, prompts too; where there
        is none yet, as the run began.  Raises GaveUp."""
        roles, place = self.ppo.roles, "the beginning"
        await self.sampler.stop()
        while True:
            await self.restarts.after(_STATEFUL, error)
            self.progress = deepcopy(self._kept)
            try:
                await gather(roles.policy.restart(), roles.critic.restart())
                if self.progress.step:
                    place = await self._load()
                else:
                    self.ppo.load_state_dict(self._untrained)
                    await self.sampler.begin(0, self.progress.batches)
                break
            except StateLost as again:
                error = again
        self.log.rewind(self.progress.step)
        self._print(f"policy and critic go on from {place}, after step {self.progress.step}", style="yellow")

    async def _roll_back(self, error: DivergenceError) -> None:
        """Every role as in the newest checkpoint, with lower learning rates, and on with the prompts after the step
        that diverged; what was sampled ahead is dropped.

        Raises `error` where there is no rollback left, or no checkpoint.
        """
        settings, now = self.config.rollback, self.progress
        if now.num_rollbacks >= settings.max_rollbacks:
            raise DivergenceError(
                f"{error}\nloop.rollback.max_rollbacks={settings.max_rollbacks} rollbacks are used up; more of them "
                "let this run go on from its newest checkpoint"
            ) from error
        try:
            then = Progress.of(find_stage(self.stage_root, kind="ppo"))
        except CheckpointError as problem:
            none = f"There is no checkpoint yet to go back to: loop.save_every is {self.config.save_every}"
            raise DivergenceError(f"{error}\n{problem if self._kept.step else none}") from error
        self._print(f"warning: {error}", style="yellow")
        now.step, now.best, now.num_rollbacks = then.step, then.best, now.num_rollbacks + 1
        now.health, now.is_fresh = rolled_back(then.health), True
        now.lr_scale *= settings.lr_factor
        self._kept = deepcopy(now)
        path = await self._load()
        self.log.rewind(now.step)
        self._print(
            f"rolled back to {path} ({now.num_rollbacks} of {settings.max_rollbacks}), on with new prompts and "
            f"{now.lr_scale:g} of the learning rates",
            style="yellow",
        )
