"""Repetition by hand, and against loops over tuples."""

import pytest
import torch

from rayrlhf import ngrams
from rayrlhf.ngrams import Responses, distinct, repetition

A, B, C, D = 5, 6, 7, 8


def responses(*rows: list[int]) -> Responses:
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
    return Responses.of(tokens, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None])


def test_repetition_by_hand() -> None:
    # pairs of the first: AB BA AB BA, half of them twice; of the second AB BC: none
    assert repetition(responses([A, B, A, B, A], [A, B, C]), 2) == pytest.approx((2 / 4 + 0) / 2)
    assert repetition(responses([A] * 10), 4) == pytest.approx(6 / 7), "seven 4-grams, one of them new"
    assert repetition(responses([A, B, C], [], [A] * 4), 4) == 0.0, "too short for a second one"


def test_distinct_by_hand() -> None:
    # AB BC | AB BD: three of four; a pair does not reach from one response into the next
    assert distinct(responses([A, B, C], [A, B, D]), 2) == pytest.approx(3 / 4)
    assert distinct(responses([A], []), 2) == 1.0


def test_what_a_hole_parts_stands_side_by_side() -> None:
    tokens, mask = torch.tensor([[A, B, C, D]]), torch.tensor([[True, False, True, True]])
    assert Responses.of(tokens, mask).tokens.tolist() == [[A, C, D]]


def grams(row: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]


@pytest.mark.parametrize("largest", [2**62, 100], ids=["at once", "numbered again at every token"])
@pytest.mark.parametrize("vocabulary", [3, 200_000])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_against_loops(n: int, vocabulary: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_LARGEST", largest)
    draw = torch.Generator().manual_seed(n)
    tokens = torch.randint(vocabulary, (40, 30), generator=draw)
    tokens[:, 15:] = tokens[:, :15]
    mask = torch.rand(40, 30, generator=draw) > torch.rand(40, 1, generator=draw)
    rows = [row[own].tolist() for row, own in zip(tokens, mask, strict=True)]
    by_row = [grams(row, n) for row in rows]
    shares = [1 - len(set(found)) / len(found) if found else 0.0 for found in by_row]
    every = [gram for found in by_row for gram in found]
    packed = Responses.of(tokens, mask)
    assert repetition(packed, n) == sum(shares) / len(shares), "to the bit"
    assert distinct(packed, n) == len(set(every)) / len(every)
    assert 0 < sum(shares) or n > 1, "the case has something to count"
