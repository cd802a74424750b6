"""Errors of the server in the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from rayrlhf.errors import UserError

logger = logging.getLogger("ray.serve")  # a replica's own log


class ApiError(Exception):
    """An answer other than 200.  `code` is OpenAI's short name for the cause, `param` the key of the request."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message, code, param)  # all of them, or the error would not survive pickling
        self.status, self.message, self.code, self.param = status, message, code, param


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP answer of `error`."""
    kind = "server_error" if error.status >= 500 else "requests" if error.status == 429 else "invalid_request_error"
    content = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse({"error": content}, status_code=error.status, headers=headers)


def api_error(error: Exception) -> ApiError:
    """What the client is told of `error`, raised here or in a replica; of an unknown one nothing but that it was."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    cause = getattr(error, "cause", error)  # Ray wraps what a replica raised
    if isinstance(cause, (UserError, ValidationError)):
        return ApiError(400, str(cause))
    if hasattr(cause, "parameter") and type(cause).__module__ == "vllm.exceptions":  # vLLM's own look at a request
        return ApiError(400, str(cause), param=cause.parameter)
    message = getattr(error, "message", None)
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and isinstance(message, str):  # the engine's own answer
        return ApiError(status, message)
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says how")


def _invalid(error: RequestValidationError) -> ApiError:
    first: dict[str, Any] = dict(error.errors()[0])
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", "invalid_json")
    value = first.get("input")
    got = f", got {str(value)[:80]!r}" if first["type"] != "missing" and isinstance(value, str | int | float) else ""
    return ApiError(400, f"{place or 'the body'}: {first['msg']}{got}", param=place or None)


def add_error_handlers(app: FastAPI) -> None:
    """Let `app` answer what FastAPI itself refuses in OpenAI's form; whatever else is raised reaches `HttpGuard`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        found, asked = api_error(error), f"{request.method} {request.url.path}"
        if isinstance(error, HTTPException) and error.status_code in (404, 405):  # no such route, no such method
            routes = "POST /v1/chat/completions, POST /v1/completions, POST /v1/score, GET /v1/models"
            found = ApiError(error.status_code, f"{asked} is nothing that this server answers; there are {routes}")
        return error_response(found)

    for kind in (RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
