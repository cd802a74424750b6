"""Starts a supervised stage on Ray Train: data in the driver's name, the loop in the workers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec

from rayrlhf import lineage, ray_timeline, stopping
from rayrlhf.checkpoint import newest_whole
from rayrlhf.data.config import DataConfig, MixedSource
from rayrlhf.data.mixing_rates import described
from rayrlhf.errors import DataError, RayRLHFError, RoleError, UserError
from rayrlhf.models.config import ModelConfig
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.restarts import RecoveryConfig, Restarts
from rayrlhf.run import RunConfig
from rayrlhf.trackers.choice import tracker_environment
from rayrlhf.training.config import TrainConfig
from rayrlhf.training.job import MIN_DEMONSTRATIONS

if TYPE_CHECKING:
    from ray.data import Dataset

    from rayrlhf.data.mixture import Mixture
    from rayrlhf.profile_steps import Steps
    from rayrlhf.training.losses import Loss
    from rayrlhf.training.supervised import Stage

# columns that follow from the others, or are computed: they are no part of a row's place in the order
COMPUTED = ("prompt_length", "kl_ids", "ref_chosen", "ref_rejected", "ref_logprob", "ref_kl")


def fit(
    name: str,
    kind: str,
    run: RunConfig,
    data: DataConfig,
    train: TrainConfig,
    folder: str,
    config: Any,
    parents: dict[str, str],
    new: ModelConfig | None = None,
    loss: Loss | None = None,
    reference: str | None = None,
    derive: Callable[[Dataset], Dataset] | None = None,
    peft: PeftConfig | None = None,
    demonstrations: tuple[str, int] | None = None,
    chat_template: str | None = None,
    stop_strings: tuple[str, ...] = (),
    profile: Steps | None = None,
) -> str:
    """Train the stage `name` on rows of `kind`; returns its finished directory.  Ray is connected.

    A stage that was cut off goes on from its newest checkpoint; a finished one is returned.

    `config` is the job's own, for the record and to compare with what is there; `run`, `data` and `train` are
    its parts.  `folder` is the Hugging Face folder to start from (of `new`: only its tokenizer); `loss` None:
    the one of `kind`; `reference`: the folder of a frozen model whose log-probs the loss needs; `derive`: from
    the encoded rows those that the loss takes; `peft`: an adapter to train in place of all weights;
    `demonstrations`: a path of prompt_completion rows and how many of them are to have the mean score 0;
    `chat_template`: a name or a file for `template_text`, in place of the folder's own; `stop_strings`: texts that
    end the model's answers, to save with it; `profile`: the steps in which the workers record.  Rows stay in Ray's
    object store; the driver only counts them.  Raises DataError when there are fewer rows than a minibatch, and what a
    worker raised.
    """
    from rayrlhf.data.chat_templates import template_text, with_template
    from rayrlhf.data.conversation import two_ends
    from rayrlhf.models.causal_lm import load_tokenizer
    from rayrlhf.training.losses import LOSSES
    from rayrlhf.training.supervised import Stage

    started = time.time()
    found = lineage.claim(run.stage(name), config, parents)
    if found.stage is not None and found.state == "finished":
        return found.stage.path
    tokenizer = load_tokenizer(folder)
    template = None if chat_template is None else template_text(chat_template)
    if template is not None:
        tokenizer = with_template(tokenizer, template, str(chat_template))
    note = two_ends(tokenizer) if kind != "text" else ""
    if note:
        print(f"{name}: {note}", flush=True)
    loss = loss or LOSSES[kind]
    complete = partial(_complete, train=train, loss=loss, reference=reference, derive=derive)
    rows, counts, mixture = _rows(kind, data, train, tokenizer, run.seed, complete)
    if demonstrations is not None:
        rows["demonstrations"] = _demonstrations(*demonstrations, data, tokenizer)
    count = rows["train"].count()
    total = count // train.minibatch
    if not total:
        read = " + ".join(source.path for source in data.sources)
        raise DataError(
            f"{read} gives {count} rows in {train.epochs} epoch(s) (rows over data.max_tokens="
            f"{data.max_tokens}, without an answer or of equal texts are dropped), fewer than "
            f"train.minibatch={train.minibatch}: lower train.minibatch, raise train.epochs or data.max_tokens, or give "
            "more rows"
        )
    total = min(total, train.max_steps or total)
    if profile is not None:
        profile.check(name, total)
    stage = Stage(
        name=name,
        loss=loss,
        run=run.model_copy(update={"root": absolute(run.root)}),
        train=train,
        folder=os.path.abspath(folder),
        new=new,
        total_steps=total,
        config=config.model_dump(mode="json"),
        parents={role: absolute(path) for role, path in parents.items()},
        resume_from=found.stage.path if found.stage else None,
        started=started,
        is_terminal=sys.stdout.isatty(),
        environment=tracker_environment(),
        peft=peft,
        chat_template=template,
        stop_strings=stop_strings,
        data_counts=counts | _packing_metrics(name, data, rows["train"]),
        sources=tuple(part.name for part in mixture.parts) if mixture else (),
        packed=data.packing is not None,
        profile=profile,
    )
    if mixture is not None:
        print("\n".join(f"{name}: {line}" for line in described(mixture.parts, train.epochs)), flush=True)
    print(f"{name}: {count:,} rows, {stage.total_steps} steps on {train.num_workers} worker(s)", flush=True)
    return _run_workers(stage, rows)


def absolute(path: str) -> str:
    """Workers have a working directory of their own, so a local path must not be relative."""
    return path if "://" in path else os.path.abspath(path)


def _rows(
    kind: str,
    data: DataConfig,
    train: TrainConfig,
    tokenizer: Any,
    seed: int,
    complete: Callable[[Dataset], Dataset],
) -> tuple[dict[str, Dataset], dict[str, float], Mixture | None]:
    """(token rows: all epochs of training in their order, and the rows of a validation; metrics of what was dropped;
    the mixture that the rows of training come from, where they do).

    Computed once here, or every worker would read and sort them again.
    """
    from rayrlhf.data import mixture, order, tally
    from rayrlhf.data.token_rows import token_rows

    def counted(path: str, counts: tally.Tally, prefix: str = "") -> dict[str, float]:
        return tally.report(path, counts, data.max_dropped_share, prefix)

    mixed = mixture.load(data, kind, tokenizer, complete) if data.is_mixed else None
    if mixed is not None:
        rows: dict[str, Dataset] = {"train": mixed.in_order(train.epochs, seed, COMPUTED).materialize()}
        metrics = mixed.metrics
    else:
        [source], counts = data.sources, tally.Tally()
        found = complete(token_rows(source, kind, data, tokenizer, counts))
        rows = {"train": order.in_order(found, train.epochs, seed, COMPUTED).materialize()}
        metrics = counted(source.path, counts)
    if data.validation is not None:
        counts, held_out = tally.Tally(), MixedSource(path=data.validation)
        chosen = order.by_content(token_rows(held_out, kind, data, tokenizer, counts), COMPUTED)
        chosen = chosen.limit(train.validation_rows)
        rows["validation"] = order.by_content(complete(chosen), COMPUTED).materialize()
        metrics |= counted(data.validation, counts, "validation_")
        if not rows["validation"].count():
            raise DataError(f"{data.validation} gives no row of at most data.max_tokens={data.max_tokens} tokens")
    return rows, metrics, mixed


def _packing_metrics(name: str, data: DataConfig, rows: Dataset) -> dict[str, float]:
    """How full packed rows are, also for the console."""
    from rayrlhf.data.packing import fill

    if data.packing is None:
        return {}
    pieces, tokens, share = fill(rows, data.max_tokens)
    print(
        f"{name}: {pieces:,} texts and pieces of {tokens:,} tokens in rows of {data.max_tokens}: {share:.2%} filled",
        flush=True,
    )
    return {"data/packing_fill": share}


def _demonstrations(path: str, count: int, data: DataConfig, tokenizer: Any) -> Dataset:
    """At most `count` token rows, by the order of their hash."""
    from rayrlhf.data import order, sources
    from rayrlhf.data.tokenize import encoded

    kind = "prompt_completion"
    rows = encoded(sources.read(path, data.format, kind), kind, tokenizer, data.max_tokens, data.too_long)
    chosen = order.by_content(rows).limit(count).materialize()
    if chosen.count() < MIN_DEMONSTRATIONS:
        raise DataError(
            f"demonstrations={path} gives {chosen.count()} rows of at most data.max_tokens={data.max_tokens} tokens; "
            f"a mean score needs at least {MIN_DEMONSTRATIONS}: give more, or raise data.max_tokens"
        )
    return chosen


def _complete(
    ds: Dataset,
    train: TrainConfig,
    loss: Loss,
    reference: str | None,
    derive: Callable[[Dataset], Dataset] | None,
) -> Dataset:
    """Encoded rows with all that the loss takes."""
    from rayrlhf.training.reference import with_reference

    rows = ds if derive is None else derive(ds)
    if reference is None:
        return rows
    columns = loss.reference_columns
    return with_reference(rows, columns, reference, train)


def _run_workers(stage: Stage, rows: dict[str, Dataset]) -> str:
    """The stage by Ray Train's workers; in new ones from the newest checkpoint where some failed.

    Ray Train's own FailureConfig would try again what the user has to mend, too.
    """
    from rayrlhf.training.supervised import request_path

    most = stage.train.max_restarts
    restarts = Restarts(RecoveryConfig(max_restarts=most), partial(print, flush=True), "train.max_restarts")
    request = _Request(request_path(stage.run, stage.name))
    request.withdraw()
    try:
        with stopping.after_step(stage.name, request.make):
            while True:
                try:
                    path = _fit(stage, rows)
                    if stage.profile is not None:
                        ray_timeline.write_left(stage.profile.folder(stage.run.directory, stage.name))
                    return path
                except RoleError as error:
                    if stopping.asked():
                        raise
                    newest = _newest(stage)
                    if newest != stage.resume_from:
                        restarts.succeeded(stage.name)
                    asyncio.run(restarts.after(stage.name, error))
                    stage = replace(stage, resume_from=newest, started=time.time())
    finally:
        request.withdraw()


def _newest(stage: Stage) -> str | None:
    """The step directory of the stage's newest checkpoint."""
    root = stage.run.stage(stage.name)
    filesystem, where = fsspec.core.url_to_fs(root)
    return newest_whole(root)[0].path if filesystem.exists(f"{where}/latest") else None


def _fit(stage: Stage, rows: dict[str, Dataset]) -> str:
    """Once; raises RoleError where workers failed, and the user's errors."""
    from ray.train import DataConfig as ShardConfig
    from ray.train import LoggingConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """None: Ray's own would outlive this fit, and end every later stage at Ctrl-C with exit code 0.
            The job's handler asks the workers to stop, or raises KeyboardInterrupt: leaving the cluster ends them."""

    train = stage.train
    resources = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    trainer: Any = Trainer(
        _worker,  # type: ignore[arg-type]  # takes its configuration as dict[str, Any]
        train_loop_config={"stage": stage, "held": [name for name in rows if name != "train"]},
        scaling_config=ScalingConfig(
            num_workers=train.num_workers, use_gpu=bool(train.gpus_per_worker), resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if train.gpus_per_worker else "gloo"),
        datasets={**rows},
        # every worker sees all rows and takes its share of each minibatch
        dataset_config=ShardConfig(datasets_to_split=[]),
        run_config=TrainRunConfig(
            name=stage.name,
            storage_path=f"{stage.run.directory}/.ray_train",
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # of the version 2 class
        ),
    )
    try:
        return str(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise _cause(stage.name, error) from error


class _Request:
    """A file that asks the workers to stop after their step; they may be on other nodes, as the run's files are."""

    def __init__(self, path: str) -> None:
        self._filesystem, self._path = fsspec.core.url_to_fs(path)

    def make(self) -> None:
        self._filesystem.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._filesystem.pipe_file(self._path, b"")

    def withdraw(self) -> None:
        if self._filesystem.exists(self._path):
            self._filesystem.rm_file(self._path)


def _cause(name: str, error: BaseException) -> RayRLHFError:
    """What went wrong in a worker, out of what Ray Train wraps it in."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, UserError):
                return inner
            inner = inner.__cause__ or getattr(inner, "cause", None)
    told = "\n".join(f"worker {rank}: {failure}" for rank, failure in failures.items()) or str(error)
    return RoleError(f"stage {name} failed in its Ray Train workers:\n{told}")


def _worker(config: dict[str, Any]) -> str:
    """The training function of a Ray Train worker; rank 0's return value is the fit's."""
    from rayrlhf.training.supervised import Supervised

    stage: Stage = config["stage"]
    held = {name: [row for rows in _batches(name, 1024) for row in rows] for name in config["held"]}
    train = _batches("train", stage.train.minibatch, drop_last=True)
    return Supervised(stage).fit(train, held.get("validation", []), held.get("demonstrations", []))


def _batches(name: str, size: int, drop_last: bool = False) -> Iterator[list[dict[str, Any]]]:
    from ray import train as ray_train

    shard = ray_train.get_dataset_shard(name)
    for batch in shard.iter_batches(batch_size=size, batch_format="pyarrow", drop_last=drop_last):
        yield batch.to_pylist()
