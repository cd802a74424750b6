"""The one supervised loop: pretraining, SFT and the reward model, in the workers of Ray Train.

Every worker reads the same ordered stream of rows; of each minibatch it computes its own share
(`microbatches`).  So the minibatches, and the numbers, are the same with any number of workers.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rayrlhf.checkpoint import StageWriter
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.models import causal_lm
from rayrlhf.models.config import ModelConfig
from rayrlhf.run import RunConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EarlyStopping, TrainConfig
from rayrlhf.training.engine import Engine
from rayrlhf.training.losses import LOSSES, Row
from rayrlhf.training.microbatches import microbatches

LABELS = {
    "loss/train": "loss",
    "rewards/accuracies": "accuracy",
    "eval/loss": "eval loss",
    "eval/accuracy": "eval accuracy",
    "optim/lr": "lr",
    "optim/grad_norm": "norm",
    "perf/tokens_per_s": "tokens/s",
}


@dataclass(frozen=True)
class Stage:
    """What the workers need to know of a supervised stage; paths are absolute."""

    name: str
    kind: str  # of the rows: text, prompt_completion, preference
    run: RunConfig
    train: TrainConfig
    folder: str  # Hugging Face folder of the tokenizer, and of the weights unless `new`
    new: ModelConfig | None
    total_steps: int
    config: dict[str, Any]
    parents: dict[str, str]
    started: float  # when the stage was called, for its seconds
    is_terminal: bool  # a progress bar in place of lines


class Supervised:
    """One rank of the loop."""

    def __init__(self, stage: Stage) -> None:
        torch.set_num_threads(stage.train.threads_per_worker)
        distributed.seed_all(stage.run.seed)
        self.stage, self.train, self.loss = stage, stage.train, LOSSES[stage.kind]
        self.tokenizer = causal_lm.load_tokenizer(stage.folder)
        model = causal_lm.new_llama(stage.new, self.tokenizer) if stage.new else self.loss.load(stage.folder)
        self.engine = Engine(model, stage.train.engine, stage.total_steps)
        self.best = _Best(stage.train.early_stopping)
        self.writer: StageWriter | None = None  # of rank 0; unfinished until the stage ends
        self.kept: tuple[int, dict[str, float]] = (0, {})  # step and metrics of the weights in `writer`
        self.num_tokens = 0

    def fit(self, train: Iterable[list[Row]], validation: list[Row]) -> str:
        """Train over `train`'s minibatches; returns the finished stage directory ("" but on rank 0)."""
        report = _Report(self.stage) if self.engine.rank == 0 else None
        try:
            for step, rows, is_last in self._steps(train):
                started = time.time()
                metrics = self._step(rows)
                metrics["time/step_s"] = time.time() - started
                metrics["perf/tokens_per_s"] = sum(map(self.loss.tokens, rows)) / metrics["time/step_s"]
                every = self.train.validate_every
                if validation and (is_last or (every and step % every == 0)):
                    metrics |= self._validate(validation)
                    if self.best.offer(metrics):
                        self._keep(step, metrics)
                if report is not None:
                    report.step(step, metrics)
                if self.best.is_over:
                    break
            if not self.train.early_stopping:
                self._keep(step, metrics)
            return self._finish()
        except BaseException:
            self._discard()
            raise
        finally:
            if report is not None:
                report.close()

    def _steps(self, minibatches: Iterable[list[Row]]) -> Iterator[tuple[int, list[Row], bool]]:
        total = self.stage.total_steps
        for step, rows in zip(range(1, total + 1), minibatches, strict=False):
            yield step, rows, step == total

    def _step(self, rows: list[Row]) -> dict[str, float]:
        count = self._count(rows)

        def loss_fn(numbers: torch.LongTensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            mine = [rows[n] for n in numbers]
            shares = self.loss.shares(self.engine.module, mine, count, self.engine.device)
            return shares["loss"], shares

        metrics = self.engine.optimizer_step(self._shares_of(rows), loss_fn)
        metrics["loss/train"] = metrics.pop("loss")
        self.num_tokens += sum(map(self.loss.tokens, rows))
        metrics["data/tokens"] = float(self.num_tokens)
        return metrics

    def _validate(self, rows: list[Row]) -> dict[str, float]:
        count = self._count(rows)

        def shares(numbers: torch.LongTensor) -> dict[str, torch.Tensor]:
            return self.loss.shares(self.engine.module, [rows[n] for n in numbers], count, self.engine.device)

        return self.loss.eval_metrics(self.engine.evaluate(self._shares_of(rows), shares))

    def _shares_of(self, rows: list[Row]) -> list[torch.LongTensor]:
        lengths = [self.loss.padded_tokens(row) for row in rows]
        return microbatches(lengths, self.train.microbatch_tokens, self.engine.world_size, self.engine.rank)

    def _count(self, rows: list[Row]) -> int:
        count = self.loss.count(rows)
        if not count:
            raise DataError(
                f"none of {len(rows)} {self.stage.kind} rows has a token to learn from: their completions are empty"
            )
        return count

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        """Write weights and state into a stage directory that `_finish` makes whole; drop the one before."""
        self._discard()
        paths = ["", ""]
        if self.engine.rank == 0:
            self.writer = StageWriter(self.stage.run.stage(self.stage.name), step)
            paths = [self.writer.model_dir, self.writer.state_dir]
        dist.broadcast_object_list(paths)
        self.engine.save_model(paths[0], self.tokenizer)
        self.engine.save_state(os.path.join(paths[1], "engine"))
        self.kept = step, metrics

    def _discard(self) -> None:
        if self.writer is not None:
            shutil.rmtree(self.writer.path, ignore_errors=True)
            self.writer = None

    def _finish(self) -> str:
        writer, self.writer = self.writer, None
        if writer is None:
            return ""
        return writer.finish(
            self.stage.name,
            self.stage.config,
            self.stage.parents,
            self.kept[1],
            is_best=self.train.early_stopping is not None,
            keep=self.train.keep,
            seconds=time.time() - self.stage.started,
        )


class _Best:
    """The best validation so far, and when to stop waiting for a better one."""

    def __init__(self, config: EarlyStopping | None) -> None:
        self.config, self.value, self.num_worse = config, 0.0, -1

    def offer(self, metrics: dict[str, float]) -> bool:
        """Whether this validation is the best so far; False without early stopping."""
        if self.config is None:
            return False
        if self.config.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
            raise ConfigError(
                f"train.early_stopping.metric is {self.config.metric!r}, which no validation gives; there are {known}"
            )
        value = metrics[self.config.metric] * (1 if self.config.goal == "max" else -1)
        is_better = self.num_worse < 0 or value > self.value
        self.value, self.num_worse = (value, 0) if is_better else (self.value, self.num_worse + 1)
        return is_better

    @property
    def is_over(self) -> bool:
        return self.config is not None and self.num_worse >= self.config.patience


class _Report:
    """Metrics files, and a console line a step (on a terminal: a bar)."""

    def __init__(self, stage: Stage) -> None:
        self.name, self.total = stage.name, stage.total_steps
        self.log = MetricsLog(stage.run.directory, stage.name)
        self.bar: Any = None
        if stage.is_terminal:
            from ray.experimental import tqdm_ray  # draws on the driver's terminal

            self.bar = tqdm_ray.tqdm(desc=stage.name, total=stage.total_steps)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.log.log(step, metrics)
        line = console_line(self.name, step, self.total, metrics, LABELS)
        if self.bar is None:
            sys.stdout.write(line + "\n")  # Ray Train patches print, and would show each line twice
            sys.stdout.flush()
        else:
            self.bar.set_description(line)
            self.bar.update(1)

    def close(self) -> None:
        self.log.close()
        if self.bar is not None:
            self.bar.close()
