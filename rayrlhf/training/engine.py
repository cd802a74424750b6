"""The training engine: one optimizer step over any number of microbatches, on DeepSpeed.

The contract is in sums: the loss of a microbatch is already divided by the global normaliser, so
the losses of all microbatches on all ranks add up to the loss of the minibatch.  DeepSpeed
averages gradients over ranks and divides by its accumulation steps; both are undone here, so that
neither the split into microbatches nor the number of ranks nor the ZeRO stage changes anything.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayrlhf.algorithms.spike_guard import SpikeGuard
from rayrlhf.models import adapters
from rayrlhf.models.precision import autocast
from rayrlhf.training import distributed, engine_state, gradients
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.schedule import lr_factor

LossFn = Callable[[Any], tuple[Tensor, dict[str, Any]]]
_REDUCE_BUCKET = 500_000_000  # elements, DeepSpeed's own default
_LOSS, _NORM = "engine/loss", "engine/squared_norm"  # reduced with the caller's stats


class _Root(nn.Module):
    """What DeepSpeed wraps: its forward is the loss function, so every use of the model's parts is
    inside one DeepSpeed forward, whichever of the model's modules the loss calls.

    Autocast is entered here, as DeepSpeed's forward switches off one of CUDA that is around it.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, microbatch: Any, loss_fn: LossFn, stats: dict[str, Any]) -> Tensor:
        with self.autocast():
            loss, found = loss_fn(microbatch)
        stats.update(found)
        return loss


class Engine:
    """A model, its optimizer and its learning-rate schedule on this rank.

    torch.distributed must be initialised (`distributed.init`, or Ray Train); nccl trains on the
    current CUDA device, gloo on CPU.  `total_steps` is where the cosine ends.

    `step` counts updates, and the schedule goes by it: after a step that the guard skipped, weights,
    optimizer, gradients and learning rate are those of a run that never saw that minibatch (the random
    numbers that its dropout drew are spent).
    """

    def __init__(self, model: Any, config: EngineConfig, total_steps: int, offload: bool = False) -> None:
        """`offload`: optimizer states are on the device only inside `states_here` (ZeRO 1 and 2)."""
        self.config, self.total_steps, self.step = config, total_steps, 0
        self.lr_scale = 1.0  # on top of the schedule
        self.guard = SpikeGuard(config.guard.bound, config.guard.window)
        self.problem = ""  # why the last optimizer step was skipped
        self.recent = deque[str](maxlen=config.guard.max_skips + 4)  # the last optimizer steps, for a report
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = distributed.device()
        deepspeed = _import_deepspeed(self.device)
        self._autocast = partial(autocast, self.device, config.precision)
        root = _Root(model.to(self.device), self._autocast)
        num_trained = sum(p.numel() for p in root.parameters() if p.requires_grad)
        self.zero_stage = config.stage(self.world_size, num_trained, offload)
        self._engine, *_ = deepspeed.initialize(
            model=root, optimizer=_optimizer(root, config), config=self._deepspeed_config(num_trained)
        )
        self.module: Any = root.model
        if self.zero_stage == 3:
            for layer, parameter in adapters.borrowed_parameters(self.module):
                deepspeed.zero.register_external_parameter(layer, parameter)
        self.module.train()
        self._offloads, self._is_here = offload, True
        if offload:
            self._move_states(here=False)

    def _deepspeed_config(self, num_trained: int) -> dict[str, Any]:
        return {
            # the boundary of accumulation is set by hand, so these two only have to be consistent
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "train_batch_size": self.world_size,
            "gradient_clipping": self.config.grad_clip,
            # gradients are reduced in a buffer of this many elements, which is taken whole: 2 GB by default
            "zero_optimization": {"stage": self.zero_stage, "reduce_bucket_size": min(num_trained, _REDUCE_BUCKET)},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }

    @contextmanager
    def states_here(self) -> Iterator[None]:
        """Inside, the optimizer's states are on the device; every rank enters it.  Nests."""
        if not self._offloads or self._is_here:
            yield
            return
        self._move_states(here=True)
        try:
            yield
        finally:
            self._move_states(here=False)

    def leave_gpu(self) -> None:
        """Give back what torch keeps of the GPU for later, where others are to use it."""
        if self._offloads and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _move_states(self, here: bool) -> None:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

        if here:
            self._engine.reload_states()
        else:
            self._engine.offload_states(include=(State.optim_states, State.hp_params), pin_memory=False)
        self._is_here = here

    def optimizer_step(self, microbatches: Iterable[Any], loss_fn: LossFn, name: str = "") -> dict[str, float]:
        """One optimizer step, unless the guard finds that it must be skipped: `problem` then says why.

        `loss_fn(microbatch) -> (loss, stats)` runs the forward through `engine.module`; its loss is
        this microbatch's share of the minibatch loss.  Every rank must give as many microbatches.
        `name` is what a report calls this minibatch.
        Returns the stats (every rank must have the same names) summed over microbatches and ranks,
        a name ending in `_max` as the maximum; plus `optim/grad_norm` (before clipping), `optim/lr` and
        `optim/skipped_steps` (so far, of the whole run).
        """
        lr = self.config.lr * lr_factor(self.step, self.config.warmup_steps, self.total_steps, self.config.min_lr_ratio)
        lr *= self.lr_scale
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        totals: dict[str, float] = {}
        for microbatch, is_last in _marked(microbatches):
            self._engine.set_gradient_accumulation_boundary(is_last)
            stats: dict[str, Any] = {}
            loss = self._engine(microbatch, loss_fn, stats)
            self._engine.backward(loss * self.world_size, scale_wrt_gas=False)
            _add(totals, stats | {_LOSS: loss})
        is_whole = self.zero_stage == 0  # on every rank, so that one counts
        own = 0.0 if is_whole and self.rank else gradients.norm(self._engine, self.zero_stage)
        totals[_NORM] = own**2
        reduced = distributed.sum_over_ranks(totals, self.device)
        norm = self._apply_or_skip(reduced.pop(_LOSS), math.sqrt(reduced.pop(_NORM)), name)
        return reduced | {"optim/grad_norm": norm, "optim/lr": lr, "optim/skipped_steps": float(self.guard.num_skipped)}

    @property
    def is_stuck(self) -> bool:
        """Whether as many steps in a row were skipped as `config.guard.max_skips`."""
        return self.guard.num_in_row >= self.config.guard.max_skips

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

    def _apply_or_skip(self, loss: float, norm: float, name: str) -> float:
        """Update, or drop the gradients; both numbers are of the whole minibatch, so all ranks do the same.
        Returns the gradient norm, to the bit the one that clipping divided by where there was an update."""
        self.problem = self.guard.problem(loss, norm)
        if self.problem:
            gradients.drop(self._engine, self.zero_stage)
        else:
            self._engine.step()
            if self.zero_stage > 0:
                norm = float(self._engine.get_global_grad_norm())
            if not self._engine.was_step_applied():  # finite, but DeepSpeed's square of it in float32 was not
                self.problem = f"the gradient norm is {norm}"
        self.guard.record(loss, norm, is_taken=not self.problem)
        lr = self._engine.optimizer.param_groups[0]["lr"]
        outcome = f"skipped, as {self.problem}" if self.problem else "taken"
        self.recent.append(f"{name}: loss {loss:.4g}, gradient norm {norm:.4g}, lr {lr:.3g}; {outcome}")
        self.step += not self.problem
        return norm

    def close(self) -> None:
        """Let go of it: without this DeepSpeed's hooks hold weights and optimizer states for good (and at
        ZeRO 3 its caches hold this rank's partitions even so)."""
        self._engine.destroy()

    def save_state(self, directory: str, extra: dict[str, Any] | None = None) -> None:
        """Write weights in training, optimizer, schedule and random state into `directory` (every rank calls it),
        and `extra`, the caller's own (rank 0's; JSON and tensors).  Frozen weights are not written: they are those
        of the model's folder."""
        engine_state.save(self, directory, extra or {})

    def load_state(self, directory: str) -> dict[str, Any]:
        """Continue from `save_state`, weights included, with any number of ranks and ZeRO stage (`engine_state.load`).
        Returns `extra`, its tensors on rank 0 alone.  Raises CheckpointError."""
        return engine_state.load(self, directory)

    def save_model(self, directory: str, tokenizer: Any, weights: dict[str, Tensor] | None = None) -> None:
        """Rank 0 writes the whole model as a Hugging Face folder, with `weights` in the place of its own
        where given; every rank calls it.  An adapter is merged in if it can be, and written to `adapter/`
        beside the folder."""
        from rayrlhf.models import causal_lm

        whole = self.whole_weights() if weights is None else weights
        if self.rank == 0:
            causal_lm.save(adapters.plain_model(self.module), tokenizer, directory, whole)
        if adapters.has_adapter(self.module):
            self._save_adapter(os.path.join(os.path.dirname(directory), "adapter"), whole)
        dist.barrier()

    def _save_adapter(self, directory: str, whole: dict[str, Tensor]) -> None:
        parameters = adapters.adapter_parameters(self.module)
        with self._gathered(list(parameters.values())):
            if self.rank == 0:
                weights = {name: parameter.detach() for name, parameter in parameters.items()}
                # a scalar model's head is the one that was saved
                weights |= {name: whole[plain] for name in weights if (plain := adapters.plain_name(name)) in whole}
                adapters.save_adapter(self.module, weights, directory)

    def whole_weights(self) -> dict[str, Tensor]:
        """The whole weights on rank 0's CPU by their Hugging Face names, none on other ranks; every rank calls it."""
        whole: dict[str, Tensor] = {}
        for bucket in self.weight_buckets(1 << 30):
            whole |= {name: tensor.cpu() for name, tensor in (bucket or {}).items()}
        return whole

    def weight_buckets(self, bucket_bytes: int) -> Iterator[dict[str, Tensor] | None]:
        """The whole weights bucket by bucket, each at most `bucket_bytes` or one tensor; an adapter is merged in.

        Rank 0 yields `{Hugging Face name: tensor}` (copies; tied weights once), the others None as
        many times: under ZeRO 3 a bucket is gathered from all ranks, so all must iterate to the end.
        """
        for weights in self._buckets(bucket_bytes):
            # a layer's weight and bias are made of the same adapter
            parameters = list(dict.fromkeys(p for weight in weights for p in weight.parameters))
            with self._gathered(parameters):
                bucket = {weight.name: weight.whole() for weight in weights} if self.rank == 0 else None
            yield bucket

    def _buckets(self, bucket_bytes: int) -> list[list[adapters.Weight]]:
        buckets: list[list[adapters.Weight]] = []
        room = 0
        for weight in adapters.whole_weights(self.module):
            parameter = weight.parameters[0]
            size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            if not buckets or size > room:
                buckets.append([])
                room = bucket_bytes
            buckets[-1].append(weight)
            room -= size
        return buckets

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        if self.zero_stage < 3:
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
    with _hidden("mlflow"):  # its autotuner, which nobody asks for here, would import it: 3 s a process
        import deepspeed

    if not deepspeed.comm.is_initialized():
        # its shared-memory collective serves inference only, and would be compiled here (20 s)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Inside, whoever tries to import that module finds it not installed, unless it is there already."""
    modules: dict[str, Any] = sys.modules
    if module in modules:
        yield
        return
    modules[module] = None
    try:
        yield
    finally:
        del modules[module]


def _optimizer(root: nn.Module, config: EngineConfig) -> torch.optim.Optimizer:
    """Matrices and embeddings in one group with weight decay, vectors (biases, norms, IA3's factors, whose
    neutral value is 1) in one without."""
    parameters = [(p, p.dim() >= 2 and ".ia3_l." not in name) for name, p in root.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for p, is_matrix in parameters if is_matrix], "weight_decay": config.weight_decay},
        {"params": [p for p, is_matrix in parameters if not is_matrix], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    # fused: one pass over the memory in the place of ten (on a CPU core a quarter of the time)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
