"""A score function named in the config: loaded, and its answers checked."""

import math

import pytest

from rayrlhf.errors import ConfigError
from rayrlhf.score_function import ALL, columns_of, load_function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `goldfunctions` with functions right and wrong."""
    (tmp_path / "goldfunctions.py").write_text(
        "import math\n"
        "not_callable = 3\n"
        "def length(prompts, responses): return [len(r) for r in responses]\n"
        "def short(prompts, responses): return [0.0]\n"
        "def asks(prompts, responses, reference, data_source=None): return [len(r) for r in reference]\n"
        "def asks_all(prompts, responses, **columns): return [float(len(columns))] * len(prompts)\n"
        "def broken(prompts, responses): return [0.0, math.nan]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_scores_are_floats_in_order(module) -> None:
    scores = load_function("goldfunctions:length")(["p", "q"], ["abc", "d"])
    assert scores == [3.0, 1.0] and all(isinstance(score, float) for score in scores)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goldfunctions", "not of the form module:function"),
        (":length", "not of the form"),
        ("no_such_module_here:f", "cannot import no_such_module_here"),
        ("goldfunctions:missing", "has no function missing"),
        ("goldfunctions:not_callable", "has no function not_callable"),
    ],
)
def test_a_name_that_leads_nowhere(module, name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(name)


def test_wrong_answers_are_named(module) -> None:
    with pytest.raises(ConfigError, match="1 scores for 2 responses"):
        load_function("goldfunctions:short")(["", ""], ["a", "b"])
    with pytest.raises(ConfigError, match=r"nan for response 1, 'bad one'"):
        load_function("goldfunctions:broken")(["", ""], ["a", "bad one"])
    assert math.isfinite(load_function("goldfunctions:length")([""], ["x"])[0])


def test_further_parameters_are_columns_of_the_prompts(module) -> None:
    assert columns_of("goldfunctions:length") == ((), ())
    assert columns_of("goldfunctions:asks") == (("reference", "data_source"), ("reference",))
    assert columns_of("goldfunctions:asks_all") == (ALL, ())
    assert load_function("goldfunctions:asks")(["p"], ["r"], reference=["abc"]) == [3.0]
    assert load_function("goldfunctions:asks_all")(["p"], ["r"], a=[1], b=[2]) == [2.0]
    with pytest.raises(ConfigError, match="cannot import"):
        columns_of("no.such:function")
