"""Pairs of ranked samples, by hand."""

from __future__ import annotations

from typing import Any

import torch

from rayrlhf.batches import Rollouts
from rayrlhf.ranked_pairs import Ranked, Totals, ranked_pairs


class Letters:
    """Token n is the n-th letter."""

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + int(token)) for token in tokens)


def rollouts(responses: list[list[int]], finished: list[bool]) -> Rollouts:
    """Each response after a prompt of one token."""
    tokens = torch.zeros((len(responses), 4), dtype=torch.long)
    mask = torch.zeros((len(responses), 4), dtype=torch.bool)
    for row, response in enumerate(responses):
        tokens[row, 1 : 1 + len(response)] = torch.tensor(response)
        mask[row, 1 : 1 + len(response)] = True
    count = torch.arange(len(responses))
    lengths = torch.tensor([1 + len(response) for response in responses])
    return Rollouts(tokens, lengths, mask, torch.zeros(mask.shape), torch.tensor(finished), count, count)


def test_the_best_and_the_worst_finished_sample_make_a_pair() -> None:
    sampled = rollouts(
        [[1], [2, 3], [4], [5], [6], [7], [1], [1], [1], [2], [3], [4]],
        [True, True, True, True, False, False, True, True, True, True, True, False],
    )
    scores = torch.tensor([1.0, 3.0, 2.0, 0.0, 9.0, -9.0, 1.0, 2.0, 3.0, 5.0, 5.25, 0.0])
    prompts: list[Any] = ["p", "q", [{"role": "user", "content": "r"}], "s"]
    tokenizer: Any = Letters()
    # q has one finished sample, those of r are alike, and of s the worst is not finished
    assert ranked_pairs(prompts, sampled, scores, tokenizer, 3, 0.0) == [
        Ranked("p", "cd", "b", 3.0, 1.0),
        Ranked("s", "d", "c", 5.25, 5.0),
    ]
    found = ranked_pairs(prompts, sampled, scores, tokenizer, 3, 0.25)
    assert [pair.prompt for pair in found] == ["p"], "5.25 is not more than 0.25 above 5"


def test_totals_add_up() -> None:
    totals, pair = Totals(), Ranked("p", "a", "b", 3.0, 1.0)
    assert totals.add([pair], torch.tensor([3.0, 1.0, 0.0, 0.0]), num_prompts=2) == {
        "pairs/score": 1.0, "pairs/kept_share": 0.5, "pairs/margin": 2.0,
    }  # fmt: skip
    assert totals.add([], torch.tensor([2.0, 4.0]), num_prompts=1) == {"pairs/score": 3.0, "pairs/kept_share": 0.0}
    assert totals.means() == {"pairs/score": 10 / 6, "pairs/kept_share": 1 / 3, "pairs/margin": 2.0}
