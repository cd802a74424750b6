"""Requests that the server refuses: HTTP status and OpenAI's error object."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tests.bad_input.registry import Case
from tests.bad_input.workshop import Answer, Workshop

USER = {"role": "user", "content": "hello"}


def _ask(method: str, path: str, **options: Any) -> Callable[[Workshop], Answer]:
    def provoke(here: Workshop) -> Answer:
        response = here.server()(method, path, **options)
        error = response.json().get("error", {})
        return Answer(response.status_code, error.get("message", response.text), error=error)

    return provoke


def _posted(path: str, default: dict[str, Any], **changes: Any) -> Callable[[Workshop], Answer]:
    body = {key: value for key, value in (default | changes).items() if value is not ...}
    return _ask("POST", path, json=body)


_chat = functools.partial(_posted, "/v1/chat/completions", {"model": "tiny", "messages": [USER]})
_text = functools.partial(_posted, "/v1/completions", {"model": "tiny", "prompt": "hello"})
_score = functools.partial(_posted, "/v1/score", {"model": "judge", "text_1": "a", "text_2": "b"})
_JSON = {"Content-Type": "application/json"}

CASES = (
    Case(
        "no key",
        _ask("POST", "/v1/completions", json={}, headers={"Authorization": ""}),
        ("Authorization: Bearer KEY",),
        401,
    ),
    Case(
        "a wrong key",
        _ask("POST", "/v1/completions", json={}, headers={"Authorization": "Bearer x"}),
        ("key is wrong", "Bearer KEY"),
        401,
    ),
    Case(
        "JSON that is cut off",
        _ask("POST", "/v1/completions", content='{"model": "tiny", ', headers=_JSON),
        ("not JSON", "double quotes"),
        400,
    ),
    Case("a body that is a list", _ask("POST", "/v1/completions", json=[1]), ("the body", "dictionary"), 400),
    Case("a body that is too large", _text(prompt="x" * 20_000), ("10000 bytes",), 413),
    Case("a path that is not there", _ask("POST", "/v1/chat", json={}), ("POST /v1/chat", "/v1/chat/completions"), 404),
    Case("GET for POST", _ask("GET", "/v1/completions"), ("GET /v1/completions", "POST /v1/completions"), 405),
    Case("a model that is not there", _chat(model="gpt-4"), ("'gpt-4'", "there are tiny, mix, judge"), 404),
    Case("no model where there are several", _chat(model=...), ("model is missing", "tiny, mix, judge"), 400),
    Case("a model's name that is a number", _chat(model=3), ("model", "valid string", "3"), 400),
    Case("a chat without messages", _chat(messages=...), ("messages: Field required",), 400),
    Case("a chat with no message", _chat(messages=[]), ("messages is empty", "give one or more"), 400),
    Case("messages that are a string", _chat(messages="hello"), ("messages", "valid list", "hello"), 400),
    Case("a message without a role", _chat(messages=[{"content": "hello"}]), ("role: Field required",), 400),
    Case("a temperature that is a word", _chat(temperature="hot"), ("temperature", "valid number", "'hot'"), 400),
    Case("a negative temperature", _chat(temperature=-1), ("temperature=-1", "at least 0"), 400),
    Case("a top_p above 1", _chat(top_p=2), ("top_p=2", "at most 1"), 400),
    Case("a negative number of tokens", _text(max_tokens=-1), ("max_tokens=-1", "at least 1"), 400),
    Case("more tokens than the server gives", _chat(max_tokens=1000), ("max_tokens=1000", "64"), 400),
    Case("no answer", _chat(n=0), ("n=0", "at least 1"), 400),
    Case("more answers than the server gives", _chat(n=9), ("9 answers", "4"), 400),
    Case("more prompts than the server takes", _text(prompt=["hello"] * 9), ("9 answers", "4"), 400),
    Case("an empty prompt", _text(prompt=""), ("prompt",), 400),
    Case("a prompt of tokens below 0", _text(prompt=[-1]), ("greater than or equal to 0", "-1"), 400),
    Case("options of a stream without a stream", _chat(stream_options={"include_usage": True}), ("stream=True",), 400),
    Case("top_logprobs without logprobs", _chat(top_logprobs=5), ("`logprobs` must be set",), 400),
    Case("logprobs below 0", _text(logprobs=-5), ("`logprobs` must be a positive value", "-5"), 400),
    Case("a tool's choice without tools", _chat(tool_choice="auto"), ("`tools` must be set",), 400),
    Case("a format of the answer that is none", _chat(response_format={"type": "xml"}), ("'json_object'", "xml"), 400),
    Case("text of a reward model", _chat(model="judge"), ("judge is a reward model", "POST /v1/score"), 400),
    Case("scores of a language model", _score(model="tiny"), ("tiny is no reward model",), 400),
    Case("responses to score without prompts", _score(text_1=...), ("give text_1",), 400),
    Case(
        "two prompts and three responses to score",
        _score(text_1=["a"] * 2, text_2=["b"] * 3),
        ("2 prompts", "3 responses", "one prompt"),
        400,
    ),
    Case("nothing to score", _score(text_2=[]), ("text_2 has no response",), 400),
    Case("too many texts to score", _score(text_2=["b"] * 9), ("9 texts", "4"), 400),
    Case("a text to score that is too long", _score(text_2="b" * 300), ("303 tokens", "128", "shorten it"), 400),
    Case(
        "a conversation to score without an answer",
        _score(text_1=..., text_2=..., messages=[USER]),
        ("ends with a message of the assistant",),
        400,
    ),
    Case("a misspelt key of a score", _score(txt_2="b"), ("txt_2", "not permitted"), 400),
)
