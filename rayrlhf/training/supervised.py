"""The one supervised loop: pretraining, SFT and the reward model, in the workers of Ray Train.

Every worker reads the same ordered stream of rows; of each minibatch it computes its own share
(`microbatches`).  So the minibatches, and the numbers, are the same with any number of workers, and a
run that was cut off goes on from its newest checkpoint by skipping the minibatches it has used.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from rayrlhf.checkpoint import StageWriter, find_stage, make_final
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.models import causal_lm
from rayrlhf.models.config import ModelConfig
from rayrlhf.run import RunConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EarlyStopping, TrainConfig
from rayrlhf.training.demonstrations import HeadShift, head_shift
from rayrlhf.training.engine import Engine
from rayrlhf.training.losses import Loss, Row, Shares
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
    loss: Loss
    run: RunConfig
    train: TrainConfig
    folder: str  # Hugging Face folder of the tokenizer, and of the weights unless `new`
    new: ModelConfig | None
    total_steps: int
    config: dict[str, Any]
    parents: dict[str, str]
    resume_from: str | None  # step directory of the newest checkpoint
    started: float  # when the stage was called, for its seconds
    is_terminal: bool  # a progress bar in place of lines


class Supervised:
    """One rank of the loop."""

    def __init__(self, stage: Stage) -> None:
        torch.set_num_threads(stage.train.threads_per_worker)
        distributed.seed_all(stage.run.seed)
        self.stage, self.train, self.loss = stage, stage.train, stage.loss
        self.tokenizer = causal_lm.load_tokenizer(stage.folder)
        model = causal_lm.new_llama(stage.new, self.tokenizer) if stage.new else self.loss.load(stage.folder)
        self.engine = Engine(model, stage.train.engine, stage.total_steps)
        self.progress = _Progress()
        self.demonstrations: Sequence[Row] = ()
        self.seconds_before = 0.0
        if stage.resume_from:
            self._load(stage.resume_from)

    def fit(self, train: Iterable[list[Row]], validation: list[Row], demonstrations: Sequence[Row] = ()) -> str:
        """Train over `train`'s minibatches from the first one on; returns the finished stage directory
        ("" but on rank 0).  With `demonstrations` a model is validated and saved with its scores shifted."""
        self.demonstrations = demonstrations
        stopping, progress, total = self.train.early_stopping, self.progress, self.stage.total_steps
        report = _Report(self.stage, progress.step) if self.engine.rank == 0 else None
        path, metrics = "", dict[str, float]()
        try:
            for rows in islice(train, progress.step, total):
                if stopping and progress.num_worse >= stopping.patience:
                    break
                progress.step += 1
                metrics, is_last, is_best = self._step(rows), progress.step == total, False
                if validation and (is_last or _is_due(progress.step, self.train.validate_every)):
                    metrics |= self._validate(validation)
                    is_best = stopping is not None and progress.is_best(metrics, stopping)
                if report is not None:
                    report.step(progress.step, metrics)
                is_final = is_last and not stopping
                if is_best or is_final or _is_due(progress.step, self.train.save_every):
                    path = self._save(metrics, is_best, is_final)
        finally:
            if report is not None:
                report.close()
        if stopping and self.engine.rank == 0:
            path = make_final(self.stage.run.stage(self.stage.name), progress.best_step, self._seconds())
        return path

    def _step(self, rows: list[Row]) -> dict[str, float]:
        started, count = time.time(), self._count(rows)
        loss = self.loss.prepared(rows, partial(self._evaluate, rows))

        def loss_fn(numbers: torch.LongTensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            mine = [rows[n] for n in numbers]
            shares = loss.shares(self.engine.module, mine, count, self.engine.device)
            return shares["loss"], shares

        metrics = self.engine.optimizer_step(self._shares_of(rows), loss_fn)
        metrics["loss/train"] = metrics.pop("loss")
        num_tokens = sum(map(self.loss.tokens, rows))
        self.progress.num_tokens += num_tokens
        metrics["data/tokens"] = float(self.progress.num_tokens)
        metrics["time/step_s"] = time.time() - started
        metrics["perf/tokens_per_s"] = num_tokens / metrics["time/step_s"]
        return metrics

    def _validate(self, rows: list[Row]) -> dict[str, float]:
        count, evaluate = self._count(rows), partial(self._evaluate, rows)
        loss, shift = self.loss.prepared(rows, evaluate), self._head_shift()
        if shift is None:
            shares = evaluate(lambda model, some, device: loss.shares(model, some, count, device))
            return loss.eval_metrics(shares)
        shares = evaluate(lambda model, some, device: loss.shares(shift.view(model), some, count, device))
        return loss.eval_metrics(shares) | shift.metrics

    def _head_shift(self) -> HeadShift | None:
        if not self.demonstrations:
            return None
        return head_shift(self.engine, self.demonstrations, self.train.microbatch_tokens)

    def _evaluate(self, rows: list[Row], shares: Shares) -> dict[str, float]:
        """The shares of `rows`, summed over microbatches and ranks, without gradients."""
        module, device = self.engine.module, self.engine.device
        return self.engine.evaluate(
            self._shares_of(rows), lambda numbers: shares(module, [rows[n] for n in numbers], device)
        )

    def _shares_of(self, rows: list[Row]) -> list[torch.LongTensor]:
        lengths = [self.loss.padded_tokens(row) for row in rows]
        return microbatches(lengths, self.train.microbatch_tokens, self.engine.world_size, self.engine.rank)

    def _count(self, rows: list[Row]) -> int:
        count = self.loss.count(rows)
        if not count:
            raise DataError(f"none of {len(rows)} rows has a token to learn from: their completions are empty")
        return count

    def _save(self, metrics: dict[str, float], is_best: bool, is_final: bool) -> str:
        """Write a checkpoint; returns its directory ("" but on rank 0)."""
        writer, paths = None, ["", ""]
        if self.engine.rank == 0:
            writer = StageWriter(self.stage.run.stage(self.stage.name), self.progress.step)
            paths = [writer.model_dir, writer.state_dir]
        dist.broadcast_object_list(paths)
        weights, shift = None, self._head_shift()
        if shift is not None:
            weights, metrics = shift.applied(self.engine.whole_weights()), metrics | shift.metrics
        self.engine.save_model(paths[0], self.tokenizer, weights)
        self.engine.save_state(os.path.join(paths[1], "engine"))
        if writer is None:
            return ""
        with open(os.path.join(writer.state_dir, "progress.json"), "w", encoding="utf-8") as file:
            json.dump(asdict(self.progress), file)
        return writer.finish(
            self.stage.name,
            self.stage.config,
            self.stage.parents,
            metrics,
            is_best=is_best,
            is_final=is_final,
            keep=self.train.keep,
            seconds=self._seconds(),
        )

    def _load(self, path: str) -> None:
        checkpoint = find_stage(path)
        self.engine.load_state(os.path.join(checkpoint.state_dir, "engine"))
        with open(os.path.join(checkpoint.state_dir, "progress.json"), encoding="utf-8") as file:
            self.progress = _Progress(**json.load(file))
        self.seconds_before = checkpoint.manifest["seconds"]

    def _seconds(self) -> float:
        return self.seconds_before + time.time() - self.stage.started


@dataclass
class _Progress:
    """Where the run is; saved with every checkpoint."""

    step: int = 0
    num_tokens: int = 0
    best: float | None = None  # of the validation that early stopping looks at
    best_step: int = 0
    num_worse: int = 0  # validations since the best one

    def is_best(self, metrics: dict[str, float], stopping: EarlyStopping) -> bool:
        """Whether this validation is the best so far, which is then remembered."""
        if stopping.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
            raise ConfigError(
                f"train.early_stopping.metric is {stopping.metric!r}, which no validation gives; there are {known}"
            )
        value = metrics[stopping.metric]
        if self.best is None or (value > self.best if stopping.goal == "max" else value < self.best):
            self.best, self.best_step, self.num_worse = value, self.step, 0
            return True
        self.num_worse += 1
        return False


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


class _Report:
    """Metrics files, and a console line a step (on a terminal: a bar)."""

    def __init__(self, stage: Stage, done: int) -> None:
        self.name, self.total = stage.name, stage.total_steps
        self.log = MetricsLog(stage.run.directory, stage.name, done or -1)
        self.bar: Any = None
        if stage.is_terminal:
            from ray.experimental import tqdm_ray  # draws on the driver's terminal

            self.bar = tqdm_ray.tqdm(desc=stage.name, total=stage.total_steps)
            self.bar.update(done)

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
