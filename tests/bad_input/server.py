"""A server's front in this process: the real routes, guard and limits, and a real reward model, without Ray.

No request of the table gets further than the front or the reward model; what only vLLM refuses is in
tests/jobs/test_serve.py's server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

KEY = "the-key-of-the-server"
MAX_BODY = 10_000


class _Scorer:
    """A handle of the reward model, which is called here and not in a replica."""

    def __init__(self, folder: str) -> None:
        from actors.reward_server import RewardServer

        self._server = RewardServer(folder, 8, 1)
        self.score = SimpleNamespace(remote=self._score)

    def _score(self, pairs: list[tuple[Any, str]]) -> Awaitable[Any]:
        return self._server.score(pairs)


class _Engine:
    """Stands where vLLM would: a request that gets here was not refused."""

    def options(self, **_: Any) -> _Engine:
        raise AssertionError("the request was passed on to the engine")


@contextlib.contextmanager
def client(judge: str) -> Iterator[Callable[..., Any]]:
    """Yields `request(method, path, **options) -> response` to a server of `tiny` (vLLM) and `judge`."""
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from actors.http_guard import digest
    from actors.openai_ingress import Ingress, RequestLimits, ingress_class

    app = FastAPI()
    with mock.patch("actors.openai_ingress.FastAPI", return_value=app):
        ingress_class(digest(KEY), MAX_BODY)  # gives the application its routes
    models: Any = {"tiny": _Engine()}, {"judge": _Scorer(judge)}, {"mix": {"tiny": 1}}
    instance = Ingress(*models, RequestLimits(64, 4), {})
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        mock.patch(
            "ray.serve.get_replica_context",
            return_value=SimpleNamespace(
                servable_object=instance, _deployment_config=SimpleNamespace(max_ongoing_requests=8)
            ),
        ),
        TestClient(app, headers=headers, raise_server_exceptions=False) as opened,
    ):
        yield opened.request
