import math

import pytest
import torch

from rayrlhf.algorithms.kl import kl_estimate, kl_loss

NAN = float("nan")
LOGPROBS = torch.tensor([[-1.0, -2.0]])
REF = torch.tensor([[-1.5, -1.0]])  # k1 = 0.5, -1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [[0.5, -1.0]]),
        ("k2", [[0.125, 0.5]]),
        ("k3", [[0.1065307, 0.7182818]]),  # exp(-0.5) - 1 + 0.5, e - 1 - 1
    ],
)
def test_estimates_by_hand(kind, expected):
    torch.testing.assert_close(kl_estimate(LOGPROBS, REF, kind), torch.tensor(expected))
    assert kl_estimate(REF, REF, kind).abs().max() == 0


def test_k1_and_k3_have_the_kl_as_their_expectation():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    exact = sum(a * math.log(a / b) for a, b in ((0.5, 0.2), (0.3, 0.2), (0.2, 0.6)))
    for kind in ("k1", "k3"):
        assert (p * kl_estimate(p.log(), q.log(), kind)).sum().item() == pytest.approx(exact, abs=1e-6)


def test_k3_keeps_its_digits_near_zero():
    tiny = kl_estimate(torch.tensor([[-1.0 + 2**-12]]), torch.tensor([[-1.0]]), "k3").item()
    assert tiny == pytest.approx(2**-25, rel=1e-3)  # k1^2 / 2


def test_unknown_kind_and_shapes():
    with pytest.raises(ValueError, match="kind is 'k4'"):
        kl_estimate(LOGPROBS, REF, "k4")
    with pytest.raises(ValueError, match=r"\[1, 2\], but ref_logprobs have \[1, 1\]"):
        kl_estimate(LOGPROBS, REF[:, :1], "k1")


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_loss_is_the_mean_estimate_over_response_tokens(kind, ragged_mask, normal):
    mask, new, ref = ragged_mask(4, 7, 3), normal(1, 4, 7), normal(2, 4, 7)
    total = 0.0
    for b, t in mask.nonzero().tolist():
        k1 = (new[b, t] - ref[b, t]).item()
        total += k1 * k1 / 2 if kind == "k2" else math.exp(-k1) - 1 + k1
    loss, stats = kl_loss(new, ref, mask, kind)
    assert loss.item() == pytest.approx(total / int(mask.sum()))
    assert stats["loss/kl"].item() == loss.item()
    assert kl_loss(new, ref, mask, kind, num_tokens=1000)[0].item() == pytest.approx(total / 1000)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_loss_never_reads_outside_the_mask(kind):
    mask = torch.tensor([[True, False]])
    logprobs = torch.tensor([[-1.0, NAN]], requires_grad=True)
    loss, _ = kl_loss(logprobs, torch.tensor([[-1.5, NAN]]), mask, kind)
    loss.backward()
    # d k2 / d logp = k1; d k3 / d logp = 1 - exp(-k1)
    assert logprobs.grad[0].tolist() == pytest.approx([0.5 if kind == "k2" else 1 - math.exp(-0.5), 0.0])


def test_gradients_in_expectation():
    """Weighted by the policy: k2 has KL(policy || ref)'s gradient, k3 KL(ref || policy)'s, k1 none."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    log_p = torch.log_softmax(logits, 0)
    weights = log_p.detach().exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    expected = {
        "k1": torch.zeros(3, dtype=torch.float64),
        "k2": gradient((log_p.exp() * (log_p - ref)).sum()),
        "k3": gradient((ref.exp() * (ref - log_p)).sum()),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(gradient((weights * kl_estimate(log_p, ref, kind)).sum()), value)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="zero expected gradient: set k2 or k3"):
        kl_loss(LOGPROBS, REF, torch.ones(1, 2, dtype=torch.bool), "k1")


def test_empty_row_is_refused():
    with pytest.raises(ValueError, match="hold no True"):
        kl_loss(LOGPROBS, REF, torch.zeros(1, 2, dtype=torch.bool), "k2")
