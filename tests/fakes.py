"""Fakes of the roles, for the unit tests of the coordinator and its loop alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayrlhf.batches import CriticBatch, Part, PolicyBatch, Prompts, Rollouts, Scores, Values
from rayrlhf.errors import DivergenceError, StateLost
from rayrlhf.roles import Early


@dataclass
class FakeRoles:
    """All six roles in one object; `calls` lists what was asked, in order.

    The "policy" is one number, its log-prob of any token; each update adds 0.125 to it.
    """

    logprob: float = -1.0
    reference: float = -1.0
    published: float | None = None
    version: int = -1
    unfinished: tuple[int, ...] = ()
    calls: list[str] = field(default_factory=list)
    batches: list[PolicyBatch | CriticBatch] = field(default_factory=list)
    kl_coefficients: list[float] = field(default_factory=list)
    diverges_at: list[int] = field(default_factory=list)  # numbers of the policy's updates, from 1, that raise
    updates: int = 0
    lr_scales: list[float] = field(default_factory=list)  # what `load` was given
    lost_at: list[tuple[str, int]] = field(
        default_factory=list
    )  # ("policy.update", 3): its third call raises StateLost
    asked: Counter[str] = field(default_factory=Counter)
    texts: dict[int, object] = field(default_factory=dict)  # by step, what the policy's newest update was given
    restarts: int = 0
    untrained: float = -1.0

    async def generate(
        self, prompts: Prompts, seed: int, part: Part | None = None, early: Early | None = None
    ) -> Rollouts:
        """Early parts come last rows first."""
        if early is not None:
            shares = [await self.generate(share, seed) for share in prompts.dealt(early.parts)]
            for share in reversed(shares):
                early.put(share)
                await asyncio.sleep(0.01)
            self.calls.append("generated")
            return Rollouts.concat(shares)
        self.calls.append("generate")
        assert self.published is not None, "the engine was asked before any weights were published"
        part = Part.of_all(len(prompts), 3) if part is None else part
        rows, width = prompts.tokens.shape
        left = torch.tensor([self.length_of(index) for index in prompts.prompt_index.tolist()]) - part.begun
        new = torch.minimum(left, part.limit)
        tokens = torch.nn.functional.pad(prompts.tokens, (0, int(new.max())))
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, (start, count) in enumerate(zip(prompts.lengths.tolist(), new.tolist(), strict=True)):
            tokens[row, start : start + count] = 5
            mask[row, start : start + count] = True
        finished = torch.tensor([row not in self.unfinished for row in range(rows)]) & (left <= part.limit)
        sampled = torch.where(mask, torch.tensor(self.published), 0.0)
        return Rollouts(
            tokens,
            prompts.lengths + new,
            mask,
            sampled,
            finished,
            prompts.prompt_index,
            torch.full((rows,), self.version),
        )

    def length_of(self, index: int) -> int:
        """Tokens of the response to that prompt."""
        return 3

    async def values(self, rollouts: Rollouts) -> Values:
        self.calls.append("critic.values")
        return Values(torch.where(rollouts.response_mask, 0.5, 0.0), torch.full((len(rollouts),), 2.0))

    async def scores(self, rollouts: Rollouts) -> Scores:
        self.calls.append("reward.scores")
        total = rollouts.prompt_index.float()
        return Scores(total, total[:, None], ("fake",))

    async def publish(self, version: int) -> dict[str, float]:
        self.calls.append(f"publish {version}")
        self.may_be_lost("publish")
        self.published, self.version = self.logprob, version
        return {"sync/version": float(version)}

    async def export(self, version: int) -> tuple[tuple[int, float], dict[str, float]]:
        self.calls.append(f"export {version}")
        self.may_be_lost("export")
        return (version, self.logprob), {"sync/version": float(version)}

    async def load(self, copy: tuple[int, float]) -> None:
        self.version, self.published = copy
        self.calls.append(f"load {self.version}")

    def may_be_lost(self, call: str) -> None:
        self.asked[call] += 1
        if (call, self.asked[call]) in self.lost_at:
            self.logprob = float("nan")
            raise StateLost(f"{call}: a rank died")

    @property
    def policy(self) -> FakePolicy:
        return FakePolicy(self)

    @property
    def critic(self) -> FakeCritic:
        return FakeCritic(self)

    @property
    def frozen(self) -> FakeReference:
        return FakeReference(self)


@dataclass
class FakeReference:
    shared: FakeRoles

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        self.shared.calls.append("reference.logprobs")
        return torch.where(rollouts.response_mask, self.shared.reference, 0.0)


@dataclass
class FakePolicy:
    shared: FakeRoles

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        self.shared.calls.append("policy.logprobs")
        self.shared.may_be_lost("policy.logprobs")
        return torch.where(rollouts.response_mask, self.shared.logprob, 0.0)

    async def update(
        self, batch: PolicyBatch, step: int, kl_coefficient: float, texts: object = None
    ) -> dict[str, float]:
        self.shared.calls.append("policy.update")
        self.shared.texts[step] = texts
        self.shared.kl_coefficients.append(kl_coefficient)
        self.shared.updates += 1
        self.shared.may_be_lost("policy.update")
        if self.shared.updates in self.shared.diverges_at:
            self.shared.logprob = float("nan")
            raise DivergenceError("the policy's training diverged")
        self.shared.batches.append(batch)
        self.shared.logprob += 0.125
        return {"loss/policy_avg": 0.25}

    async def save(self, directory: str) -> None:
        self.shared.may_be_lost("policy.save")
        os.makedirs(f"{directory}/model", exist_ok=True)
        with open(f"{directory}/model/config.json", "w") as file:
            json.dump(self.shared.logprob, file)

    async def restart(self) -> None:
        self.shared.may_be_lost("policy.restart")
        self.shared.restarts += 1
        self.shared.logprob = self.shared.untrained

    async def load(self, directory: str, lr_scale: float) -> None:
        self.shared.may_be_lost("policy.load")
        self.shared.lr_scales.append(lr_scale)
        with open(f"{directory}/model/config.json") as file:
            self.shared.logprob = json.load(file)


@dataclass
class FakeCritic:
    shared: FakeRoles

    async def values(self, rollouts: Rollouts) -> Values:
        return await self.shared.values(rollouts)

    async def update(self, batch: CriticBatch, step: int) -> dict[str, float]:
        self.shared.calls.append("critic.update")
        self.shared.may_be_lost("critic.update")
        self.shared.batches.append(batch)
        return {"loss/value_avg": 0.5}

    async def save(self, directory: str) -> None:
        self.shared.may_be_lost("critic.save")
        os.makedirs(f"{directory}/state", exist_ok=True)

    async def load(self, directory: str, lr_scale: float) -> None:
        assert os.path.isdir(f"{directory}/state")

    async def restart(self) -> None:
        self.shared.restarts += 1


def prompts(rows: int, first: int = 0) -> Prompts:
    """Prompts of 1 and 2 tokens in turn, numbered from `first`."""
    lengths = torch.tensor([1 + row % 2 for row in range(rows)])
    tokens = torch.ones(rows, 2, dtype=torch.int64)
    tokens[lengths == 1, 1] = 0
    return Prompts(tokens, lengths, torch.arange(first, first + rows))
