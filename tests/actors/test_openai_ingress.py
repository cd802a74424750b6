"""Names and limits of the server's front, without replicas behind it; tests/jobs/test_serve.py has the whole."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.openai_errors import ApiError
from actors.openai_ingress import Ingress, RequestLimits, ScoreBody, apply_limits


def ingress(**given: Any) -> Ingress:
    named: dict[str, Any] = {
        "writers": {"sft": 1, "ppo": 2},
        "scorers": {"rm": 3},
        "splits": {"mix": {"sft": 1, "ppo": 1}},
    }
    return Ingress(**(named | given), limits=RequestLimits(None, 4), deployments={})


def test_names_are_resolved() -> None:
    front = ingress()
    assert front.resolve("ppo") == "ppo"
    assert {front.resolve("mix", f"user {n}") for n in range(20)} == {"sft", "ppo"}
    assert len({front.resolve("mix", "ann") for _ in range(20)}) == 1
    assert Counter(front.resolve("mix") for _ in range(200)).keys() == {"sft", "ppo"}


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("other", 404, "no model 'other'; there are sft, ppo, mix, rm"), ("rm", 400, "/v1/score"), (None, 400, "missing")],
)
def test_names_that_answer_no_text_are_refused(name: str | None, status: int, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        ingress().resolve(name)
    assert caught.value.status == status and words in caught.value.message and caught.value.param == "model"


def test_one_model_needs_no_name() -> None:
    assert ingress(writers={"sft": 1}, splits={}).resolve(None) == "sft"


class Refusing:
    """A handle whose deployment refuses every request."""

    def __init__(self, error: Exception) -> None:
        self.error, self.completions, self.score = error, self, self

    def options(self, **_: Any) -> "Refusing":
        return self

    def remote(self, *_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackPressureError(2, 2, 429), 429, "rate_limit_exceeded"),
        (DeploymentUnavailableError(DeploymentID("sft", "app")), 503, "unavailable"),
    ],
)
def test_refusals_of_ray_serve_become_errors_of_the_server(error: Exception, status: int, code: str) -> None:
    front = ingress(writers={"sft": Refusing(error)}, splits={}, scorers={"rm": Refusing(error)})
    body = ScoreBody(model="rm", text_1="p", text_2="a")

    async def ask() -> None:
        async for _ in front._get_response(body=Request(model="sft"), call_method="completions"):
            pass

    for call in (ask, lambda: front.score(body, None)):  # type: ignore[arg-type]  # refused before it is read
        with pytest.raises(ApiError) as caught:
            asyncio.run(call())
        assert (caught.value.status, caught.value.code) == (status, code)


class Request:
    """The keys of a completions request that limits look at."""

    def __init__(self, **given: Any) -> None:
        self.n, self.max_tokens, self.prompt = None, None, "x"
        self.__dict__.update(given)
        self.model_fields_set = set(given)


def test_the_longest_answer_is_bounded() -> None:
    limits = RequestLimits(max_tokens=8, max_answers=4)
    free = Request()
    apply_limits(free, limits)
    assert free.max_tokens is None, "the engine's bound, which knows what the context leaves"
    by_default = Request(max_tokens=16)  # as vLLM's completions have it where a client says nothing
    by_default.model_fields_set = set()
    apply_limits(by_default, limits)
    assert by_default.max_tokens == 8
    for asked in (1, 8):
        request = Request(max_tokens=asked)
        apply_limits(request, limits)
        assert request.max_tokens == asked
    with pytest.raises(ApiError, match="max_tokens=9 exceeds the 8 tokens"):
        apply_limits(Request(max_tokens=9), limits)
    with pytest.raises(ApiError, match="max_completion_tokens=9 exceeds"):  # which the engine prefers
        apply_limits(Request(max_tokens=1, max_completion_tokens=9), limits)
    unbounded = Request()
    apply_limits(unbounded, RequestLimits(None, 4))
    assert unbounded.max_tokens is None


@pytest.mark.parametrize(
    ("request_", "number"),
    [({"n": 5}, 5), ({"prompt": ["x"] * 5}, 5), ({"prompt": [[1], [2]], "n": 3}, 6), ({"prompt": [1, 2, 3, 4, 5]}, 0)],
)
def test_the_number_of_answers_is_bounded(request_: dict[str, Any], number: int) -> None:
    if not number:  # one prompt, as tokens
        apply_limits(Request(**request_), RequestLimits(None, 4))
        return
    with pytest.raises(ApiError, match=f"{number} answers are more than the 4"):
        apply_limits(Request(**request_), RequestLimits(None, 4))


def test_texts_to_score() -> None:
    def pairs(**given: Any) -> list[tuple[Any, str]]:
        return ScoreBody.model_validate({"model": "rm", **given}).pairs()

    assert pairs(text_1="p", text_2="a") == [("p", "a")]
    assert pairs(text_1="p", text_2=["a", "b"]) == [("p", "a"), ("p", "b")]
    assert pairs(text_1=["p", "q"], text_2=["a", "b"]) == [("p", "a"), ("q", "b")]
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    assert pairs(messages=turns) == [(turns[:1], "a")]
    assert pairs(messages=[turns, turns]) == [(turns[:1], "a")] * 2
    for wrong, words in [
        ({"text_1": "p"}, "give text_1"),
        ({"text_2": "a"}, "give text_1"),
        ({"text_1": "p", "text_2": "a", "messages": turns}, "give text_1"),
        ({"text_1": ["p", "q"], "text_2": ["a", "b", "c"]}, "2 prompts and text_2 3 responses"),
        ({"text_1": "p", "text_2": []}, "text_2 has no response"),
        ({"messages": []}, "messages is empty"),
        ({"messages": turns[1:]}, "has a prompt and ends"),
        ({"messages": [*turns, turns[0]]}, "ends with a message of the assistant"),
    ]:
        with pytest.raises(ApiError, match=words):
            pairs(**wrong)
