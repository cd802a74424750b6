"""The key, the size of a body, and errors in OpenAI's form, over a small application of the same parts."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from actors.http_guard import HttpGuard, digest
from actors.openai_errors import ApiError, add_error_handlers
from rayrlhf.errors import ConfigError

KEY = "a-long-key-of-the-test"


class Body(BaseModel):
    model: str
    n: int = 1


class RemoteError(Exception):
    """As Ray's: the error of the replica is its cause."""

    cause = ConfigError("the text is too long")


class EngineError(Exception):
    """As Ray's for what the engine answers."""

    status_code, message = 422, "no such temperature"


ERRORS = {
    "api": ApiError(404, "no such model", "model_not_found", "model"),
    "remote": RemoteError(),
    "engine": EngineError(),
    "full": ApiError(429, "too many wait", "rate_limit_exceeded"),
}


def client(key: str | None = KEY, max_body: int = 100) -> TestClient:
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(HttpGuard, key_digest=key and digest(key), max_body=max_body)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/echo")
    async def echo(body: Body) -> Any:
        if body.model in ERRORS:
            raise ERRORS[body.model]
        if body.model == "bug":
            raise RuntimeError("a secret path")
        if body.model == "half":
            return StreamingResponse(half())
        return body.model_dump()

    async def half() -> Any:
        yield "begun"
        raise RuntimeError("torn")

    return TestClient(app, headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})


def refused(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize("header", [None, "", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer "])
def test_only_the_key_opens(header: str | None) -> None:
    app = client()
    del app.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    for response in (app.post("/v1/echo", json={"model": "m"}, headers=headers), app.get("/none", headers=headers)):
        error = refused(response, 401)
        assert error["code"] == "invalid_api_key" and KEY not in error["message"]
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert app.get("/health").json() == {"status": "ok"}


def test_with_the_key_or_none_asked_for() -> None:
    assert client().post("/v1/echo", json={"model": "m"}).json() == {"model": "m", "n": 1}
    app = client(key=None)
    del app.headers["Authorization"]
    assert app.post("/v1/echo", json={"model": "m"}).status_code == 200


def test_a_body_over_the_bound_is_refused_announced_or_not() -> None:
    app = client(max_body=30)
    fits, over = '{"model": "xxxxxxxxxxxxxxxxxx"}', '{"model": "xxxxxxxxxxxxxxxxxxx"}'
    assert (len(fits), len(over)) == (31, 32)
    for text in (fits, over):
        assert "30 bytes" in refused(app.post("/v1/echo", content=text), 413)["message"]

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        yield from (b'{"model": ', b'"xxxxxxxxxxxxxxxxxxxxxx"}')

    assert refused(app.post("/v1/echo", content=chunks()), 413)["code"] == "too_large"
    assert client(max_body=31).post("/v1/echo", content=fits).status_code == 200
    assert client(max_body=35).post("/v1/echo", content=chunks()).status_code == 200


def test_what_fastapi_refuses_is_said_in_openais_form() -> None:
    app = client()
    assert refused(app.post("/v1/echo", content='{"model": '), 400)["code"] == "invalid_json"
    error = refused(app.post("/v1/echo", json={"model": "m", "n": "many"}), 400)
    assert error["param"] == "n" and "integer" in error["message"] and error["type"] == "invalid_request_error"
    assert "model" in refused(app.post("/v1/echo", json={}), 400)["message"]
    assert refused(app.get("/v1/none"), 404)["message"].startswith("GET /v1/none is nothing that this server answers")
    refused(app.get("/v1/echo"), 405)


def test_what_is_raised_inside_is_said_in_openais_form() -> None:
    app = client()
    error = refused(app.post("/v1/echo", json={"model": "api"}), 404)
    assert error == {
        "message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found",
    }  # fmt: skip
    assert refused(app.post("/v1/echo", json={"model": "remote"}), 400)["message"] == "the text is too long"
    assert refused(app.post("/v1/echo", json={"model": "engine"}), 422)["message"] == "no such temperature"
    full = app.post("/v1/echo", json={"model": "full"})
    error = refused(full, 429)
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded") and full.headers["Retry-After"] == "1"
    bug = refused(app.post("/v1/echo", json={"model": "bug"}), 500)
    assert bug["type"] == "server_error" and "secret" not in bug["message"]


def test_a_torn_answer_is_no_second_one() -> None:
    with pytest.raises(RuntimeError, match="torn"):
        client().post("/v1/echo", json={"model": "half"})
