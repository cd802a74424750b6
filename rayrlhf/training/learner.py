"""What the policy's and the critic's learners share: epochs, minibatches, averages, save and load."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from rayrlhf.batches import Rollouts
from rayrlhf.errors import DivergenceError
from rayrlhf.models.forward import leaves_padding_out
from rayrlhf.models.precision import warn_if_slow
from rayrlhf.roles import Metrics
from rayrlhf.training.engine import Engine
from rayrlhf.training.flops import Text
from rayrlhf.training.matrix_rate import MatrixShare
from rayrlhf.training.microbatches import microbatches
from rayrlhf.training.passes import minibatches, piece, token_pass
from rayrlhf.training.ppo_config import UpdateConfig


@dataclass(frozen=True)
class Counts:
    """What a minibatch has in all, over its pieces and ranks: sums are divided by these."""

    tokens: int  # of responses
    sequences: int
    text_tokens: int = 0  # of a pretraining mix


class OptimizerStep(NamedTuple):
    """What became of one minibatch."""

    num_tokens: int  # of responses
    stats: Metrics  # over all ranks
    is_skipped: bool  # by the guard: no update, and numbers that may not be finite
    texts: list[Text]


# (piece of a minibatch, counts=counts of the minibatch)
# -> (the piece's share of the minibatch's loss, the same share of its statistics)
PieceLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Learner:
    """One rank of a model in training.  torch.distributed is initialised before; every method runs on
    all ranks at once with the same arguments."""

    role = ""  # "policy" or "critic": in the names of metrics and folders

    def __init__(self, engine: Engine, tokenizer: Any, update: UpdateConfig, seed: int) -> None:
        self.engine, self.tokenizer, self.update_config, self.seed = engine, tokenizer, update, seed
        self._matrix_share: MatrixShare | None = None  # from the first update on
        self._learnt_s = 0.0  # seconds of the last update's optimizer steps
        warn_if_slow(self.role, f"{self.role}.engine", engine.config.precision, engine.device, engine.rank)

    def forward(self, rollouts: Rollouts, compute: Callable[[Rollouts], Tensor]) -> Tensor:
        """`compute` of every row (see `token_pass`), shared out over the ranks; f32 `[B, T]` on each."""
        engine, budget = self.engine, self.update_config.forward_tokens
        with engine.eval_mode():
            is_packed = leaves_padding_out(engine.module)
            out = token_pass(rollouts, compute, budget, engine.device, engine.world_size, engine.rank, is_packed)
        out = out.to(engine.device)
        dist.all_reduce(out)
        engine.leave_gpu()
        return out.cpu()

    def learn(self, batch: Any, step: int, piece_loss: PieceLoss) -> list[OptimizerStep]:
        """All epochs and minibatches over the whole `batch`, of which this rank takes its share.

        Raises DivergenceError after `engine.guard.max_skips` skipped steps in a row.
        """
        if self._matrix_share is None:  # not while the roles start, when all of them want the machine
            self._matrix_share = MatrixShare(self.engine)
        with self.engine.states_here():
            began = time.perf_counter()
            steps = self._learn(batch, step, piece_loss)
            self._learnt_s = time.perf_counter() - began
            return steps

    def _learn(self, batch: Any, step: int, piece_loss: PieceLoss) -> list[OptimizerStep]:
        config = self.update_config
        steps: list[OptimizerStep] = []
        for epoch in range(config.epochs):
            for number, rows in enumerate(minibatches(len(batch), config.minibatch, self.seed, step, epoch)):
                mini = batch.rows(rows)
                more, num_text_tokens, more_texts = self.also_learn(len(steps))
                counts = Counts(int(mini.response_mask.sum()), len(mini), num_text_tokens)
                texts = [*texts_of(mini.lengths, mini.response_mask), *more_texts]
                # each forward and backward sees one piece, so only that one is on the device
                pieces = chain(self.pieces(mini), more)
                name = f"RL step {step}, epoch {epoch + 1}, minibatch {number + 1}"
                stats = self.engine.optimizer_step(pieces, partial(piece_loss, counts=counts), name)
                steps.append(OptimizerStep(counts.tokens, stats, bool(self.engine.problem), texts))
                if self.engine.is_stuck:
                    raise DivergenceError(self._report())
                if self.is_enough(stats):
                    return steps
        return steps

    def _report(self) -> str:
        config, guard, recent = self.engine.config, self.engine.guard, "\n  ".join(self.engine.recent)
        prefix = f"{self.role}.engine"
        return (
            f"the {self.role}'s training diverged: {guard.num_in_row} optimizer steps in a row were skipped "
            f"({guard.num_skipped} in the whole run). The last ones:\n  {recent}\n"
            f"None of the skipped ones is in the weights. Give another run.name a lower {prefix}.lr "
            f"(now {config.lr * self.engine.lr_scale:g}), a longer {prefix}.warmup_steps (now {config.warmup_steps}), "
            f"{prefix}.precision=float32 (now {config.precision}) or, where healthy steps are taken for spikes, "
            f"a higher {prefix}.guard.bound (now {config.guard.bound or 'null'})"
        )

    def pieces(self, minibatch: Any) -> Iterator[Any]:
        """This rank's share of a minibatch, on its device, one forward and backward pass each."""
        engine = self.engine
        budget, is_packed = self.update_config.microbatch_tokens, leaves_padding_out(engine.module)
        for share in microbatches(minibatch.lengths, budget, engine.world_size, engine.rank, is_packed):
            yield piece(minibatch, share, engine.device)

    def also_learn(self, index: int) -> tuple[Iterable[Any], int, list[Text]]:
        """(pieces of other data for the RL step's optimizer step number `index`; their loss tokens and texts, over
        all ranks)."""
        return (), 0, []

    def speeds(self, steps: list[OptimizerStep]) -> Metrics:
        """Tokens (of prompts too, each time one is learnt) a second of the last update's `steps`, and the share of the
        ranks' matrix rate that they reached."""
        assert self._matrix_share is not None, "learn comes first"
        texts = [text for step in steps for text in step.texts]
        share = self._matrix_share.metrics(f"perf/{self.role}_matrix", texts, self._learnt_s)
        tokens = sum(text.tokens for text in texts)
        return share | {f"perf/{self.role}_update_tokens_per_s": tokens / self._learnt_s}

    def is_enough(self, stats: Metrics) -> bool:
        """Whether the RL step's update ends after an optimizer step of these statistics."""
        return False

    def averages(self, steps: list[OptimizerStep], names: dict[str, str]) -> Metrics:
        """Means over the optimizer steps taken, weighted by their response tokens, of the statistics in `names`
        (engine's or algorithm's name -> metric's name), NaN where all were skipped; the last learning rate, and
        the skipped steps of the whole run."""
        taken = [step for step in steps if not step.is_skipped]
        total = sum(step.num_tokens for step in taken)
        names = names | {"optim/grad_norm": f"optim/{self.role}_grad_norm"}
        means = {to: math.nan for to in names.values()}
        if taken:
            means = {
                to: sum(step.num_tokens * step.stats[name] for step in taken) / total for name, to in names.items()
            }
        last = steps[-1].stats
        return means | {f"optim/{self.role}_{name}": last[f"optim/{name}"] for name in ("lr", "skipped_steps")}

    def save(self, model_directory: str, state_directory: str) -> None:
        """The model as a Hugging Face folder (by rank 0), the engine's state (by every rank)."""
        self.engine.save_model(model_directory, self.tokenizer)
        self.save_state(state_directory)

    def save_state(self, state_directory: str) -> None:
        """The engine's state and `state`, by every rank."""
        self.engine.save_state(os.path.join(state_directory, self.role), self.state())

    def load(self, state_directory: str, lr_scale: float = 1.0) -> None:
        """Weights, optimizer, schedule, RNG and `state` as `save` left them, and from now on `lr_scale` of the
        schedule's learning rate.  Skipped steps stay counted.  Raises CheckpointError."""
        num_skipped = self.engine.guard.num_skipped
        self.load_own_state(self.engine.load_state(os.path.join(state_directory, self.role)))
        self.engine.guard.num_skipped = max(num_skipped, self.engine.guard.num_skipped)
        self.engine.lr_scale = lr_scale

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the engine's."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""


def texts_of(lengths: Tensor, mask: Tensor) -> list[Text]:
    """Of `lengths` i64 `[B]`, predicted where `mask` bool `[B, T]` is True."""
    return [Text(tokens, predicted) for tokens, predicted in zip(lengths.tolist(), mask.sum(1).tolist(), strict=True)]
