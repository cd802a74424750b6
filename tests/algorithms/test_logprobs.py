import math

import pytest
import torch

from rayrlhf.algorithms import logprobs as module
from rayrlhf.algorithms.logprobs import chosen_logprobs, chosen_logprobs_and_entropy, token_logprobs

# after token 0 the odds are 1 : 1 : 2, after token 1 they are 1 : 3 : 4; the last logits predict nothing
LOGITS = torch.tensor([[[1.0, 1.0, 2.0], [1.0, 3.0, 4.0], [9.0, 1.0, 1.0]]]).log()
TOKENS = torch.tensor([[0, 2, 1]])


def test_logprobs_by_hand():
    expected = [[0.0, math.log(2 / 4), math.log(3 / 8)]]
    torch.testing.assert_close(token_logprobs(LOGITS, TOKENS), torch.tensor(expected))


def test_temperature_divides_the_logits():
    # temperature 1/2 squares the odds: 1 : 1 : 4 and 1 : 9 : 16
    expected = [[0.0, math.log(4 / 6), math.log(9 / 26)]]
    torch.testing.assert_close(token_logprobs(LOGITS, TOKENS, temperature=0.5), torch.tensor(expected))


def test_entropy_by_hand():
    first = -(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5))
    second = -sum(p * math.log(p) for p in (1 / 8, 3 / 8, 4 / 8))
    of_two = chosen_logprobs_and_entropy(LOGITS[0, :2], TOKENS[0, 1:])
    torch.testing.assert_close(of_two, (torch.tensor([2 / 4, 3 / 8]).log(), torch.tensor([first, second])))
    entropy = chosen_logprobs_and_entropy(LOGITS[0, :1], TOKENS[0, :1], temperature=1e6)[1]
    assert entropy.item() == pytest.approx(math.log(3), abs=1e-5)


@pytest.mark.parametrize("rows_of_a_chunk", [1, 2, 100])
@pytest.mark.parametrize("uses", ["logprobs", "entropy", "both"])
def test_gradients_are_those_of_log_softmax(normal, monkeypatch, uses, rows_of_a_chunk):
    monkeypatch.setitem(module._CHUNK, "cpu", 7 * rows_of_a_chunk)
    tokens = torch.randint(0, 7, (5,), generator=torch.Generator().manual_seed(2))
    found = []
    for is_ours in (True, False):
        logits = normal(1, 5, 7).float().requires_grad_()
        if is_ours:
            logprobs, entropy = chosen_logprobs_and_entropy(logits, tokens, 0.7)
        else:
            whole = torch.log_softmax(logits / 0.7, dim=-1)
            logprobs, entropy = whole.gather(-1, tokens[:, None])[:, 0], -(whole.exp() * whole).sum(-1)
        weights = torch.arange(1.0, 6)
        of = {"logprobs": weights @ logprobs, "entropy": weights @ entropy}
        (of[uses] if uses in of else of["logprobs"] - 0.3 * of["entropy"]).backward()
        found.append((logprobs.detach(), entropy.detach(), logits.grad))
    torch.testing.assert_close(found[0], found[1])


def test_no_rows_are_still_attached():
    logits = torch.zeros(3, 4, requires_grad=True)
    logprobs, entropy = chosen_logprobs_and_entropy(logits[:0], torch.zeros(0, dtype=torch.long))
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == (0,) and torch.equal(logits.grad, torch.zeros(3, 4))


def test_against_a_slow_loop(normal):
    logits = normal(0, 3, 5, 7)
    tokens = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    result = token_logprobs(logits, tokens, temperature=0.7)
    assert result.dtype == torch.float32
    for b in range(3):
        assert result[b, 0] == 0
        for t in range(1, 5):
            weights = [math.exp(x / 0.7) for x in logits[b, t - 1].tolist()]
            expected = math.log(weights[tokens[b, t]] / sum(weights))
            assert result[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_bfloat16_logits_are_reduced_in_float32():
    logits = LOGITS.bfloat16()
    torch.testing.assert_close(token_logprobs(logits, TOKENS), token_logprobs(logits.float(), TOKENS), atol=0, rtol=0)


def test_gradient_is_one_minus_probability():
    logits = LOGITS.clone().requires_grad_()
    token_logprobs(logits, TOKENS)[0, 1].backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([-0.25, -0.25, 0.5]))
    assert (logits.grad[0, 1:] == 0).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"logits have shape \[1, 3, 3\], but tokens have \[1, 2\]"):
        token_logprobs(LOGITS, TOKENS[:, :2])
    with pytest.raises(ValueError, match=r"logits have shape \[3, 3\], but tokens have \[2\]"):
        chosen_logprobs(LOGITS[0], TOKENS[0, :2])
    for function in (lambda t: token_logprobs(LOGITS, TOKENS, t), lambda t: chosen_logprobs(LOGITS[0], TOKENS[0], t)):
        with pytest.raises(ValueError, match="temperature is 0"):
            function(0.0)
