"""The server's replica: Ray Serve's own vLLM deployment, which also ends answers where the model's stage says."""

from __future__ import annotations

from typing import Any

from ray.serve.llm.deployment import LLMServer

from rayrlhf.models.causal_lm import stop_strings


class StoppingServer(LLMServer):
    """Adds the `stop_strings` of the model's generation_config.json, which vLLM's server leaves out, to each request's
    own `stop`."""

    async def __init__(self, llm_config: Any, **options: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stops = stop_strings(llm_config.model_loading_config.model_source)
        await super().__init__(llm_config, **options)

    async def chat(self, request: Any, *info: Any, **named: Any) -> Any:
        """As LLMServer's."""
        return await super().chat(self._with_stops(request), *info, **named)

    async def completions(self, request: Any, *info: Any, **named: Any) -> Any:
        """As LLMServer's."""
        return await super().completions(self._with_stops(request), *info, **named)

    def _with_stops(self, request: Any) -> Any:
        own = [request.stop] if isinstance(request.stop, str) else request.stop or []
        request.stop = list(dict.fromkeys([*own, *self._stops]))
        return request
