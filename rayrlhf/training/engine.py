"""The training engine: one optimizer step over any number of microbatches, on DeepSpeed.

The contract is in sums: the loss of a microbatch is already divided by the global normaliser, so
the losses of all microbatches on all ranks add up to the loss of the minibatch.  DeepSpeed
averages gradients over ranks and divides by its accumulation steps; both are undone here, so that
neither the split into microbatches nor the number of ranks nor the ZeRO stage changes anything.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayrlhf.errors import CheckpointError, RayRLHFError
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.schedule import lr_factor

LossFn = Callable[[Any], tuple[Tensor, dict[str, Any]]]
_TAG = "engine"


class _Root(nn.Module):
    """What DeepSpeed wraps: its forward is the loss function, so every use of the model's parts is
    inside one DeepSpeed forward, whichever of the model's modules the loss calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, microbatch: Any, loss_fn: LossFn, stats: dict[str, Any]) -> Tensor:
        loss, found = loss_fn(microbatch)
        stats.update(found)
        return loss


class Engine:
    """A model, its optimizer and its learning-rate schedule on this rank.

    torch.distributed must be initialised (`distributed.init`, or Ray Train); nccl trains on the
    current CUDA device, gloo on CPU.  `total_steps` is where the cosine ends.
    """

    def __init__(self, model: Any, config: EngineConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.step = config, total_steps, 0
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = distributed.device()
        deepspeed = _import_deepspeed(self.device)
        root = _Root(model.to(self.device))
        self._engine, *_ = deepspeed.initialize(
            model=root, optimizer=_optimizer(root, config), config=_deepspeed_config(config, self.world_size)
        )
        self.module: Any = root.model
        self.module.train()

    def optimizer_step(self, microbatches: Iterable[Any], loss_fn: LossFn) -> dict[str, float]:
        """One optimizer step.

        `loss_fn(microbatch) -> (loss, stats)` runs the forward through `engine.module`; its loss is
        this microbatch's share of the minibatch loss.  Every rank must give as many microbatches.
        Returns the stats (every rank must have the same names) summed over microbatches and ranks,
        a name ending in `_max` as the maximum; plus `optim/grad_norm` (before clipping) and
        `optim/lr`.  Raises RayRLHFError when the gradient norm is not finite; weights are then
        unchanged.
        """
        lr = self.config.lr * lr_factor(self.step, self.config.warmup_steps, self.total_steps, self.config.min_lr_ratio)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        totals: dict[str, float] = {}
        for microbatch, is_last in _marked(microbatches):
            self._engine.set_gradient_accumulation_boundary(is_last)
            stats: dict[str, Any] = {}
            with self._autocast():
                loss = self._engine(microbatch, loss_fn, stats)
            self._engine.backward(loss * self.world_size, scale_wrt_gas=False)
            _add(totals, stats)
        norm = self._apply()
        self.step += 1
        reduced = distributed.sum_over_ranks(totals, self.device)
        return reduced | {"optim/grad_norm": norm, "optim/lr": lr}

    def evaluate(self, microbatches: Iterable[Any], stats_fn: Callable[[Any], dict[str, Any]]) -> dict[str, float]:
        """Sums of `stats_fn(microbatch)` over microbatches and ranks, without gradients."""
        totals: dict[str, float] = {}
        with self.eval_mode():
            for microbatch in microbatches:
                _add(totals, stats_fn(microbatch))
        return distributed.sum_over_ranks(totals, self.device)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """No gradients, modules in eval mode; under ZeRO 3 every rank must run as many forwards."""
        self._engine.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self._engine.train()

    def _autocast(self) -> Any:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _apply(self) -> float:
        """Take the optimizer step; returns the gradient norm before clipping."""
        if self.config.zero_stage == 0:
            # gradients are whole and reduced here, and DeepSpeed does not report their norm
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            self._require_finite(norm)
            self._engine.step()
            return norm
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        self._require_finite(norm if norm >= 0 else math.nan)  # -1 is DeepSpeed's mark for nan and inf
        return norm

    def _require_finite(self, norm: float) -> None:
        if not math.isfinite(norm):
            lr = self._engine.optimizer.param_groups[0]["lr"]
            raise RayRLHFError(
                f"the gradient norm of optimizer step {self.step} is {norm} (lr {lr:.3g}, precision "
                f"{self.config.precision}, grad_clip {self.config.grad_clip}): the loss has diverged or the data hold "
                "values that are not finite. Lower engine.lr, lengthen engine.warmup_steps, or use "
                "engine.precision=float32"
            )

    def save_state(self, directory: str, extra: dict[str, Any] | None = None) -> None:
        """Write optimizer, schedule and random state of this rank into `directory` (every rank calls it),
        and `extra`, the caller's own."""
        os.makedirs(directory, exist_ok=True)
        self._engine.save_checkpoint(
            directory, tag=_TAG, client_state={"step": self.step, "extra": extra or {}}, save_latest=False
        )
        rng: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        torch.save(rng, self._rng_path(directory))
        dist.barrier()

    def load_state(self, directory: str) -> dict[str, Any]:
        """Continue from `save_state`, weights included; the same number of ranks and ZeRO stage.  Returns `extra`.

        The files are pickles: load only what this project wrote.  Raises CheckpointError.
        """
        if not os.path.isfile(self._rng_path(directory)):
            raise CheckpointError(
                f"{directory} holds no engine state of rank {self.rank} of {self.world_size}: it was saved by another "
                "number of ranks, or by none. Resume with the same number of ranks"
            )
        path, client = self._engine.load_checkpoint(directory, tag=_TAG)
        if path is None:
            raise CheckpointError(f"DeepSpeed finds no state in {directory}/{_TAG}: use the ZeRO stage that saved it")
        self.step = client["step"]
        rng = torch.load(self._rng_path(directory), weights_only=False)
        torch.set_rng_state(rng["torch"])
        random.setstate(rng["python"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        return dict(client["extra"])

    def _rng_path(self, directory: str) -> str:
        return os.path.join(directory, f"rng_rank{self.rank}_of_{self.world_size}.pt")

    def save_model(self, directory: str, tokenizer: Any, weights: dict[str, Tensor] | None = None) -> None:
        """Rank 0 writes the whole model as a Hugging Face folder, with `weights` in the place of its own
        where given; every rank calls it."""
        from rayrlhf.models import causal_lm

        whole = self.whole_weights() if weights is None else weights
        if self.rank == 0:
            causal_lm.save(self.module, tokenizer, directory, whole)
        dist.barrier()

    def whole_weights(self) -> dict[str, Tensor]:
        """The whole weights on rank 0's CPU by their Hugging Face names, none on other ranks; every rank calls it."""
        whole: dict[str, Tensor] = {}
        for bucket in self.weight_buckets(1 << 30):
            whole |= {name: tensor.cpu() for name, tensor in (bucket or {}).items()}
        return whole

    def weight_buckets(self, bucket_bytes: int) -> Iterator[dict[str, Tensor] | None]:
        """The whole weights bucket by bucket, each at most `bucket_bytes` or one tensor.

        Rank 0 yields `{Hugging Face name: tensor}` (copies; tied weights once), the others None as
        many times: under ZeRO 3 a bucket is gathered from all ranks, so all must iterate to the end.
        """
        for names in self._bucket_names(bucket_bytes):
            parameters = [self.module.get_parameter(name) for name in names]
            with self._gathered(parameters):
                bucket = None
                if self.rank == 0:
                    pairs = zip(names, parameters, strict=True)
                    bucket = {name: parameter.detach().clone() for name, parameter in pairs}
            yield bucket

    def _bucket_names(self, bucket_bytes: int) -> list[list[str]]:
        buckets: list[list[str]] = []
        room = 0
        for name, parameter in self.module.named_parameters():
            size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            if not buckets or size > room:
                buckets.append([])
                room = bucket_bytes
            buckets[-1].append(name)
            room -= size
        return buckets

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        if self.config.zero_stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)


def _marked(items: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each item with whether it is the last; holds no more than one ahead."""
    iterator = iter(items)
    try:
        item = next(iterator)
    except StopIteration:
        raise ValueError("optimizer_step needs at least one microbatch") from None
    for following in iterator:
        yield item, False
        item = following
    yield item, True


def _add(totals: dict[str, float], stats: dict[str, Any]) -> None:
    for name, value in stats.items():
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if name.endswith("_max"):
            totals[name] = max(totals.get(name, -math.inf), number)
        else:
            totals[name] = totals.get(name, 0.0) + number


def _import_deepspeed(device: torch.device) -> Any:
    """deepspeed on `device`, communicating through the process group that is already there."""
    os.environ["DS_ACCELERATOR"] = device.type
    # it warns of every optimizer that is not its own, and on every call of a collective that torch renamed
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    if not deepspeed.comm.is_initialized():
        # its shared-memory collective serves inference only, and would be compiled here (20 s)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _optimizer(root: nn.Module, config: EngineConfig) -> torch.optim.Optimizer:
    """Matrices and embeddings in one group with weight decay, vectors (biases, norms) in one without."""
    parameters = [p for p in root.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _deepspeed_config(config: EngineConfig, world_size: int) -> dict[str, Any]:
    return {
        # the boundary of accumulation is set by hand, so these two only have to be consistent
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
