"""`rayrlhf serve model=runs/NAME/ppo`: a model behind an OpenAI-compatible HTTP endpoint.

Ray Serve's own LLM application does the work (`ray.serve.llm`: an ingress deployment that speaks
OpenAI's protocol, and a deployment of vLLM replicas); this file chooses its settings, waits until
it answers, and takes it down.  It listens on the loopback interface and asks for no key, so put
something with authentication in front before opening it to others.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field

from jobs import command
from jobs.generate import check_generates
from rayrlhf.checkpoint import model_folder
from rayrlhf.config import Section
from rayrlhf.errors import ConfigError, ResourceError, RoleError

if TYPE_CHECKING:
    from cluster.layout import RolePlan

APP_NAME = "rayrlhf"
_PROCESSES_GIB = 2.5  # a replica, its engine and its worker process with a tiny model, measured


class ServeConfig(Section):
    """What to serve, where, and with how much."""

    model: str = Field(description="what to serve: a stage directory (runs/NAME/ppo) or a Hugging Face folder")
    name: str = Field(default="rayrlhf", min_length=1, description="the model's name in OpenAI requests")
    host: str = Field(default="127.0.0.1", description="interface to listen on; there is no authentication")
    port: int = Field(default=8000, ge=1, le=65535, description="HTTP port")
    device: Literal["cpu", "gpu"] = Field(default="cpu", description="what the vLLM replicas run on")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="arithmetic of the engine; on CPU only float32 runs at every batch size",
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="longest prompt + answer in tokens; unset: the model's own context"
    )
    kv_cache_gib: float = Field(default=0.5, gt=0, description="memory for the KV cache of one replica, in GiB")
    replicas: int = Field(default=1, ge=1, description="vLLM engines that share the requests")
    cpus: float = Field(default=1.0, gt=0, description="Ray CPUs that each replica books")
    start_deadline_s: float = Field(default=300.0, gt=0, description="give up when it does not answer by then")


def check(config: ServeConfig) -> None:
    """The folder holds a language model, its context is long enough, and the port is free."""
    from rayrlhf.models.causal_lm import check_folder

    folder = check_generates(config.model)
    context = check_folder(folder)
    if config.max_model_len is not None and config.max_model_len > context:
        raise ConfigError(
            f"max_model_len={config.max_model_len} exceeds the {context} positions that {folder} "
            f"was made for: set max_model_len={context} or less"
        )
    with socket.socket() as probe:
        # as the server does: a port whose last connections are still closing is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}): another server may "
                "have it. Set port= (or host=) to a free one."
            ) from error


def plan(config: ServeConfig) -> list[RolePlan]:
    """The replicas' resources; the ingress and the proxy book none."""
    from cluster.layout import worker_plan
    from cluster.memory import Memory

    gpus, need = 1.0 if config.device == "gpu" else 0.0, Memory(_PROCESSES_GIB, cache=config.kv_cache_gib)
    return [worker_plan("serve", config.replicas, config.cpus, gpus, need)]


def llm_settings(config: ServeConfig) -> dict[str, Any]:
    """The arguments of `ray.serve.llm.LLMConfig`."""
    engine: dict[str, Any] = {
        "dtype": config.dtype,
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        "enforce_eager": config.device == "cpu",
    }
    if config.max_model_len is not None:
        engine["max_model_len"] = config.max_model_len
    settings: dict[str, Any] = {
        "model_loading_config": {"model_id": config.name, "model_source": model_folder(config.model)},
        "server_cls": "actors.llm_server:StoppingServer",
        "accelerator_config": {"kind": config.device},
        "engine_kwargs": engine,
        "deployment_config": {
            "num_replicas": config.replicas,
            "ray_actor_options": {"num_cpus": config.cpus},
            # what keeps an engine from starting is hardly ever gone at the next attempt, which takes a minute
            "max_constructor_retry_count": 1,
        },
        "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}},
        "log_engine_metrics": False,
    }
    if config.device == "cpu":
        # vLLM's CPU workers are children of the replica, so they need no bundle of their own
        settings["placement_group_config"] = {"bundle_per_worker": {"CPU": 0}}
    return settings


def start(config: ServeConfig) -> str:
    """Deploy on the connected cluster and wait until the application answers.

    Returns the base URL, `http://HOST:PORT/v1`.  Raises RoleError when a replica cannot start,
    ResourceError when it is not up within `start_deadline_s`, ConfigError when Ray Serve listens elsewhere already.
    """
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    _quiet()
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
    _check_listens(config)
    app = build_openai_app(
        {
            "llm_configs": [LLMConfig(**llm_settings(config))],
            "ingress_deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
        }
    )
    serve.run_many([serve.RunTarget(app, name=APP_NAME)], wait_for_applications_running=False)
    _wait_until_running(config.start_deadline_s)
    return f"http://{config.host}:{config.port}/v1"


def _check_listens(config: ServeConfig) -> None:
    """Ray Serve has one address a cluster, settled by whoever started it first; it says nothing of other wishes."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    running = client.get_serve_details()["http_options"]
    if (running["host"], running["port"]) != (config.host, config.port):
        raise ConfigError(
            f"Ray Serve runs on this cluster already and listens on {running['host']}:{running['port']}, not on "
            f"{config.host}:{config.port}: set host={running['host']} port={running['port']}, or end it with "
            "`serve shutdown`"
        )


def _quiet() -> None:
    """Ray Serve and the HTTP client say for every step and request what no user asked for."""
    for name in ("ray.serve", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _wait_until_running(deadline_s: float) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    started = time.monotonic()
    while True:
        application = serve.status().applications[APP_NAME]
        if application.status == ApplicationStatus.RUNNING:
            return
        details = "; ".join(
            f"{name} {deployment.status.value}: {deployment.message}"
            for name, deployment in application.deployments.items()
            if deployment.message
        )
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            stop()
            raise RoleError(
                f"the model could not be served: {application.message} {details}\n"
                "The last lines above are vLLM's own; the usual causes are a model it does not support, "
                "max_model_len beyond the model's context, and kv_cache_gib too small for one sequence."
            )
        if time.monotonic() - started > deadline_s:
            stop()
            raise ResourceError(
                f"the server did not answer within {deadline_s:g} s (status {application.status.value}). "
                f"{details or application.message}\nIf a replica waits for resources, lower replicas= "
                "or cpus=; if the model is large, raise start_deadline_s=."
            )
        time.sleep(0.5)


def ask(
    base_url: str,
    model: str,
    prompt: str | list[dict[str, str]],
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The answer to a text (`/v1/completions`) or to chat messages (`/v1/chat/completions`)."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key="none")
    if isinstance(prompt, str):
        completion = client.completions.create(
            model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        return completion.choices[0].text
    answer = client.chat.completions.create(
        model=model,
        messages=prompt,  # type: ignore[arg-type]  # plain dicts are what the client sends on
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    return answer.choices[0].message.content or ""


def stop() -> None:
    """Take the application down; Serve's own actors go too unless they serve other applications.

    On a local cluster they are left to its end, which is next.
    """
    from ray import serve

    if APP_NAME in serve.status().applications:
        serve.delete(APP_NAME)
    if os.environ.get("RAY_ADDRESS") and not serve.status().applications:
        serve.shutdown()


def run(config: ServeConfig) -> NoReturn:
    """Serve until interrupted."""
    from rich.console import Console

    console = Console()
    console.print(f"starting {config.name} from {config.model}: about a minute")
    try:
        base_url = start(config)
        body = f'{{"model": "{config.name}", "prompt": "The movie", "max_tokens": 32}}'
        console.print(f"{config.name} is served at {base_url} (Ctrl-C stops it). Try:\n", markup=False)
        # written plainly: a wrapped line could not be pasted into a shell
        print(f"curl {base_url}/completions -H 'Content-Type: application/json' -d '{body}'", flush=True)
        while True:
            time.sleep(1)
    finally:
        stop()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return command.main("serve", ServeConfig, check, plan, run, argv)


if __name__ == "__main__":
    sys.exit(main())
