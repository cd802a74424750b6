"""What stands around the whole application: the API key, a bound on the size of a body, and errors in OpenAI's form."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.openai_errors import ApiError, api_error, error_response

HEALTH = "/health"  # for load balancers and Kubernetes' probes, which know no key


def digest(key: str) -> str:
    """What the servers know of an API key: it neither lies in Ray's store nor can it be read off a dashboard."""
    return hashlib.sha256(key.encode()).hexdigest()


class HttpGuard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, key_digest: str | None, max_body: int) -> None:
        """`key_digest`: of the key that `Authorization: Bearer KEY` must bring, None for no key; `max_body`: bytes."""
        self.app, self.key_digest, self.max_body = app, key_digest, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, is_started = Headers(scope=scope), False

        async def notice(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            if scope["path"].removeprefix(scope.get("root_path", "")) == HEALTH:  # no key, so no body is read either
                await self.app(scope, _replayed(b"", receive), notice)
                return
            self._check_key(headers.get("authorization", ""))
            # the key goes no further: the replicas are handed a request's headers
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"authorization"]}
            body = await self._read(headers, receive)
            await self.app(scope, _replayed(body, receive), notice)
        except Exception as error:
            if is_started:  # half an answer is out already
                raise
            await error_response(api_error(error))(scope, receive, send)

    def _check_key(self, given: str) -> None:
        if self.key_digest is None:
            return
        scheme, _, key = given.partition(" ")
        # digests of equal length, compared in constant time: nothing is learnt from how long a refusal takes
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest(key.strip()), self.key_digest):
            missing = "no API key was given" if not given else "the API key is wrong"
            raise ApiError(401, f"{missing}: send it as `Authorization: Bearer KEY`", "invalid_api_key")

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, which the application needs as a whole anyway."""
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.max_body:
            raise self._too_large()
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return body

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than the {self.max_body} bytes that this server takes", "too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()  # the client going away
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
