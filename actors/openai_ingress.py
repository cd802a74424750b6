"""The server's front: Ray Serve's OpenAI ingress, with A/B names, scores, limits, and errors in OpenAI's form.

HTTP --> HttpGuard (key, size) --> routes --> resolve the name --> limits --> the model's replicas
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.schema import ReplicaState
from starlette.responses import JSONResponse, Response

from actors.http_guard import HEALTH, HttpGuard
from actors.openai_errors import ApiError, add_error_handlers
from rayrlhf.traffic_split import choose

ROUTES: dict[str, Any] = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "score": lambda app: app.post("/v1/score"),
    "tokenize": lambda app: app.post("/tokenize"),
    "detokenize": lambda app: app.post("/detokenize"),
    "health": lambda app: app.get(HEALTH),
}


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for: tokens of an answer (None: what fits the context), answers or texts to score."""

    max_tokens: int | None
    max_answers: int


class ChatMessage(BaseModel):
    """One message of a conversation to score."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class ScoreBody(BaseModel):
    """POST /v1/score: vLLM's score request, `text_1` the prompts (or one for all) and `text_2` their responses; or, as
    in vLLM's pooling requests, `messages`, a conversation or a list of them, each ending with the answer to score."""

    model_config = ConfigDict(extra="forbid")
    model: str
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    messages: list[ChatMessage] | list[list[ChatMessage]] | None = Field(default=None)

    def pairs(self) -> list[tuple[Any, str]]:
        """(prompt, response) of each text to score; ApiError where the request makes no sense."""
        if (self.messages is None) == (self.text_2 is None) or (self.text_1 is None) != (self.text_2 is None):
            raise ApiError(400, "give text_1 (prompts) and text_2 (their responses), or messages")
        if self.messages == []:
            raise ApiError(400, "messages is empty", None, "messages")
        if self.messages is not None:
            return [_last_apart(conversation) for conversation in _conversations(self.messages)]
        prompts, responses = _listed(self.text_1), _listed(self.text_2)
        if not responses:
            raise ApiError(400, "text_2 has no response", None, "text_2")
        if len(prompts) == 1:
            prompts *= len(responses)
        if len(prompts) != len(responses):
            raise ApiError(
                400, f"text_1 has {len(prompts)} prompts and text_2 {len(responses)} responses: as many, or one prompt"
            )
        return list(zip(prompts, responses, strict=True))


def _listed(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts or [])


def _conversations(messages: list[Any]) -> list[list[ChatMessage]]:
    return [messages] if messages and isinstance(messages[0], ChatMessage) else messages


def _last_apart(conversation: list[ChatMessage]) -> tuple[Any, str]:
    if len(conversation) < 2 or conversation[-1].role != "assistant":
        raise ApiError(
            400, "a conversation to score has a prompt and ends with a message of the assistant", None, "messages"
        )
    return [message.model_dump() for message in conversation[:-1]], conversation[-1].content


class Ingress(OpenAiIngress):
    """Answers HTTP requests by the models' replicas."""

    def __init__(
        self,
        writers: dict[str, Any],
        scorers: dict[str, Any],
        splits: Mapping[str, Mapping[str, float]],
        limits: RequestLimits,
        deployments: Mapping[str, str],
    ) -> None:
        """`writers`, `scorers`: handles of language and reward models by name; `splits`: the weights of each A/B name's
        models; `deployments`: the deployment of each model, for the health of it."""
        cards: Any = dict.fromkeys(writers)  # those of Ray's ingress; `models` has its own
        super().__init__(writers, cards)
        self._writers = writers
        self._scorers, self._splits, self._limits, self._deployments = scorers, splits, limits, deployments
        self._created = int(time.time())
        self._health: tuple[float, list[str]] = (0.0, [])
        self._asking = asyncio.Lock()

    def resolve(self, name: str | None, user: str | None = None) -> str:
        """The language model that answers a request for `name`; ApiError for none."""
        if name is None and len(self._writers) == 1 and not self._splits:
            return next(iter(self._writers))
        if name is None:
            raise ApiError(400, f"model is missing: there are {self._names()}", param="model")
        if name in self._splits:
            return choose(name, self._splits[name], user)
        if name in self._scorers:
            raise ApiError(400, f"{name} is a reward model, which writes nothing: POST /v1/score", param="model")
        if name not in self._writers:
            raise self._unknown(name)
        return name

    def _names(self) -> str:
        return ", ".join([*self._writers, *self._splits, *self._scorers])

    def _unknown(self, name: str) -> ApiError:
        return ApiError(404, f"there is no model {name!r}; there are {self._names()}", "model_not_found", "model")

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        """As OpenAiIngress's; every request to a language model comes through here."""
        body.model = self.resolve(body.model, getattr(body, "user", None))
        if call_method in ("chat", "completions"):
            apply_limits(body, self._limits)
        with _refusals():
            async for part in super()._get_response(body=body, call_method=call_method, raw_request=raw_request):
                yield part

    async def models(self) -> Any:
        """The models and the A/B names."""
        names = [*self._writers, *self._splits, *self._scorers]
        return {"object": "list", "data": [self._card(name) for name in names]}

    async def model_data(self, model: str) -> Any:
        """One of them."""
        if model not in (*self._writers, *self._splits, *self._scorers):
            raise self._unknown(model)
        return self._card(model)

    def _card(self, name: str) -> dict[str, Any]:
        card: dict[str, Any] = {"id": name, "object": "model", "created": self._created, "owned_by": "rayrlhf"}
        if name in self._splits:
            card["split"] = dict(self._splits[name])
        return card

    async def score(self, body: ScoreBody, request: Request) -> Response:  # type: ignore[override]
        """The reward model's score of each text."""
        if body.model not in self._scorers:
            if body.model in (*self._writers, *self._splits):
                raise ApiError(400, f"{body.model} is no reward model, so it gives no scores", param="model")
            raise self._unknown(body.model)
        pairs = body.pairs()
        _check_number(len(pairs), self._limits, "texts to score")
        with _refusals():
            scores, num_tokens = await self._scorers[body.model].score.remote(pairs)
        return JSONResponse(
            {
                "id": f"score-{request.headers.get('x-request-id', '')}",
                "object": "list",
                "created": int(time.time()),
                "model": body.model,
                "data": [{"index": n, "object": "score", "score": score} for n, score in enumerate(scores)],
                "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            }
        )

    async def health(self) -> Response:
        """200 when every model has a replica that runs, else 503 with those that have none."""
        async with self._asking:
            asked, down = self._health
            if time.monotonic() - asked > 1:  # anyone may ask, and the answer costs the controller a call
                down = await asyncio.to_thread(self._down)
                self._health = time.monotonic(), down
        content = {"status": "unhealthy", "no_replica": down} if down else {"status": "ok"}
        return JSONResponse(content, status_code=503 if down else 200)

    def _down(self) -> list[str]:
        application = serve.status().applications[serve.get_replica_context().app_name]
        running = {name: d.replica_states.get(ReplicaState.RUNNING, 0) for name, d in application.deployments.items()}
        return [model for model, deployment in self._deployments.items() if not running.get(deployment)]


@contextmanager
def _refusals() -> Iterator[None]:
    """Ray Serve's own refusals as ApiErrors; it would answer them itself, in plain text."""
    try:
        yield
    except BackPressureError as error:
        raise ApiError(429, "too many requests wait for this model: try again soon", "rate_limit_exceeded") from error
    except DeploymentUnavailableError as error:
        raise ApiError(503, "this model has no replica that could start", "unavailable") from error


def apply_limits(body: Any, limits: RequestLimits) -> None:
    """ApiError where a chat or completions request asks for too much; bounds what a completion has by default."""
    _check_ranges(body)
    prompts = getattr(body, "prompt", None)
    is_batch = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    _check_number((body.n or 1) * (len(prompts) if is_batch and prompts else 1), limits, "answers")
    cap = limits.max_tokens
    if cap is None:
        return
    newer = getattr(body, "max_completion_tokens", None)
    asked = newer if newer is not None else body.max_tokens
    if asked is None:
        return  # the engine bounds it, by its context too
    if newer is None and "max_tokens" not in body.model_fields_set:
        body.max_tokens = min(asked, cap)  # a default of the protocol's, 16
    elif asked > cap:
        key = "max_tokens" if newer is None else "max_completion_tokens"
        raise ApiError(400, f"{key}={asked} exceeds the {cap} tokens that this server gives an answer", param=key)


# key -> (least value, whether it may be that value itself, most value)
_RANGES: dict[str, tuple[int, bool, float]] = {
    "n": (1, True, math.inf),
    "max_tokens": (1, True, math.inf),
    "max_completion_tokens": (1, True, math.inf),
    "temperature": (0, True, math.inf),
    "top_p": (0, False, 1),
}


def _check_ranges(body: Any) -> None:
    """ApiError for numbers that no request can mean, which the engine would refuse in words of its own, or not."""
    if getattr(body, "messages", None) == []:
        raise ApiError(400, "messages is empty: give one or more of {role, content}", param="messages")
    for key, (least, is_allowed, most) in _RANGES.items():
        value = getattr(body, key, None)
        if value is None or (least < value <= most) or (is_allowed and value == least):
            continue
        bound = f"{'at least' if is_allowed else 'above'} {least}{'' if most == math.inf else f', at most {most:g}'}"
        raise ApiError(400, f"{key}={value:g}: give a number {bound}", param=key)


def _check_number(number: int, limits: RequestLimits, what: str) -> None:
    if number > limits.max_answers:
        raise ApiError(400, f"{number} {what} are more than the {limits.max_answers} that one request may ask for")


def ingress_class(key_digest: str | None, max_body: int) -> type[Any]:
    """The deployment class: the routes of `Ingress` behind an `HttpGuard`."""
    app = FastAPI(title="rayrlhf")
    add_error_handlers(app)
    app.add_middleware(HttpGuard, key_digest=key_digest, max_body=max_body)
    found: type[Any] = make_fastapi_ingress(Ingress, endpoint_map=ROUTES, app=app)
    return found
