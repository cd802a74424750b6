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
    if isinstance(error, HTTPException):  # no such route, no such method
        return ApiError(error.status_code, str(error.detail))
    cause = getattr(error, "cause", error)  # Ray wraps what a replica raised
    if isinstance(cause, (UserError, ValidationError)):
        return ApiError(400, str(cause))
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
    words = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
    return ApiError(400, words, param=place or None)


def add_error_handlers(app: FastAPI) -> None:
    """Let `app` answer what FastAPI itself refuses in OpenAI's form; whatever else is raised reaches `HttpGuard`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return error_response(api_error(error))

    for kind in (RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
