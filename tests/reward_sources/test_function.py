"""A reward function gets texts, and the columns of the prompts' rows that it asks for; what becomes of its failures."""

import math
import time

import pytest
import torch
from transformers import AutoTokenizer

from rayrlhf.batches import Rollouts
from rayrlhf.errors import ConfigError, RewardError
from rayrlhf.reward_sources.config import RewardFailuresConfig
from rayrlhf.reward_sources.function import KINDS, FunctionReward


@pytest.fixture
def rollouts(tiny_model):
    """`rollouts(texts)`: the prompt "q" and each text as its response."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))

    def make(*texts: str) -> Rollouts:
        ids = [tokenizer("q" + text, add_special_tokens=False)["input_ids"] for text in texts]
        lengths = torch.tensor([len(row) for row in ids])
        tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.int64)
        for row, found in enumerate(ids):
            tokens[row, : len(found)] = torch.tensor(found)
        column = torch.arange(tokens.shape[1])
        mask = (column >= 1) & (column < lengths[:, None])
        whole = torch.ones(len(ids), dtype=torch.bool)
        return Rollouts(tokens, lengths, mask, torch.zeros(tokens.shape), whole, torch.arange(len(ids)), whole.long())

    return make


@pytest.fixture
def reward(tiny_model):
    """`reward(name, **keys)`: of unruly.py, with those keys of reward_failures; None of them with has_key=False."""
    made = []

    def make(name: str, has_key: bool = True, deadline_s: float = 60.0, **keys) -> FunctionReward:
        failures = RewardFailuresConfig(**keys) if has_key else None
        made.append(
            FunctionReward(f"tests.reward_sources.unruly:{name}", tiny_model("llama"), failures, deadline_s, threads=1)
        )
        return made[-1]

    yield make
    for one in made:
        one.function.close()


def test_columns_reach_the_function_or_its_default(tiny_model, tmp_path, monkeypatch, rollouts) -> None:
    (tmp_path / "rewardfunctions.py").write_text(
        "def known(prompts, responses, reference, source=('default',)):\n"
        "    return [10 * (r == a) + len(source) for r, a in zip(responses, reference)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = FunctionReward("rewardfunctions:known", tiny_model("llama"))
    for columns, scores in (
        ({"reference": ["a", "x"], "source": [None, None]}, [11, 1]),
        ({"reference": ["a", "b"], "source": ["s", None]}, [12, 12]),
        ({"reference": [None, None]}, [1, 1]),
    ):
        assert reward.scores(rollouts("a", "b"), columns).total.tolist() == scores
    reward.function.close()


@pytest.mark.parametrize("keys", [{}, {"score": -1.0}, {"timeout_s": 9.0, "score": -1.0}])
def test_undisturbed_it_is_called_once_a_batch_and_nothing_failed(reward, rollouts, keys) -> None:
    found = reward("score", **keys).scores(rollouts("float32", "abc"))
    assert torch.equal(found.total, torch.tensor([0.1, 3.0])) and torch.equal(found.components[:, 0], found.total)
    assert not found.components[:, 1:].any() and found.names[0] == "function"
    assert found.names[1:] == ((*(f"failed_{kind}" for kind in KINDS), "scored_alone") if keys else ())
    counting = reward("calls", **keys)
    assert [counting.scores(rollouts("a", "b")).total.tolist() for _ in range(2)] == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("bad", "kind", "is_alone", "told"),
    [
        ("hang", "timeout", True, "took longer than 0.3 s"),
        ("raise", "exception", True, "KeyError: 'no such word'"),
        ("die", "died", True, "exit code 7"),
        ("nan", "not_finite", False, "its score is nan"),
        ("over float32", "not_finite", False, "its score is 1e+39"),
        ("text", "not_number", False, "its score is '1.5', which is of type str: give an int or a float"),
    ],
)
def test_one_response_that_fails_has_the_stated_score_and_is_counted(
    reward, rollouts, capfd, bad, kind, is_alone, told
) -> None:
    source = reward("score", timeout_s=0.3, score=-2.5, max_share=0.4)
    for _ in range(2):
        found = source.scores(rollouts("abc", bad, "de"))
        assert found.total.tolist() == [3.0, -2.5, 2.0]
        counts = dict(zip(found.names, found.components.sum(0).tolist(), strict=True))
        assert counts.pop("function") == 2.5 and counts.pop("scored_alone") == 3 * is_alone
        assert {name: count for name, count in counts.items() if count} == {f"failed_{kind}": 1.0}
    said = capfd.readouterr().err
    assert said.count("warning: ") == 1, "the first in full, the others as a count"
    for part in (told, f"1 of 3 responses (1 {kind})", "reward_failures.score=-2.5", "prompt: 'q'", f"'{bad}'"):
        assert part in said


@pytest.mark.parametrize("bad", ["hang", "raise", "die", "nan", "text"])
def test_without_a_score_the_run_stops_at_the_first(reward, rollouts, bad) -> None:
    with pytest.raises(RewardError, match=r"so the run stops. Response 1 \(") as error:
        reward("score", timeout_s=0.3).scores(rollouts("abc", bad, "raise"))
    assert f"prompt: 'q'\nresponse: '{bad}'\nMend the function, or let a few" in str(error.value)
    if bad == "raise":
        assert "unruly.py" in str(error.value), "the user's traceback"


def test_more_than_the_share_may_not_fail_and_the_rest_is_not_tried(reward, rollouts) -> None:
    source = reward("score", timeout_s=0.2, score=0.0, max_share=0.5)
    assert source.scores(rollouts("raise", "nan", "ab", "c")).total.tolist() == [0.0, 0.0, 2.0, 1.0]
    with pytest.raises(
        RewardError, match=r"on 3 of 3 responses \(1 exception, 2 not_finite\), more than .*=0.5 of 4"
    ) as error:
        source.scores(rollouts("raise", "nan", "inf", "hang"))
    assert "raise reward_failures.max_share" in str(error.value) and "response: 'raise'" in str(error.value)


def test_another_number_of_scores_is_traced_to_responses(reward, rollouts) -> None:
    with pytest.raises(RewardError, match=r"Response 1 \(count\): 0 scores for 1 responses"):
        reward("short").scores(rollouts("a", "short"))
    found = reward("short", score=0.0, max_share=0.5).scores(rollouts("a", "short"))
    assert found.total.tolist() == [1.0, 0.0]


def test_a_batch_that_fails_where_no_response_does(reward, rollouts, capfd) -> None:
    with pytest.raises(RewardError, match=r"(?s)on a batch of 2 responses and on none of them alone.*MemoryError"):
        reward("alone").scores(rollouts("a", "b"))
    found = reward("alone", score=0.0).scores(rollouts("a", "b"))
    assert found.total.tolist() == [2.0, 2.0] and found.components[:, -1].tolist() == [1.0, 1.0]
    assert "on none of them alone" in capfd.readouterr().err


def test_a_hang_without_a_timeout_ends_before_the_call_does(reward, rollouts) -> None:
    for keys in ({}, {"score": 0.0, "max_share": 1.0}):
        with pytest.raises(RewardError, match="within 0.9 of call_deadline_s=0.55: the call took longer than 0"):
            reward("score", deadline_s=0.55, **keys).scores(rollouts("a", "hang"))


def test_a_batch_has_the_time_of_its_responses(reward, rollouts) -> None:
    """Three of 0.2 s within a second; 0.6 s would be too much for one."""
    found = reward("score", timeout_s=0.4).scores(rollouts("slow", "slow", "slow"))
    assert found.total.tolist() == [4.0, 4.0, 4.0]


def test_time_is_over_where_the_call_would_be(reward, rollouts) -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"no scores within 0.9 of call_deadline_s=0.6"):
        reward("score", timeout_s=30.0, deadline_s=0.6).scores(rollouts("hang"))
    assert time.monotonic() - began < 20


def test_where_there_is_no_such_key_none_is_named(reward, rollouts) -> None:
    with pytest.raises(RewardError) as error:
        reward("score", has_key=False).scores(rollouts("nan"))
    assert "reward_failures" not in str(error.value) and "Mend the function" in str(error.value)


def test_keys_that_would_do_nothing_or_outlast_the_call() -> None:
    with pytest.raises(ValueError, match="max_share=0.2 has no effect without a score"):
        RewardFailuresConfig(max_share=0.2)
    with pytest.raises(ValueError, match="finite number"):
        RewardFailuresConfig(score=math.inf)
    RewardFailuresConfig().check_time(10_000, 1.0)
    RewardFailuresConfig(timeout_s=1.0).check_time(405, 900.0)
    with pytest.raises(ConfigError, match="set call_deadline_s to at least 902"):
        RewardFailuresConfig(timeout_s=1.0).check_time(406, 900.0)
