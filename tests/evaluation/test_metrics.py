"""Evaluation metrics against numbers computed by hand."""

import math

import pytest

from rayrlhf.evaluation import metrics


def test_words_drop_punctuation_and_case() -> None:
    assert metrics.words("It's GOOD, isn't it? -- 10/10") == ["it's", "good", "isn't", "it", "10", "10"]


def test_distinct_counts_over_the_whole_set() -> None:
    # bigrams: (a b) (b a) | (a b) (b c): 3 unique of 4; texts of one word have none
    assert metrics.distinct_n(["a b a", "a b c", "z"], 2) == pytest.approx(3 / 4)
    # words: a b a a b c z: 4 unique of 7
    assert metrics.distinct_n(["a b a", "a b c", "z"], 1) == pytest.approx(4 / 7)
    assert math.isnan(metrics.distinct_n(["one", ""], 2))


def test_repetition_is_within_each_text() -> None:
    # "a b a b": bigrams ab ba ab: 1 of 3 repeated; "a b": none, though the other text has it; "": 0
    assert metrics.repetition(["a b a b", "a b", ""], 2) == pytest.approx((1 / 3 + 0 + 0) / 3)


def test_known_words() -> None:
    vocabulary = metrics.vocabulary_of(["The film, great.", "Bad!"])
    assert vocabulary == {"the", "film", "great", "bad"}
    assert metrics.known_word_share(["the FILM zork", "bad"], vocabulary) == pytest.approx(3 / 4)
    assert math.isnan(metrics.known_word_share(["..."], vocabulary))


def test_perplexity() -> None:
    # two tokens of probability 1/2 and one of 1/4: (1/16)^(-1/3)
    assert metrics.perplexity(2 * math.log(0.5) + math.log(0.25), 3) == pytest.approx(16 ** (1 / 3))
    assert math.isnan(metrics.perplexity(0.0, 0))


def test_positive_share_includes_vaders_own_threshold() -> None:
    assert metrics.positive_share([0.05, 0.049, -0.9, 0.3]) == pytest.approx(2 / 4)
    assert metrics.positive_share([0.05, 0.3], threshold=0.2) == pytest.approx(1 / 2)


def test_win_rate_counts_ties_half() -> None:
    result = metrics.win_rate([2.0, 1.0, 5.0, 0.0], [1.0, 1.0, 6.0, -1.0])
    assert result.rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert 0.0 <= result.low <= result.rate <= result.high <= 1.0


def test_win_rate_interval_matches_the_binomial_one() -> None:
    # 300 wins of 500: 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 500) = 0.557 .. 0.643
    ours = [1.0] * 300 + [0.0] * 200
    result = metrics.win_rate(ours, [0.5] * 500, seed=3)
    assert result.low == pytest.approx(0.557, abs=0.006)
    assert result.high == pytest.approx(0.643, abs=0.006)
    assert result == metrics.win_rate(ours, [0.5] * 500, seed=3)


def test_win_rate_of_only_wins_has_no_width() -> None:
    assert metrics.win_rate([1.0, 1.0], [0.0, 0.0]) == metrics.WinRate(1.0, 1.0, 1.0)


def test_win_rate_needs_pairs() -> None:
    with pytest.raises(ValueError, match="2, 1"):
        metrics.win_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0, 0"):
        metrics.win_rate([], [])
