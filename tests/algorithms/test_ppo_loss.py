import math

import pytest
import torch

from rayrlhf.algorithms.ppo_loss import policy_loss, value_loss


def row(*numbers):
    return torch.tensor([list(numbers)])


def test_policy_loss_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5 with low 0.2 and high 0.3; advantages +, -, +, -
    #   +2 at 1.5: clipped to 1.3  -> -2.6   clipped
    #   -2 at 1.5: not clipped     -> +3.0
    #   +2 at 0.5: not clipped     -> -1.0
    #   -4 at 0.5: clipped to 0.8  -> +3.2   clipped
    old = row(-1.0, -1.0, -2.0, -2.0)
    new = old + row(1.5, 1.5, 0.5, 0.5).log()
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, stats = policy_loss(new, old, row(2.0, -2.0, 2.0, -4.0), mask, clip_low=0.2, clip_high=0.3)
    assert loss.item() == pytest.approx((-2.6 + 3.0 - 1.0 + 3.2) / 4)
    assert stats["loss/policy"].item() == loss.item()
    assert stats["policy/clipfrac"].item() == 0.5
    assert stats["policy/ratio"].item() == pytest.approx(1.0)
    assert stats["policy/approxkl"].item() == pytest.approx((math.log(1.5) ** 2 + math.log(0.5) ** 2) / 4)


def test_policy_gradient_by_hand():
    # d(-A ratio) / d logp = -A ratio where not clipped, 0 where clipped; over 4 tokens
    old = row(-1.0, -1.0, -2.0, -2.0)
    new = (old + row(1.5, 1.5, 0.5, 0.5).log()).requires_grad_()
    mask = torch.ones(1, 4, dtype=torch.bool)
    policy_loss(new, old, row(2.0, -2.0, 2.0, -2.0), mask, 0.2, 0.3)[0].backward()
    torch.testing.assert_close(new.grad, row(0.0, 3.0 / 4, -1.0 / 4, 0.0))


def test_ratio_one_gives_minus_the_mean_advantage_and_the_plain_policy_gradient(ragged_mask, normal):
    mask, logprobs, advantages = ragged_mask(4, 6, 0), normal(1, 4, 6).requires_grad_(), normal(2, 4, 6)
    loss, stats = policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.2)
    loss.backward()
    n = int(mask.sum())
    assert loss.item() == pytest.approx(-advantages[mask].mean().item())
    assert stats["policy/ratio"].item() == pytest.approx(1.0)
    assert stats["policy/clipfrac"].item() == 0 and stats["policy/approxkl"].item() == 0
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages / n, 0.0))


def slow_policy_loss(new, old, advantages, mask, low, high, dual_clip):
    total = clipped_count = 0.0
    for b, t in mask.nonzero().tolist():
        ratio = math.exp(min(max((new[b, t] - old[b, t]).item(), -20), 20))
        a = advantages[b, t].item()
        surrogate = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        clipped_count += surrogate < ratio * a
        if dual_clip is not None and a < 0:
            surrogate = max(surrogate, dual_clip * a)
        total += surrogate
    n = int(mask.sum())
    return -total / n, clipped_count / n


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_policy_loss_against_a_slow_loop(dual_clip, ragged_mask, normal):
    for seed in range(5):
        mask, new = ragged_mask(5, 8, seed), normal(seed, 5, 8)
        old, advantages = normal(seed + 50, 5, 8), normal(seed + 100, 5, 8)
        expected, fraction = slow_policy_loss(new, old, advantages, mask, 0.1, 0.4, dual_clip)
        loss, stats = policy_loss(new, old, advantages, mask, 0.1, 0.4, dual_clip=dual_clip)
        assert loss.item() == pytest.approx(expected)
        assert stats["policy/clipfrac"].item() == pytest.approx(fraction)


def test_dual_clip_by_hand():
    # A = -1: ratio 10 costs 10, bounded to 3 without gradient; ratio 2 keeps its 2
    old, mask = row(0.0, 0.0), torch.ones(1, 2, dtype=torch.bool)
    new = row(10.0, 2.0).log().requires_grad_()
    assert policy_loss(new, old, row(-1.0, -1.0), mask, 0.2, 0.2)[0].item() == pytest.approx(6.0)
    loss, _ = policy_loss(new, old, row(-1.0, -1.0), mask, 0.2, 0.2, dual_clip=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(2.5)
    torch.testing.assert_close(new.grad, row(0.0, 1.0))


def test_log_ratio_is_clamped_at_20():
    mask = torch.ones(1, 1, dtype=torch.bool)
    new = row(0.0).requires_grad_()
    loss, stats = policy_loss(new, row(-500.0), row(-1.0), mask, 0.2, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert stats["policy/approxkl"].item() == 200.0
    assert torch.isfinite(new.grad).all()
    small, _ = policy_loss(row(-500.0), row(0.0), row(1.0), mask, 0.2, 0.2)
    assert small.item() == pytest.approx(-math.exp(-20), rel=1e-5)


def policy(x, y, z, mask, n=None):
    return policy_loss(x, y, z, mask, 0.1, 0.2, num_tokens=n)


def value(x, y, z, mask, n=None):
    return value_loss(x, y, z, mask, 0.5, num_tokens=n)


BOTH = pytest.mark.parametrize("loss_of", [policy, value])


@BOTH
def test_microbatches_with_the_global_count_add_up(loss_of, ragged_mask, normal):
    mask, tensors = ragged_mask(6, 7, 3), [normal(seed, 6, 7) for seed in (7, 8, 9)]
    whole = tensors[0].clone().requires_grad_()
    loss, stats = loss_of(whole, *tensors[1:], mask)
    loss.backward()
    parts = tensors[0].clone().requires_grad_()
    n, total, sums = int(mask.sum()), 0.0, dict.fromkeys(stats, 0.0)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 6), slice(0, 0)):  # the last: a filler without rows
        loss_part, stats_part = loss_of(parts[rows], *(x[rows] for x in tensors[1:]), mask[rows], n)
        loss_part.backward()
        total += loss_part.item()
        for name, number in stats_part.items():
            sums[name] += number.item()
    assert total == pytest.approx(loss.item())
    assert sums == pytest.approx({name: number.item() for name, number in stats.items()})
    torch.testing.assert_close(parts.grad, whole.grad)


@BOTH
def test_gradient_by_finite_differences(loss_of, ragged_mask, normal):
    mask, (x, y, z) = ragged_mask(3, 5, 4), (normal(seed, 3, 5) for seed in (10, 11, 12))
    assert torch.autograd.gradcheck(lambda v: loss_of(v, y, z, mask)[0], x.requires_grad_())


@BOTH
def test_the_other_inputs_are_constants_and_stats_carry_no_graph(loss_of, normal):
    mask = torch.ones(2, 3, dtype=torch.bool)
    x, y, z = (normal(seed, 2, 3).requires_grad_() for seed in (1, 2, 3))
    loss, stats = loss_of(x, y, z, mask)
    loss.backward()
    assert x.grad is not None and y.grad is None and z.grad is None
    assert not any(number.requires_grad for number in stats.values())


@BOTH
def test_empty_rows_and_batches_are_refused(loss_of):
    mask = torch.tensor([[True, True], [False, False]])
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        loss_of(x, x, x, mask, 10)
    with pytest.raises(ValueError, match="needs the global count"):
        loss_of(x[:0], x[:0], x[:0], mask[:0])
    with pytest.raises(ValueError, match="but the mask has"):
        loss_of(x, x, x[:1], mask)


def test_value_loss_by_hand():
    # old 0, clip 0.2.  V = 1 and R = 2: (1-2)^2 = 1 < (0.2-2)^2 = 3.24, clipped
    # V = 1, R = -1: 4 > 1.44, not clipped.  V = 0.1, R = 0.5: inside the clip, 0.16
    values = row(1.0, 1.0, 0.1).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, stats = value_loss(values, row(0.0, 0.0, 0.0), row(2.0, -1.0, 0.5), mask, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (3.24 + 4.0 + 0.16) / 3)
    assert stats["loss/value"].item() == loss.item()
    assert stats["critic/clipfrac"].item() == pytest.approx(1 / 3)
    torch.testing.assert_close(values.grad, row(0.0, 2.0 / 3, -0.4 / 3))


def test_value_loss_against_a_slow_loop(ragged_mask, normal):
    mask, (new, old, target) = ragged_mask(5, 8, 6), (normal(seed, 5, 8) for seed in (1, 2, 3))
    total = 0.0
    for b, t in mask.nonzero().tolist():
        v, o, r = new[b, t].item(), old[b, t].item(), target[b, t].item()
        total += 0.5 * max((v - r) ** 2, (min(max(v, o - 0.3), o + 0.3) - r) ** 2)
    assert value_loss(new, old, target, mask, 0.3)[0].item() == pytest.approx(total / int(mask.sum()))
    plain = 0.5 * ((new - target)[mask] ** 2).mean().item()
    assert value_loss(new, old, target, mask, float("inf"))[0].item() == pytest.approx(plain)


def test_clips_out_of_range_are_refused():
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="clip_low is -0.1"):
        policy_loss(x, x, x, mask, -0.1, 0.2)
    with pytest.raises(ValueError, match="dual_clip is 1.0"):
        policy_loss(x, x, x, mask, 0.2, 0.2, dual_clip=1.0)
    with pytest.raises(ValueError, match="clip is 0.0"):
        value_loss(x, x, x, mask, 0.0)
