"""The loop around PPO's step: evaluation on held-out prompts, checkpoints, metrics, resume."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import fsspec
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayrlhf.batches import Prompts
from rayrlhf.checkpoint import StageWriter, find_stage
from rayrlhf.coordinator import PPO, Roles
from rayrlhf.evaluation.metrics import distinct_n, positive_share
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.ppo_config import LoopConfig
from rayrlhf.ppo_metrics import CONSOLE, step_metrics
from rayrlhf.rollout_texts import texts_of
from rayrlhf.timing import Stopwatch

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

    async def __call__(self, roles: Roles) -> tuple[dict[str, float], list[Sample]]:
        """(metrics `eval/*`, one Sample a prompt)."""
        rollouts = await roles.rollout.generate(self.prompts, self.seed)
        ref_logprobs, scores = await asyncio.gather(roles.reference.logprobs(rollouts), roles.reward.scores(rollouts))
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
        gold: list[float] | list[None] = [None] * len(texts)
        if self.gold is not None:
            gold = self.gold(texts, responses)
            metrics |= {"eval/gold": sum(gold) / len(gold), "eval/gold_positive_share": positive_share(gold)}
        samples = [Sample(*s) for s in zip(texts, responses, scores.total.tolist(), gold, strict=True)]
        return metrics, samples


@dataclass
class PPOLoop:
    """Runs `config.steps` steps from wherever the newest checkpoint left off.

    `prompts(start)` gives the prompt batches from step `start + 1` on; `stage_root` is
    `runs/NAME/ppo`; `describe` and `parents` go into each `stage.json`.
    """

    ppo: PPO
    config: LoopConfig
    prompts: Callable[[int], Generator[Prompts]]
    evaluator: Evaluator
    log: MetricsLog
    stopwatch: Stopwatch
    stage_root: str
    describe: dict[str, Any]
    parents: dict[str, str]
    console: Console
    data_counts: dict[str, float] = field(default_factory=dict)  # filled by `prompts` with metrics of its rows

    async def run(self, resume: bool) -> str:
        """All remaining steps; returns the last step's stage directory."""
        started = time.time()
        done, best, before = await self._load() if resume else (0, float("-inf"), 0.0)
        path = f"{self.stage_root}/step_{done:06d}"
        if not done:
            await self.ppo.roles.publisher.publish(0)
            self.log.log(0, await self._evaluate(0))
        batches = self.prompts(done)
        try:
            return await self._steps(batches, done, best, started - before, path)
        finally:
            with suppress(ValueError):  # where a thread is reading from it still, it ends with the process
                batches.close()

    async def _steps(self, batches: Generator[Prompts], done: int, best: float, began_s: float, path: str) -> str:
        """The steps after `done`; `began_s` is when the run began, earlier attempts counted."""
        config = self.config
        for step in range(done + 1, config.steps + 1):
            began = time.perf_counter()
            self.stopwatch.take()
            prompts = await asyncio.to_thread(next, batches)
            metrics = step_metrics(await self.ppo.step(prompts, step))
            metrics |= self.stopwatch.take() | {"time/step_s": time.perf_counter() - began}
            metrics["perf/rollout_tokens_per_s"] = metrics["rollout/tokens"] / metrics["time/step_s"]
            self._say(step, metrics)
            is_evaluated = step % config.evaluate_every == 0 or step == config.steps
            if is_evaluated:
                metrics |= await self._evaluate(step)
            self.log.log(step, metrics | (self.data_counts if step == 1 else {}))
            is_best = is_evaluated and self._beats(metrics, best)
            best = metrics[config.best] if is_best else best
            if is_best or step % config.save_every == 0 or step == config.steps:
                path = await self._save(step, metrics, best, is_best, time.time() - began_s)
        return path

    def _beats(self, metrics: dict[str, float], best: float) -> bool:
        bound = self.config.max_kl
        return metrics[self.config.best] > best and (bound is None or metrics["eval/kl"] <= bound)

    def _say(self, step: int, metrics: dict[str, float]) -> None:
        self._print(console_line("ppo", step, self.config.steps, metrics, CONSOLE))
        gap = metrics["sync/logprob_gap"]
        if gap > 0.01:
            self._print(
                f"warning: sync/logprob_gap is {gap:.3g}, above 0.01: the rollout engine's log-probs are not the "
                "policy's; a publish was missed, or the two compute in different precision",
                style="yellow",
            )

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style), soft_wrap=True)  # one line, however narrow the console

    async def _evaluate(self, step: int) -> dict[str, float]:
        metrics, samples = await self.evaluator(self.ppo.roles)
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

    async def _save(self, step: int, metrics: dict[str, float], best: float, is_best: bool, seconds: float) -> str:
        writer = StageWriter(self.stage_root, step)
        await asyncio.gather(self.ppo.roles.policy.save(writer.path), self.ppo.roles.critic.save(writer.path))
        with open(os.path.join(writer.state_dir, "loop.json"), "w", encoding="utf-8") as file:
            json.dump({"step": step, "best": best, "algorithm": self.ppo.state_dict()}, file)
        return writer.finish(
            "ppo",
            self.describe,
            self.parents,
            metrics | self.data_counts,
            is_best=is_best,
            is_final=step == self.config.steps,
            keep=self.config.keep,
            seconds=seconds,
        )

    async def _load(self) -> tuple[int, float, float]:
        """Put every role where the newest checkpoint left it; (steps done, best evaluation so far, seconds spent)."""
        stage = find_stage(self.stage_root, kind="ppo")
        with open(os.path.join(stage.state_dir, "loop.json"), encoding="utf-8") as file:
            state = json.load(file)
        await asyncio.gather(self.ppo.roles.policy.load(stage.path), self.ppo.roles.critic.load(stage.path))
        self.ppo.load_state_dict(state["algorithm"])
        await self.ppo.roles.publisher.publish(state["step"])
        self._print(f"resumed after step {state['step']} from {stage.path}")
        return state["step"], state["best"], stage.manifest["seconds"]
