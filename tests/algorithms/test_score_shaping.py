import json

import pytest
import torch

from rayrlhf.algorithms.score_shaping import ScoreShaping


def test_clip_alone():
    assert ScoreShaping(clip=1.5)(torch.tensor([-3.0, 0.5, 2.0])).tolist() == [-1.5, 0.5, 1.5]
    assert ScoreShaping()(torch.tensor([-3.0, 9.0])).tolist() == [-3.0, 9.0]


def test_normalisation_by_hand():
    shaping = ScoreShaping(normalise=True)
    assert shaping(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]  # mean 2, std 1
    # all so far: 1 3 6 6, mean 4, squared deviations 9 + 1 + 4 + 4 = 18
    assert shaping(torch.tensor([6.0, 6.0])).tolist() == pytest.approx([2 / (18 / 4) ** 0.5] * 2)


def test_running_statistics_are_those_of_all_scores():
    scores = 100 + torch.randn(60, generator=torch.Generator().manual_seed(0))
    shaping = ScoreShaping(normalise=True)
    for part in scores.split([1, 7, 30, 22]):
        last = shaping(part)
    assert shaping.mean == pytest.approx(float(scores.double().mean()))
    assert torch.allclose(last, (scores[38:] - scores.mean()) / scores.std(correction=0), atol=1e-4)


def test_scores_that_do_not_vary_are_centred():
    assert ScoreShaping(normalise=True)(torch.tensor([5.0, 5.0])).tolist() == [0.0, 0.0]


def test_the_clip_follows_the_normalisation():
    shaped = ScoreShaping(clip=1.0, normalise=True)(torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0]))
    assert float(shaped.max()) == 1.0 and float(shaped.min()) == pytest.approx(-0.5)


def test_state_survives_json():
    whole, first, second = (ScoreShaping(normalise=True) for _ in range(3))
    parts = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for part in parts:
        expected = whole(part)
    first(parts[0])
    first(parts[1])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert torch.equal(second(parts[2]), expected)


def test_a_score_that_is_not_finite_is_named():
    shaping = ScoreShaping(normalise=True)
    with pytest.raises(ValueError, match=r"1 of 3 scores are not finite \(first rows: \[1\]\)"):
        shaping(torch.tensor([0.0, float("nan"), 1.0]))
    assert shaping.count == 0


def test_arguments():
    with pytest.raises(ValueError, match="clip is 0"):
        ScoreShaping(clip=0.0)
