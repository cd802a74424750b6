"""Joining the parts of responses, by hand."""

from dataclasses import replace

import pytest
import torch

from rayrlhf.batches import Prompts, Rollouts
from rayrlhf.partial_rollouts import cut_rows, first_parts, joined, next_part_at, next_parts, num_parts, partial_share


def batch(rows: list[tuple[list[int], list[float], bool, int]], prompt: int = 2, first: int = 0) -> Rollouts:
    """Rows of (tokens after a prompt of that many 9s, log-probs of the last ones, finished, version)."""
    width = prompt + max(len(tokens) for tokens, *_ in rows)
    tokens, logprobs = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (found, sampled, *_) in enumerate(rows):
        end = prompt + len(found)
        tokens[row, :end] = torch.tensor([9] * prompt + found)
        logprobs[row, end - len(sampled) : end] = torch.tensor(sampled)
        mask[row, end - len(sampled) : end] = True
    return Rollouts(
        tokens,
        torch.tensor([prompt + len(found) for found, *_ in rows]),
        mask,
        logprobs,
        torch.tensor([finished for *_, finished, _ in rows]),
        torch.arange(first, first + len(rows)),
        torch.tensor([version for *_, version in rows]),
    )


BEGUN = batch([([1, 2], [-0.1, -0.2], False, 3), ([5], [-0.5], True, 3), ([3, 4], [-0.3, -0.4], False, 3)])


@pytest.mark.parametrize("longest, part, count", [(5, 2, 3), (6, 2, 3), (6, 6, 1), (1, 1, 1)])
def test_the_longest_response_has_so_many_parts(longest, part, count):
    assert num_parts(longest, part) == count


def test_rows_that_have_not_ended_go_on_after_their_tokens():
    rows = cut_rows(BEGUN, 5)
    assert rows.tolist() == [0, 2]
    assert cut_rows(BEGUN, 2).tolist() == [], "at the length limit they are whole"
    prompts, part = next_parts(BEGUN, rows, part_tokens=2, max_new_tokens=5)
    assert prompts.tokens.tolist() == [[9, 9, 1, 2], [9, 9, 3, 4]]
    assert prompts.lengths.tolist() == [4, 4] and prompts.prompt_index.tolist() == [0, 2]
    assert part.begun.tolist() == [2, 2] and part.limit.tolist() == [2, 2]
    assert next_parts(BEGUN, rows, part_tokens=9, max_new_tokens=5)[1].limit.tolist() == [3, 3]
    new, part = first_parts(Prompts(prompts.tokens, prompts.lengths, prompts.prompt_index), 2)
    assert new is not None and part.begun.tolist() == [0, 0] and part.limit.tolist() == [2, 2]


def test_parts_are_joined_in_their_rows():
    more = batch([([1, 2, 6, 7], [-0.6, -0.7], False, 4), ([3, 4, 8], [-0.8], True, 4)])
    whole = joined(BEGUN, torch.tensor([0, 2]), replace(more, prompt_index=torch.tensor([0, 2])))
    expected = batch(
        [
            ([1, 2, 6, 7], [-0.1, -0.2, -0.6, -0.7], False, 3),
            ([5], [-0.5], True, 3),
            ([3, 4, 8], [-0.3, -0.4, -0.8], True, 3),
        ]
    )
    for name in Rollouts.SHAPES:
        assert torch.equal(getattr(whole, name), getattr(expected, name)), name
    assert partial_share(whole, 2) == pytest.approx(2 / 3)


def test_a_shorter_part_than_the_batch_is_wide_is_joined_too():
    wide = batch([([1], [-0.1], False, 0), ([5, 6, 7, 8], [-0.5, -0.6, -0.7, -0.8], True, 0)])
    whole = joined(wide, torch.tensor([0]), batch([([1, 2], [-0.2], True, 1)]))
    assert whole.tokens.tolist() == [[9, 9, 1, 2, 0, 0], [9, 9, 5, 6, 7, 8]]
    assert torch.allclose(whole.sampled_logprobs[0], torch.tensor([0, 0, -0.1, -0.2, 0, 0]))
    assert whole.finished.all() and whole.lengths.tolist() == [4, 6]


def test_the_length_of_a_cut_row_tells_whose_turn_is_next():
    assert next_part_at({4: BEGUN}, max_new_tokens=5, part_tokens=2) == 5
    ended = batch([([5], [-0.5], True, 3)])
    longer = batch([([1, 2, 3, 4], [-0.1] * 4, False, 3)])
    assert next_part_at({4: ended, 5: longer}, max_new_tokens=5, part_tokens=2) == 7
    assert next_part_at({4: ended}, max_new_tokens=5, part_tokens=2) is None
    assert next_part_at({}, max_new_tokens=5, part_tokens=2) is None
