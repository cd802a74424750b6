"""Invariances of everything in `rayrlhf/algorithms`, on generated batches.

What stands outside a mask is never read and moves no gradient; the order of rows, padding and holes change
nothing; nor does a number added to both sides of a difference.  A function joins by an entry in a table.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot, pad

from rayrlhf import algorithms
from rayrlhf.algorithms.advantages import gae, grpo, rloo
from rayrlhf.algorithms.alignment import shift_right
from rayrlhf.algorithms.head_shift import unit_direction
from rayrlhf.algorithms.kl import kl_estimate, kl_loss
from rayrlhf.algorithms.logprobs import chosen_logprobs, chosen_logprobs_and_entropy, token_logprobs
from rayrlhf.algorithms.loss_weights import importance_weights, token_weights
from rayrlhf.algorithms.masking import check_mask, count, masked_mean, masked_sum, masked_whiten, zero_outside
from rayrlhf.algorithms.ppo_loss import policy_loss, value_loss
from rayrlhf.algorithms.preference_loss import binary, bradley_terry, dpo, ipo, kto, ranking, regression
from rayrlhf.algorithms.rewards import last_response_index, token_rewards
from rayrlhf.algorithms.score_shaping import ScoreShaping

EXAMPLES = settings(max_examples=40)
FILLERS = (float("nan"), float("inf"), -1e30)  # finite too: a comparison with NaN is False and would hide a read
seeds = st.integers(0, 2**16)


def numbers(seed: int, *shape: int) -> Tensor:
    """float64 multiples of 1/8 within [-3, 3]: ties happen, and sums and differences are exact."""
    return torch.randint(-24, 25, shape, generator=torch.Generator().manual_seed(seed)).double() / 8


def shuffle(seed: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def with_gradients(call: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], weigh: Tensor) -> list[Tensor]:
    """What `call` gives, then the gradient at each argument of the sum of that, per token weighed by `weigh`."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    found = call(*leaves)
    total = [(x * weigh if x.dim() else x).sum() for x in found if x.requires_grad]
    gradients = torch.autograd.grad(sum(total), leaves, materialize_grads=True) if total else ()
    return [*(x.detach() for x in found), *gradients]


def assert_all_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


# ---- under a mask


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """bool `[B, T]`, B 2 to 4, T 1 to 6, any rows with a True."""
    rows, length = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    patterns = draw(st.lists(st.integers(1, 2**length - 1), min_size=rows, max_size=rows))
    return torch.tensor([[bool(pattern >> t & 1) for t in range(length)] for pattern in patterns])


@dataclass(frozen=True)
class Masked:
    """`call(mask, *arguments)` gives scalars and `[B, T]`; of the arguments first `tokens` are `[B, T]`, then
    `rows` are `[B]`.  `shift`: the arguments that one number may be added to without an effect."""

    covers: tuple[Callable[..., Any], ...]
    call: Callable[..., Sequence[Tensor]]
    tokens: int = 0
    rows: int = 0
    shift: tuple[int, ...] = ()

    def arguments(self, mask: Tensor, seed: int) -> list[Tensor]:
        return [*numbers(seed, self.tokens, *mask.shape), *numbers(seed + 1, self.rows, len(mask))]

    def results(self, mask: Tensor, arguments: Sequence[Tensor], weigh: Tensor) -> list[Tensor]:
        return with_gradients(lambda *leaves: self.call(mask, *leaves), arguments, weigh)


def flat(loss_and_stats: tuple[Tensor, dict[str, Tensor]]) -> list[Tensor]:
    return [loss_and_stats[0], *loss_and_stats[1].values()]


def means(normaliser: Any) -> Masked:
    return Masked((token_weights,), lambda m: [token_weights(m, normaliser, int(m.sum()), len(m), 5.0)])


def penalty(kind: str) -> Masked:
    # rewards are data: no gradient passes through the estimate, which itself knows no mask
    def call(m: Tensor, x: Tensor, ref: Tensor, scores: Tensor) -> list[Tensor]:
        return [token_rewards(scores, kl_estimate(x.detach(), ref.detach(), kind), m, 0.3)]

    return Masked((kl_estimate, token_rewards), call, tokens=2, rows=1, shift=(0, 1))


MASKED = {
    "zero_outside": Masked((zero_outside,), lambda m, x: [zero_outside(x, m)], 1),
    "masked_sum": Masked((masked_sum,), lambda m, x: [masked_sum(x, m)], 1),
    "masked_mean": Masked((masked_mean,), lambda m, x: [masked_mean(x, m)], 1),
    "masked_whiten": Masked((masked_whiten,), lambda m, x: [masked_whiten(x, m)], 1, shift=(0,)),
    "last_response_index": Masked((last_response_index,), lambda m: [one_hot(last_response_index(m), m.shape[1])]),
    "token_rewards": Masked((token_rewards,), lambda m, kl, scores: [token_rewards(scores, kl, m, 0.3)], 1, 1),
    "token_rewards of k1": penalty("k1"),
    "token_rewards of k2": penalty("k2"),
    "token_rewards of k3": penalty("k3"),
    "kl_loss of k2": Masked((kl_loss,), lambda m, x, ref: flat(kl_loss(x, ref, m, "k2")), 2, shift=(0, 1)),
    "kl_loss of k3, weighted": Masked(
        (kl_loss,), lambda m, x, ref, w: flat(kl_loss(x, ref, m, "k3", weights=w)), 3, shift=(0, 1)
    ),
    "gae": Masked((gae,), lambda m, r, v, end: gae(r, v, m, 0.9, 0.8, end), 2, 1),
    "policy_loss": Masked(
        (policy_loss,), lambda m, x, old, a: flat(policy_loss(x, old, a, m, 0.2, 0.3)), 3, shift=(0, 1)
    ),
    "policy_loss, dual clip, weighted": Masked(
        (policy_loss,),
        lambda m, x, old, a, w: flat(policy_loss(x, old, a, m, 0.2, 0.3, dual_clip=1.5, weights=w)),
        4,
        shift=(0, 1),
    ),
    "value_loss": Masked((value_loss,), lambda m, v, old, r: flat(value_loss(v, old, r, m, 0.5)), 3, shift=(0, 1, 2)),
    "token_weights of tokens": means("tokens"),
    "token_weights of sequence_mean": means("sequence_mean"),
    "token_weights of constant": means("constant"),
    "importance_weights": Masked(
        (importance_weights,), lambda m, x, sampled: [importance_weights(x, sampled, m, 2.0)], 2, shift=(0, 1)
    ),
}
EACH_MASKED = pytest.mark.parametrize("case", MASKED.values(), ids=MASKED)


@EACH_MASKED
@EXAMPLES
@given(mask=masks(), seed=seeds)
def test_what_stands_outside_the_mask_is_never_read(case: Masked, mask: Tensor, seed: int) -> None:
    arguments, weigh = case.arguments(mask, seed), numbers(seed + 2, *mask.shape)
    expected = case.results(mask, arguments, weigh)
    assert all(x.isfinite().all() for x in expected)
    assert not any(x[~mask].any() for x in expected if x.dim() == 2), "results and gradients outside the mask are 0"
    for filler in FILLERS:
        filled = [torch.where(mask, x, filler) if x.dim() == 2 else x for x in arguments]
        for a, b in zip(case.results(mask, filled, weigh), expected, strict=True):
            assert torch.equal(a, b), filler


Move = Callable[[Tensor, float], Tensor]  # (any tensor of the batch, what a new column holds)


def rows_shuffled(mask: Tensor, seed: int) -> Move:
    order = shuffle(seed, len(mask))
    return lambda x, filler: x[order] if x.dim() else x


def columns_added(mask: Tensor, seed: int) -> Move:
    left, right = seed % 3, seed // 3 % 3
    return lambda x, filler: pad(x, (left, right), value=filler) if x.dim() == 2 else x


def holes_cut(mask: Tensor, seed: int) -> Move:
    """What the mask covers moves together, to the left."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return lambda x, filler: x.gather(1, order) if x.dim() == 2 else x


@EACH_MASKED
@pytest.mark.parametrize("change", [rows_shuffled, columns_added, holes_cut])
@EXAMPLES
@given(mask=masks(), seed=seeds)
def test_rows_padding_and_holes_change_nothing(
    case: Masked, change: Callable[[Tensor, int], Move], mask: Tensor, seed: int
) -> None:
    move, arguments, weigh = change(mask, seed), case.arguments(mask, seed), numbers(seed + 2, *mask.shape)
    expected = [move(x, 0) for x in case.results(mask, arguments, weigh)]
    moved = [move(x, float("nan")) for x in arguments]
    assert_all_close(case.results(move(mask, 0), moved, move(weigh, 0)), expected)


@pytest.mark.parametrize("name", [name for name, case in MASKED.items() if case.shift])
@EXAMPLES
@given(mask=masks(), seed=seeds, by=st.integers(-16, 16))
def test_a_number_added_to_both_sides_changes_nothing(name: str, mask: Tensor, seed: int, by: int) -> None:
    case = MASKED[name]
    arguments, weigh = case.arguments(mask, seed), numbers(seed + 2, *mask.shape)
    moved = [x + by / 8 if i in case.shift else x for i, x in enumerate(arguments)]
    assert_all_close(case.results(mask, moved, weigh), case.results(mask, arguments, weigh))


# ---- groups of samples of one prompt


GROUPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "grpo": grpo,
    "grpo without the denominator": lambda scores, size: grpo(scores, size, scale_by_std=False),
    "rloo": rloo,
}


@pytest.mark.parametrize("name", GROUPS)
@EXAMPLES
@given(num=st.integers(1, 4), size=st.integers(2, 5), seed=seeds)
def test_groups_and_their_members_may_stand_in_any_order(name: str, num: int, size: int, seed: int) -> None:
    scores, estimate = numbers(seed, num * size), GROUPS[name]
    groups = torch.arange(num * size).view(num, size)[shuffle(seed, num)]
    order = torch.cat([group[shuffle(seed + 1 + i, size)] for i, group in enumerate(groups)])
    torch.testing.assert_close(estimate(scores[order], size), estimate(scores, size)[order])


@pytest.mark.parametrize("name", GROUPS)
@EXAMPLES
@given(num=st.integers(1, 4), size=st.integers(2, 5), seed=seeds)
def test_a_group_is_centred_compared_with_itself_alone_and_free_of_its_level(
    name: str, num: int, size: int, seed: int
) -> None:
    scores, estimate = numbers(seed, num * size), GROUPS[name]
    expected = estimate(scores, size).view(num, size)
    torch.testing.assert_close(expected.sum(1), torch.zeros(num, dtype=torch.float64), atol=1e-9, rtol=0)
    levels = numbers(seed + 1, num).repeat_interleave(size)
    torch.testing.assert_close(estimate(scores + levels, size).view(num, size), expected)
    for group, alone in zip(scores.split(size), expected, strict=True):
        torch.testing.assert_close(estimate(group, size), alone)


# ---- preference data


@dataclass(frozen=True)
class Pairs:
    """`call(policy_chosen, policy_rejected, ref_chosen, ref_rejected)`, each `[N]`, gives a scalar.  `shifts`: sets
    of arguments that, in each example, one number may be added to."""

    covers: tuple[Callable[..., Any], ...]
    call: Callable[..., Tensor]
    shifts: tuple[tuple[int, ...], ...]


LOG_RATIOS = ((0, 2), (1, 3))  # policy and reference of the same text
PAIRS = {
    "bradley_terry": Pairs((bradley_terry,), lambda x, y, _a, _b: bradley_terry(x, y), ((0, 1),)),
    "regression": Pairs((regression,), lambda x, y, _a, _b: regression(x, y), ((0, 1),)),
    "binary": Pairs((binary,), lambda x, y, _a, _b: binary(x, y > 0), ()),
    "bradley_terry, margin": Pairs(
        (bradley_terry,), lambda x, y, margin, _: bradley_terry(x, y, margin=margin), ((0, 1), (0, 2))
    ),
    "dpo": Pairs((dpo,), lambda *x: dpo(*x, beta=0.3), (*LOG_RATIOS, (0, 1), (2, 3))),
    "ipo": Pairs((ipo,), lambda *x: ipo(*x, beta=0.3), (*LOG_RATIOS, (0, 1), (2, 3))),
    "kto": Pairs((kto,), lambda *x: kto(*x, kl=0.4, beta=0.3, desirable_weight=1.5), LOG_RATIOS),
}
EACH_PAIRS = pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
NONE = torch.zeros(())


@EACH_PAIRS
@EXAMPLES
@given(num=st.integers(2, 6), seed=seeds)
def test_pairs_may_stand_in_any_order(case: Pairs, num: int, seed: int) -> None:
    arguments, order = list(numbers(seed, 4, num)), shuffle(seed, num)
    loss, *gradients = with_gradients(lambda *x: [case.call(*x)], arguments, NONE)
    moved = with_gradients(lambda *x: [case.call(*x)], [x[order] for x in arguments], NONE)
    assert_all_close(moved, [loss, *(x[order] for x in gradients)])


@EXAMPLES
@given(num_chosen=st.integers(0, 4), num_rejected=st.integers(1, 4), seed=seeds)
def test_kto_knows_no_pairs(num_chosen: int, num_rejected: int, seed: int) -> None:
    """Chosen and rejected in orders of their own, and in numbers of their own."""
    chosen, rejected = numbers(seed, 2, num_chosen), numbers(seed + 1, 2, num_rejected)
    orders = shuffle(seed, num_chosen), shuffle(seed + 1, num_rejected)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return kto(chosen[0], rejected[0], chosen[1], rejected[1], kl=0.4, beta=0.3, undesirable_weight=1.5)

    torch.testing.assert_close(loss(chosen[:, orders[0]], rejected[:, orders[1]]), loss(chosen, rejected))


@EACH_PAIRS
@EXAMPLES
@given(num=st.integers(1, 6), seed=seeds)
def test_only_differences_of_scores_and_log_ratios_count(case: Pairs, num: int, seed: int) -> None:
    arguments, by = list(numbers(seed, 4, num)), numbers(seed + 1, num)
    expected = with_gradients(lambda *x: [case.call(*x)], arguments, NONE)
    for together in case.shifts:
        moved = [x + by if i in together else x for i, x in enumerate(arguments)]
        assert_all_close(with_gradients(lambda *x: [case.call(*x)], moved, NONE), expected)


@EXAMPLES
@given(num=st.integers(2, 6), seed=seeds, by=st.integers(-16, 16))
def test_ranking_is_free_of_the_level(num: int, seed: int, by: int) -> None:
    scores = numbers(seed, num)
    expected = with_gradients(lambda x: [ranking(x)], [scores], NONE)
    assert_all_close(with_gradients(lambda x: [ranking(x)], [scores + by / 8], NONE), expected)


# ---- row by row, without a mask


def of_each(function: Callable[..., Any], logits: Tensor, tokens: Tensor) -> Tensor:
    """`function` of the logits that predict each token but the first, `[B, T, ...]`, 0 for the first."""
    found = function(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), 0.7)
    if isinstance(found, tuple):
        return torch.stack([pad(one.view(len(tokens), -1), (1, 0)) for one in found], dim=-1)
    return pad(found.view(len(tokens), -1), (1, 0))


OF_LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token_logprobs": lambda logits, tokens: token_logprobs(logits, tokens, 0.7),
    "chosen_logprobs": partial(of_each, chosen_logprobs),
    "chosen_logprobs_and_entropy": partial(of_each, chosen_logprobs_and_entropy),
}
VOCAB = 5


@pytest.mark.parametrize("name", OF_LOGITS)
@EXAMPLES
@given(rows=st.integers(2, 4), length=st.integers(1, 6), seed=seeds)
def test_log_probabilities_by_rows_padding_and_level(name: str, rows: int, length: int, seed: int) -> None:
    call, logits = OF_LOGITS[name], numbers(seed, rows, length, VOCAB)
    tokens = torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    expected, order = call(logits, tokens), shuffle(seed, rows)
    torch.testing.assert_close(call(logits[order], tokens[order]), expected[order])
    level = numbers(seed + 1, rows, length, 1)
    torch.testing.assert_close(call(logits + level, tokens), expected)
    more = pad(logits, (0, 0, 0, 2), value=float("nan")), pad(tokens, (0, 2), value=1)
    torch.testing.assert_close(call(*more)[:, :length], expected)


@pytest.mark.parametrize("name", OF_LOGITS)
@EXAMPLES
@given(mask=masks(), seed=seeds, filler=st.sampled_from([-1e30, 1e30, 7.0]))
def test_logits_of_what_is_masked_have_no_gradient(name: str, mask: Tensor, seed: int, filler: float) -> None:
    """A model's logits after the end of a row are finite and mean nothing; entry t is of the logits at t - 1."""
    mask = shift_right(mask)  # nothing predicts the first token
    before = pad(mask[:, 1:], (0, 1))[..., None]
    logits, tokens = numbers(seed, *mask.shape, VOCAB), numbers(seed + 1, *mask.shape).long().abs()
    gradients = []
    for x in (logits, torch.where(before, logits, torch.tensor(filler, dtype=torch.float64) * torch.arange(VOCAB))):
        x = x.clone().requires_grad_()
        found = OF_LOGITS[name](x, tokens)
        zero_outside(found, mask.view(*mask.shape, *[1] * (found.dim() - 2))).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients) and not gradients[0][~before.expand_as(logits)].any()


@EXAMPLES
@given(num=st.integers(1, 6), seed=seeds, by=st.integers(-16, 16))
def test_score_shaping_by_order_and_level(num: int, seed: int, by: int) -> None:
    first, then, order = numbers(seed, num), numbers(seed + 1, num), shuffle(seed, num)

    def shaped(*batches: Tensor) -> Tensor:
        shaping = ScoreShaping(clip=1.0, normalise=True)
        return [shaping(batch) for batch in batches][-1]

    torch.testing.assert_close(shaped(first[order], then[order]), shaped(first, then)[order])
    torch.testing.assert_close(shaped(first + by / 8, then + by / 8), shaped(first, then))


@EXAMPLES
@given(rows=st.integers(2, 4), length=st.integers(1, 6), seed=seeds)
def test_shift_right_by_rows(rows: int, length: int, seed: int) -> None:
    x, order = numbers(seed, rows, length), shuffle(seed, rows)
    assert torch.equal(shift_right(x[order]), shift_right(x)[order])


def test_every_function_has_its_place_above() -> None:
    covered = {function for case in (*MASKED.values(), *PAIRS.values()) for function in case.covers}
    covered |= {grpo, rloo, ranking, shift_right, token_logprobs, chosen_logprobs}
    covered |= {chosen_logprobs_and_entropy}
    covered |= {check_mask, count}  # these refuse or count, in test_masking.py
    covered |= {unit_direction}  # of states, not of rows: in test_head_shift.py
    missing = [
        f"{module}.{name}"
        for module in (f"{algorithms.__name__}.{found.name}" for found in pkgutil.iter_modules(algorithms.__path__))
        for name, function in vars(importlib.import_module(module)).items()
        if inspect.isfunction(function) and function.__module__ == module and not name.startswith("_")
        if function not in covered
    ]
    assert not missing, "put these into a table of this file, so that their invariances are tested"
