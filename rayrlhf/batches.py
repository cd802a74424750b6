"""The data of one RL step: frozen dataclasses of tensors, checked where they are built.

B sequences, T tokens with padding, C score components.  Per-token tensors are `[B, T]`, prompt
and response in one row, padded on the right; entry t is about token t: its log-probability, the
value of the state before it, its reward.  Masks are bool and True counts; outside them values
are 0.0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# names of components of scores that count rows: those that a reward function failed on, FAILED + the kind of failure,
# and those scored by a call of their own
FAILED, ALONE = "failed_", "scored_alone"

_KINDS = {"i64": torch.int64, "f32": torch.float32, "bool": torch.bool}
TBatch = TypeVar("TBatch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """Row operations and the shape check that all batches share."""

    # field name -> (dtype, dimensions); a dimension's first appearance fixes its size
    SHAPES: ClassVar[dict[str, tuple[str, str]]] = {}

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for name, (kind, dims) in self.SHAPES.items():
            tensor = getattr(self, name)
            label = f"{type(self).__name__}.{name}"
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{label} must be a tensor {kind}[{dims}], got {type(tensor).__name__}")
            if tensor.dtype != _KINDS[kind]:
                raise TypeError(f"{label} must have dtype {kind}, got {tensor.dtype}")
            names = dims.split(",")
            if tensor.dim() != len(names):
                raise ValueError(f"{label} must have shape [{dims}], got {list(tensor.shape)}")
            for dim, size in zip(names, tensor.shape, strict=True):
                known, where = sizes.setdefault(dim, (size, label))
                if size != known:
                    raise ValueError(
                        f"{label} has shape {list(tensor.shape)}, but {dim} is {known} in {where} "
                        f"with shape {list(getattr(self, where.split('.')[1]).shape)}"
                    )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as NumPy arrays, which pickle's protocol 5 takes as they lie in memory; torch copies a tensor's bytes
        several times.  Whoever unpickles a batch owns its tensors."""
        tensors = {name: getattr(self, name) for name in self.SHAPES}
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            return super().__reduce_ex__(protocol)
        more = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tensors}
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
        return _from_arrays, (type(self), arrays, more)

    def __len__(self) -> int:
        """B, the number of sequences."""
        return int(getattr(self, next(iter(self.SHAPES))).shape[0])

    def rows(self: TBatch, index: Tensor | slice | list[int]) -> TBatch:
        """The batch of the chosen rows, in the order of `index`; T stays as it is."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.SHAPES})

    def dealt(self: TBatch, count: int) -> list[TBatch]:
        """Its rows in `count` parts of like size, in order; the last ones have none where there are fewer rows."""
        parts = {name: getattr(self, name).tensor_split(count) for name in self.SHAPES}
        return [replace(self, **{name: tensors[n] for name, tensors in parts.items()}) for n in range(count)]

    @classmethod
    def concat(cls: type[TBatch], parts: list[TBatch]) -> TBatch:
        """One batch of all rows, T being the longest of the parts (right-padded with 0 / False)."""
        if not parts:
            raise ValueError(f"{cls.__name__}.concat needs at least one part")
        values: dict[str, Any] = {f.name: getattr(parts[0], f.name) for f in fields(parts[0])}
        for name, (_, dims) in cls.SHAPES.items():
            tensors = [getattr(part, name) for part in parts]
            if dims == "B,T":
                longest = max(t.shape[1] for t in tensors)
                tensors = [torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in tensors]
            values[name] = torch.cat(tensors)
        return cls(**values)


def _from_arrays(kind: type[TBatch], arrays: dict[str, NDArray[Any]], more: dict[str, Any]) -> TBatch:
    """The batch again; the arrays may lie in memory that others read (Ray's object store), so they are copied."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return kind(**tensors, **more)


@dataclass(frozen=True)
class Prompts(Batch):
    """Tokenised prompts of one rollout batch, right-padded.

    `prompt_index` is the row's number in the run's prompt stream: with the run's seed it fixes
    the sampling seed of each response, whatever actor samples it.
    """

    tokens: Tensor
    lengths: Tensor
    prompt_index: Tensor
    SHAPES = {"tokens": ("i64", "B,T"), "lengths": ("i64", "B"), "prompt_index": ("i64", "B")}


@dataclass(frozen=True)
class Part(Batch):
    """The part of each response that one call samples: `begun` tokens of it are there, as the last ones of the row's
    prompt, and at most `limit` follow."""

    begun: Tensor
    limit: Tensor
    SHAPES = {"begun": ("i64", "B"), "limit": ("i64", "B")}

    @classmethod
    def of_all(cls, rows: int, limit: int) -> Part:
        """The first part of every row's response."""
        return cls(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), limit))


@dataclass(frozen=True)
class Rollouts(Batch):
    """Sampled sequences.

    `sampled_logprobs` are log_softmax(logits / temperature) as the sampling engine returned them
    while generating; `finished` is False where the length limit cut the response;
    `policy_version` is the version of the weights that sampled the row (of partial rollouts, its first part).
    """

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    sampled_logprobs: Tensor
    finished: Tensor
    prompt_index: Tensor
    policy_version: Tensor
    SHAPES = {
        "tokens": ("i64", "B,T"),
        "lengths": ("i64", "B"),
        "response_mask": ("bool", "B,T"),
        "sampled_logprobs": ("f32", "B,T"),
        "finished": ("bool", "B"),
        "prompt_index": ("i64", "B"),
        "policy_version": ("i64", "B"),
    }


@dataclass(frozen=True)
class Scores(Batch):
    """What a reward source gives each sequence: `total` and the `components` it is made of, or that count rows."""

    total: Tensor
    components: Tensor
    names: tuple[str, ...]
    SHAPES = {"total": ("f32", "B"), "components": ("f32", "B,C")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components.shape[1] != len(self.names):
            raise ValueError(
                f"Scores.components has shape {list(self.components.shape)} but there are "
                f"{len(self.names)} names: {self.names}"
            )


@dataclass(frozen=True)
class Values(Batch):
    """The critic's view: `values[b, t]` is of the state before token t (response tokens only),
    `bootstrap[b]` of the state after the last token."""

    values: Tensor
    bootstrap: Tensor
    SHAPES = {"values": ("f32", "B,T"), "bootstrap": ("f32", "B")}


@dataclass(frozen=True)
class Experience:
    """Rollouts and what every role says of them."""

    rollouts: Rollouts
    logprobs: Tensor
    ref_logprobs: Tensor
    scores: Scores
    values: Values

    def __post_init__(self) -> None:
        shape = list(self.rollouts.tokens.shape)
        for name, tensor, expected in (
            ("logprobs", self.logprobs, shape),
            ("ref_logprobs", self.ref_logprobs, shape),
            ("scores.total", self.scores.total, shape[:1]),
            ("values.values", self.values.values, shape),
        ):
            if list(tensor.shape) != expected:
                raise ValueError(
                    f"Experience.{name} has shape {list(tensor.shape)}, but the rollouts' tokens have {shape}"
                )

    @classmethod
    def joined(cls, parts: list[Experience]) -> Experience:
        """One of all rows, in the order of their prompts."""
        if len(parts) == 1:
            return parts[0]
        rollouts = Rollouts.concat([part.rollouts for part in parts])
        order, width = rollouts.prompt_index.argsort(), rollouts.tokens.shape[1]

        def rows(tensors: list[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors])[order]

        rollouts = rollouts.rows(order)
        # the very tensor says that the policy made none of its own (rayrlhf/policy_roles.py)
        is_own = any(part.logprobs is not part.rollouts.sampled_logprobs for part in parts)
        return cls(
            rollouts,
            rows([part.logprobs for part in parts]) if is_own else rollouts.sampled_logprobs,
            rows([part.ref_logprobs for part in parts]),
            Scores.concat([part.scores for part in parts]).rows(order),
            Values.concat([part.values for part in parts]).rows(order),
        )


@dataclass(frozen=True)
class PolicyBatch(Batch):
    """What the policy learns from in one RL step."""

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    sampled_logprobs: Tensor
    advantages: Tensor
    SHAPES = {
        "tokens": ("i64", "B,T"),
        "lengths": ("i64", "B"),
        "response_mask": ("bool", "B,T"),
        "logprobs": ("f32", "B,T"),
        "ref_logprobs": ("f32", "B,T"),
        "sampled_logprobs": ("f32", "B,T"),
        "advantages": ("f32", "B,T"),
    }


@dataclass(frozen=True)
class TextBatch(Batch):
    """Plain text, whose log-likelihood counts where `loss_mask` is True."""

    tokens: Tensor
    lengths: Tensor
    loss_mask: Tensor
    SHAPES = {"tokens": ("i64", "B,T"), "lengths": ("i64", "B"), "loss_mask": ("bool", "B,T")}


@dataclass(frozen=True)
class CriticBatch(Batch):
    """What the critic learns from in one RL step."""

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    values: Tensor
    returns: Tensor
    SHAPES = {
        "tokens": ("i64", "B,T"),
        "lengths": ("i64", "B"),
        "response_mask": ("bool", "B,T"),
        "values": ("f32", "B,T"),
        "returns": ("f32", "B,T"),
    }
