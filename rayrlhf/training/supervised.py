"""The one supervised loop: pretraining, SFT and the reward model, in the workers of Ray Train.

Every worker reads the same ordered stream of rows; of each minibatch it computes its own share
(`microbatches`).  So the minibatches, and the numbers, are the same with any number of workers, and a
run that was cut off goes on from its newest checkpoint by skipping the minibatches it has used.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import fsspec
import torch
import torch.distributed as dist

from rayrlhf import environment, profiling
from rayrlhf.checkpoint import StageWriter, find_stage, make_final, writing
from rayrlhf.data.chat_templates import with_template
from rayrlhf.errors import ConfigError, DataError, DivergenceError
from rayrlhf.metrics import MetricsLog, console_line
from rayrlhf.models import causal_lm
from rayrlhf.models.adapters import with_adapter
from rayrlhf.models.config import ModelConfig
from rayrlhf.models.forward import leaves_padding_out
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.models.precision import warn_if_slow
from rayrlhf.profile_steps import Steps
from rayrlhf.run import RunConfig
from rayrlhf.training import distributed, rollback
from rayrlhf.training.config import EarlyStopping, TrainConfig
from rayrlhf.training.demonstrations import HeadShift, head_shift
from rayrlhf.training.engine import Engine
from rayrlhf.training.losses import Loss, Row, Shares, num_tokens
from rayrlhf.training.matrix_rate import MatrixShare
from rayrlhf.training.microbatches import microbatches
from rayrlhf.training.step_recorder import StepRecorder
from rayrlhf.training.step_watch import StepWatch

LABELS = {
    "loss/train": "loss",
    "rewards/accuracies": "accuracy",
    "eval/loss": "eval loss",
    "eval/accuracy": "eval accuracy",
    "optim/lr": "lr",
    "optim/grad_norm": "norm",
    "perf/tokens_per_s": "tokens/s",
}


_LOOK_EVERY_S = 1.0  # for a request to stop: an object store's answer may take a tenth of it


def request_path(run: RunConfig, name: str) -> str:
    """The file by which the driver asks the workers of the stage to stop after their step."""
    return f"{run.directory}/.stop-{name}"


def has_request(run: RunConfig, name: str) -> bool:
    """Whether it is there."""
    filesystem, path = fsspec.core.url_to_fs(request_path(run, name))
    return bool(filesystem.exists(path))


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
    peft: PeftConfig | None = None  # an adapter in place of all weights
    chat_template: str | None = None  # its Jinja text, in place of the folder's own
    stop_strings: tuple[str, ...] = ()  # texts that end an answer, for its generation_config.json
    data_counts: dict[str, float] = field(default_factory=dict)  # metrics of the rows: what was dropped, how full
    sources: tuple[str, ...] = ()  # names by the number in a row's column `source`, where rows are mixed
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # of the driver's process, for the trackers
    packed: bool = False  # rows are several texts, none of which sees another
    profile: Steps | None = None  # the steps in which workers record


class Supervised:
    """One rank of the loop."""

    def __init__(self, stage: Stage) -> None:
        torch.set_num_threads(stage.train.threads_per_worker)
        os.environ.update(stage.environment)
        self.stage, self.train, self.loss = stage, stage.train, stage.loss
        self.tokenizer = causal_lm.load_tokenizer(stage.folder)
        if stage.chat_template is not None:
            self.tokenizer = with_template(self.tokenizer, stage.chat_template)
        self.newest = stage.resume_from  # step directory of the newest checkpoint
        self.demonstrations: Sequence[Row] = ()
        self.looked = time.monotonic()  # for a request to stop
        self.seconds_before = self._start()

    def _start(self) -> float:
        """The engine and the progress of the newest checkpoint, or of the beginning; returns its seconds."""
        stage = self.stage
        distributed.seed_all(stage.run.seed)
        model = causal_lm.new_llama(stage.new, self.tokenizer) if stage.new else self.loss.load(stage.folder)
        causal_lm.set_end(model, self.tokenizer, stage.stop_strings)
        model = with_adapter(model, stage.peft)
        self.engine = Engine(model, self.train.engine, stage.total_steps)
        warn_if_slow(stage.name, "train.engine", self.train.engine.precision, self.engine.device, self.engine.rank)
        self.matrix_share = MatrixShare(self.engine)
        self.progress = _Progress()
        return self._load(self.newest) if self.newest else 0.0

    def fit(self, train: Iterable[list[Row]], validation: list[Row], demonstrations: Sequence[Row] = ()) -> str:
        """Train over `train`'s minibatches from the first one on; returns the finished stage directory, or when the
        driver asked to stop the newest ("" but on rank 0).  With `demonstrations` a model is validated and saved
        with its scores shifted.  Raises DivergenceError when rolling back did not help."""
        self.demonstrations = demonstrations
        stopping, total = self.train.early_stopping, self.stage.total_steps
        report = _Report(self.stage, self.progress.step) if self.engine.rank == 0 else None
        path, metrics = "", dict[str, float]()
        rank, say = self.engine.rank, lambda line: sys.stdout.write(line + "\n") and sys.stdout.flush()
        watch = StepWatch(f"{self.stage.name}, worker {rank}", self.train.stall_s, say)
        watch.begin(self.progress.step + 1)
        recorder = self._recorder()
        try:
            for rows, waited_s in recorder.waited(islice(train, self.progress.step, total), self.progress.step):
                if stopping and self.progress.num_worse >= stopping.patience:
                    break
                with profiling.span("step"):
                    metrics, note, stop = self._guarded_step(rows)
                step, metrics["time/data_s"] = self.progress.step, waited_s
                recorder.end(step)
                is_last, is_best = step == total, False
                if not stop and validation and (is_last or _is_due(step, self.train.validate_every)):
                    began = time.time()
                    metrics |= self._validate(validation) | self._peak_memory()
                    metrics["time/evaluate_s"] = time.time() - began
                    is_best = stopping is not None and self.progress.is_best(metrics, stopping)
                if report is not None:
                    report.step(step, metrics | (self.stage.data_counts if step == 1 else {}), note)
                if stop:
                    raise DivergenceError(stop)
                is_final = is_last and not stopping
                # what a rollback goes back to must be from before the trouble
                is_due = _is_due(step, self.train.save_every) and not self.engine.problem
                is_asked = self._is_asked_to_stop() and not self.engine.problem and not is_last
                if is_best or is_final or is_due or is_asked:
                    path = self._save(metrics, is_best, is_final)
                if is_asked:
                    return path
                watch.begin(step + 1)
        finally:
            watch.stop()
            if report is not None:
                report.close()
        if self.progress.mixture and report is not None:
            sys.stdout.write(f"{self.stage.name}: trained on {_told(self.progress.mixture)}\n")
            sys.stdout.flush()
        if stopping and self.progress.best is None:
            raise DivergenceError(
                f"stage {self.stage.name}: no validation gave a finite {stopping.metric}, so no step is the best one. "
                f"Lower train.engine.lr (now {self.train.engine.lr:g}), or look at the validation rows"
            )
        if stopping and self.engine.rank == 0:
            path = make_final(self.stage.run.stage(self.stage.name), self.progress.best_step, self._seconds())
        return path

    def _recorder(self) -> StepRecorder:
        steps, run = self.stage.profile, self.stage.run
        folder = steps.folder(run.directory, self.stage.name) if steps is not None else ""
        return StepRecorder(steps, folder, self.engine.rank)

    def _is_asked_to_stop(self) -> bool:
        """Whether the driver has left its request; all ranks know the same."""
        flag = [0.0]
        if self.engine.rank == 0 and time.monotonic() - self.looked >= _LOOK_EVERY_S:
            self.looked = time.monotonic()
            flag = [float(has_request(self.stage.run, self.stage.name))]
        return bool(distributed.sum_over_ranks({"stop_max": flag[0]}, self.engine.device)["stop_max"])

    def _guarded_step(self, rows: list[Row]) -> tuple[dict[str, float], str, str]:
        """The next minibatch, and what came of it: (metrics, a note for the console, why to stop)."""
        progress, metrics, note, stop = self.progress, dict[str, float](), "left out", ""
        progress.step += 1
        if progress.step > progress.leave_out_to:
            metrics = self._step(rows)
            note = f"optimizer step skipped: {self.engine.problem}" if self.engine.problem else ""
            if self.engine.is_stuck:
                settings, total, done = self.train.rollback, self.stage.total_steps, progress.num_rollbacks
                stop = rollback.why_not(done, progress.step, total, settings)
                if stop:
                    stop = rollback.report(self.stage.name, stop, self.engine, done, self.newest)
                else:
                    metrics["optim/rolled_back_to"] = float(self._roll_back())
                    note = f"{note}; {self.engine.recent[-1]}"
        metrics["optim/rollbacks"] = float(self.progress.num_rollbacks)
        return metrics | {"optim/skipped_steps": float(self.engine.guard.num_skipped)}, note, stop

    def _roll_back(self) -> int:
        """Weights, optimizer and bound of the newest checkpoint, or of the start, with a lower learning rate;
        the stream of minibatches goes on where it is.  Returns that checkpoint's step."""
        before, guard, recent = self.progress, self.engine.guard, self.engine.recent
        self.engine.close()
        del self.engine
        gc.collect()  # its tensors, before there are new ones
        self._start()
        progress, settings, to = self.progress, self.train.rollback, self.progress.step
        progress.step, progress.num_tokens, progress.mixture = before.step, before.num_tokens, before.mixture
        progress.num_rollbacks = before.num_rollbacks + 1
        progress.leave_out_to = before.step + settings.skip_minibatches
        self.engine.lr_scale = progress.lr_scale = before.lr_scale * settings.lr_factor
        self.engine.guard.num_skipped, self.engine.guard.num_in_row = guard.num_skipped, 0
        recent.append(
            f"rolled back to {self.newest or 'the start'} with {progress.lr_scale:g} of the learning rate, going on "
            f"after minibatch {progress.leave_out_to}"
        )
        self.engine.recent = recent
        return to

    def _step(self, rows: list[Row]) -> dict[str, float]:
        started, count = time.time(), self._count(rows)
        loss = self.loss.prepared(rows, partial(self._evaluate, rows))

        def loss_fn(numbers: torch.LongTensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            mine = [rows[n] for n in numbers]
            shares = loss.shares(self.engine.module, mine, count, self.engine.device)
            return shares["loss"], shares

        first = (self.progress.step - 1) * self.train.minibatch
        name = f"minibatch {self.progress.step} (rows {first} to {first + len(rows) - 1} of the stage's order)"
        metrics = self.engine.optimizer_step(self._shares_of(rows), loss_fn, name)
        metrics["loss/train"] = metrics.pop("loss")
        texts = [text for row in rows for text in self.loss.texts(row)]
        count = num_tokens(texts)
        self.progress.num_tokens += count
        metrics["data/tokens"] = float(self.progress.num_tokens)
        metrics |= self._mixed(rows)
        metrics["time/step_s"] = time.time() - started
        metrics["perf/tokens_per_s"] = count / metrics["time/step_s"]
        judged = [text for row in rows for text in self.loss.judged(row)]
        return metrics | self.matrix_share.metrics("perf/matrix", texts, metrics["time/step_s"], judged)

    def _mixed(self, rows: list[Row]) -> dict[str, float]:
        """What each source of a mixture has given so far, `rows` included."""
        if not self.stage.sources:
            return {}
        mixture = self.progress.mixture
        for row in rows:
            num_rows, tokens = mixture.get(name := self.stage.sources[row["source"]], (0, 0))
            mixture[name] = (num_rows + 1, tokens + num_tokens(self.loss.texts(row)))
        return mixture_metrics(mixture)

    def _peak_memory(self) -> dict[str, float]:
        """What the largest worker has held at most so far."""
        mine = {f"perf/worker_{name}_max": gib for name, gib in environment.peak_memory().items()}
        largest = distributed.sum_over_ranks(mine, self.engine.device)
        return {name.removesuffix("_max"): gib for name, gib in largest.items()}

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
        engine, is_packed = self.engine, leaves_padding_out(self.engine.module)
        costs = [self.loss.pass_tokens(row, is_packed) for row in rows]
        return microbatches(costs, self.train.microbatch_tokens, engine.world_size, engine.rank, is_packed)

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
        with writing(os.path.dirname(paths[0])):
            self.engine.save_model(paths[0], self.tokenizer, weights)
            self.engine.save_state(os.path.join(paths[1], "engine"))
        self.newest = f"{self.stage.run.stage(self.stage.name)}/step_{self.progress.step:06d}"
        if writer is None:
            return ""
        with open(os.path.join(writer.state_dir, "progress.json"), "w", encoding="utf-8") as file:
            json.dump(asdict(self.progress), file)
        return writer.finish(
            self.stage.name,
            self.stage.config,
            self.stage.parents,
            metrics | self.stage.data_counts,
            is_best=is_best,
            is_final=is_final,
            keep=self.train.keep,
            seconds=self._seconds(),
        )

    def _load(self, path: str) -> float:
        checkpoint = find_stage(path)
        self.engine.load_state(os.path.join(checkpoint.state_dir, "engine"))
        with open(os.path.join(checkpoint.state_dir, "progress.json"), encoding="utf-8") as file:
            self.progress = _Progress(**json.load(file))
        self.engine.lr_scale = self.progress.lr_scale
        return float(checkpoint.manifest["seconds"])

    def _seconds(self) -> float:
        return self.seconds_before + time.time() - self.stage.started


@dataclass
class _Progress:
    """Where the run is; saved with every checkpoint."""

    step: int = 0  # minibatches of the stream that are behind it, trained on or not
    num_tokens: int = 0
    best: float | None = None  # of the validation that early stopping looks at
    best_step: int = 0
    num_worse: int = 0  # validations since the best one
    num_rollbacks: int = 0
    lr_scale: float = 1.0  # what the rollbacks left of the learning rate
    leave_out_to: int = 0  # minibatches up to this one are not trained on
    mixture: dict[str, tuple[int, int]] = field(default_factory=dict)  # by source: rows and tokens trained on

    def is_best(self, metrics: dict[str, float], stopping: EarlyStopping) -> bool:
        """Whether this validation is the best so far, which is then remembered."""
        if stopping.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
            raise ConfigError(
                f"train.early_stopping.metric is {stopping.metric!r}, which no validation gives; there are {known}"
            )
        value = metrics[stopping.metric]
        is_number = math.isfinite(value)
        if is_number and (self.best is None or (value > self.best if stopping.goal == "max" else value < self.best)):
            self.best, self.best_step, self.num_worse = value, self.step, 0
            return True
        self.num_worse += 1
        return False


def mixture_metrics(mixture: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Rows, tokens and their shares by source."""
    all_rows, all_tokens = (sum(given[n] for given in mixture.values()) for n in (0, 1))
    metrics = {}
    for name, (num_rows, count) in sorted(mixture.items()):
        metrics[f"data/mixture_rows_{name}"] = float(num_rows)
        metrics[f"data/mixture_tokens_{name}"] = float(count)
        metrics[f"data/mixture_row_share_{name}"] = num_rows / all_rows
        metrics[f"data/mixture_token_share_{name}"] = count / all_tokens
    return metrics


def _told(mixture: dict[str, tuple[int, int]]) -> str:
    shares = mixture_metrics(mixture)
    return "; ".join(
        f"{name} {rows:,} rows ({shares[f'data/mixture_row_share_{name}']:.1%}), {tokens:,} tokens "
        f"({shares[f'data/mixture_token_share_{name}']:.1%})"
        for name, (rows, tokens) in sorted(mixture.items())
    )


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


class _Report:
    """Metrics files, and a console line a step (on a terminal: a bar)."""

    def __init__(self, stage: Stage, done: int) -> None:
        self.name, self.total = stage.name, stage.total_steps
        self.log = MetricsLog(
            stage.run.directory, stage.name, stage.total_steps, done or -1, stage.run.trackers, stage.config
        )
        self.bar: Any = None
        if stage.is_terminal:
            from ray.experimental import tqdm_ray  # draws on the driver's terminal

            self.bar = tqdm_ray.tqdm(desc=stage.name, total=stage.total_steps)
            self.bar.update(done)

    def step(self, step: int, metrics: dict[str, float], note: str) -> None:
        self.log.log(step, metrics)
        line = console_line(self.name, step, self.total, metrics, LABELS)
        if self.bar is None:
            lines = f"{line}\n{self.name}: {note}\n" if note else line + "\n"
            sys.stdout.write(lines)  # Ray Train patches print, and would show each line twice
            sys.stdout.flush()
        else:
            self.bar.set_description(f"{line}  {note}" if note else line)
            self.bar.update(1)

    def close(self) -> None:
        self.log.close()
        if self.bar is not None:
            self.bar.close()
