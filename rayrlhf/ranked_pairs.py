"""The best and the worst of each prompt's samples, as a preference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rayrlhf.batches import Rollouts
from rayrlhf.rollout_texts import texts_of


@dataclass(frozen=True)
class Ranked:
    """Two samples of one prompt; `prompt` is as the user gave it, a string or messages."""

    prompt: Any
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


def ranked_pairs(
    prompts: list[Any], rollouts: Rollouts, scores: Tensor, tokenizer: Any, group_size: int, min_margin: float
) -> list[Ranked]:
    """At most one pair a prompt, from its `group_size` rows of `rollouts`, which lie side by side.

    scores f32 `[B]`.  A sample cut by the length limit takes no part: as a training row it would end
    where its writer did not mean to.  No pair comes of two equal texts, nor of scores within `min_margin`.
    """
    _, responses = texts_of(rollouts, tokenizer)
    values, finished = scores.tolist(), rollouts.finished.tolist()
    found = []
    for number, prompt in enumerate(prompts):
        rows = [row for row in range(number * group_size, (number + 1) * group_size) if finished[row]]
        if len(rows) < 2:
            continue
        best, worst = max(rows, key=values.__getitem__), min(rows, key=values.__getitem__)
        if responses[best] != responses[worst] and values[best] - values[worst] > min_margin:
            found.append(Ranked(prompt, responses[best], responses[worst], values[best], values[worst]))
    return found


@dataclass
class Totals:
    """Means over what has been ranked so far."""

    num_prompts: int = 0
    num_pairs: int = 0
    num_samples: int = 0
    score: float = 0.0
    margin: float = 0.0

    def add(self, found: list[Ranked], scores: Tensor, num_prompts: int) -> dict[str, float]:
        """Count one batch in; returns that batch's own means."""
        batch = Totals(num_prompts, len(found), len(scores), float(scores.double().sum()))
        batch.margin = sum(pair.chosen_score - pair.rejected_score for pair in found)
        for name, value in vars(batch).items():
            setattr(self, name, getattr(self, name) + value)
        return batch.means()

    def means(self) -> dict[str, float]:
        """Mean score of a sample, share of prompts that gave a pair, and mean margin of a pair, where there is one."""
        means = {"pairs/score": self.score / self.num_samples, "pairs/kept_share": self.num_pairs / self.num_prompts}
        return means | ({"pairs/margin": self.margin / self.num_pairs} if self.num_pairs else {})
