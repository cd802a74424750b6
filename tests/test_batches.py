"""The shape checks name the field and both shapes; row operations keep rows whole."""

import pickle

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


def test_a_batch_comes_out_of_a_pickle_as_it_went_in():
    tokens = torch.arange(12).reshape(3, 4)
    given = Scores(torch.tensor([0.5, float("nan")]), torch.randn(4, 2)[::2], ("reward_model", "length"))
    for batch in (given, Prompts(tokens.t(), tokens[0], tokens[1])):  # neither's tensors lie in one piece
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
        again = pickle.loads(data, buffers=buffers)
        assert type(again) is type(batch)
        for name in batch.SHAPES:
            assert torch.equal(getattr(again, name).nan_to_num(), getattr(batch, name).nan_to_num())
        assert len(data) < 1000, "the tensors' bytes are in the buffers"
    assert again.lengths.tolist() == [0, 1, 2, 3] and given.names == ("reward_model", "length")


def test_an_unpickled_batch_shares_no_memory():
    batch = prompts([2, 1], 2)
    buffers: list[pickle.PickleBuffer] = []
    again = pickle.loads(pickle.dumps(batch, protocol=5, buffer_callback=buffers.append), buffers=buffers)
    again.tokens.fill_(7)
    assert batch.tokens.tolist() == [[1, 2], [1, 0]]


def test_rows_pickle_without_the_rows_beside_them():
    whole = Prompts(torch.zeros(1000, 64, dtype=torch.int64), torch.ones(1000).long(), torch.arange(1000))
    assert len(pickle.dumps(whole.rows(slice(3, 4)), protocol=5)) < 2000
