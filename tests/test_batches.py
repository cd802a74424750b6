"""The shape checks name the field and both shapes; row operations keep rows whole."""

import pytest
import torch

from rayrlhf.batches import Prompts, Scores, Values


def prompts(lengths: list[int], width: int, start: int = 0) -> Prompts:
    tokens = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.arange(1, length + 1)
    return Prompts(tokens, torch.tensor(lengths), torch.arange(start, start + len(lengths)))


def test_a_wrong_shape_names_the_field_and_both_shapes():
    with pytest.raises(ValueError, match=r"Values.bootstrap has shape \[3\], but B is 2 in Values.values"):
        Values(torch.zeros(2, 5), torch.zeros(3))


def test_a_wrong_dtype_names_the_field():
    with pytest.raises(TypeError, match="Prompts.lengths must have dtype i64, got torch.float32"):
        Prompts(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_scores_need_a_name_for_each_component():
    with pytest.raises(ValueError, match="there are 1 names"):
        Scores(torch.zeros(2), torch.zeros(2, 3), ("reward_model",))


def test_concat_pads_on_the_right_and_keeps_order():
    whole = Prompts.concat([prompts([2, 1], 2), prompts([4], 4, start=2)])
    assert whole.tokens.tolist() == [[1, 2, 0, 0], [1, 0, 0, 0], [1, 2, 3, 4]]
    assert whole.prompt_index.tolist() == [0, 1, 2]
    assert whole.rows([2, 0]).lengths.tolist() == [4, 2]
