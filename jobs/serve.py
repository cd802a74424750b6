"""`rayrlhf serve runs/NAME/ppo`: models behind an OpenAI-compatible HTTP endpoint.

Ray Serve does the work: `ray.serve.llm`'s deployments of vLLM replicas, and its ingress that speaks OpenAI's protocol,
which `actors/openai_ingress.py` adds A/B names, scores and limits to.  This file builds the application from the
configuration, waits until it answers, rolls out newer checkpoints, and takes it down.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from jobs import command
from jobs.serve_config import (
    ServeConfig,
    Served,
    check_follow,
    check_key,
    check_models,
    is_loopback,
    is_reward_model,
    split_arguments,
)
from jobs.serve_follow import Follower
from jobs.serve_snapshots import Snapshots
from rayrlhf.checkpoint import stage_hash
from rayrlhf.config import from_tree
from rayrlhf.errors import ConfigError, ResourceError, RoleError
from rayrlhf.model_folder import model_folder
from rayrlhf.version import __version__

if TYPE_CHECKING:
    from cluster.layout import RolePlan

APP_NAME = "rayrlhf"
_PROCESSES_GIB = 2.5  # a replica, its engine and its worker process with a tiny model, measured
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # see cluster/bring_up.py
    "GOMP_SPINCOUNT": "3000",
}
# of a cluster's own, or of no meaning where Ray Serve deploys the application itself
_NOT_OF_AN_APPLICATION = ("host", "port", "start_deadline_s", "follow_s")


def check(config: ServeConfig) -> None:
    """The models can be served, the key is there, and the port is free."""
    check_models(config)
    check_follow(config)
    check_key(config, is_open=not is_loopback(config.host))
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
    """The replicas' resources, with those of an update where one may come; the ingress and the proxy book none."""
    from cluster.layout import worker_plan
    from cluster.memory import Memory

    roles = []
    surge = config.surge_percent if config.follow_s is not None else 0
    for served in config.served:
        gpus = 1.0 if served.device == "gpu" else 0.0
        name = "serve" if config.model is not None else f"serve {served.name}"
        need = Memory(_PROCESSES_GIB, cache=served.kv_cache_gib)
        replicas = served.replicas + -(-served.replicas * surge // 100)
        roles.append(worker_plan(name, replicas, served.cpus, gpus, need))
    return roles


def deployment_settings(served: Served, config: ServeConfig) -> dict[str, Any]:
    """The options of Ray Serve's deployment of a model."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": served.cpus},
        # what keeps an engine from starting is hardly ever gone at the next attempt, which takes a minute
        "max_constructor_retry_count": 1,
        "max_ongoing_requests": config.limits.max_ongoing,
        "max_queued_requests": config.limits.max_queued,
        "backpressure_config": {"status_code": 429},
        "graceful_shutdown_timeout_s": config.drain_s,
        "health_check_period_s": config.health_check_s,
        "max_surge_percent": config.surge_percent,
    }
    if served.autoscaling is None:
        return options | {"num_replicas": served.replicas}
    scaling = {
        "min_replicas": served.replicas,
        "max_replicas": served.autoscaling.max_replicas,
        "target_ongoing_requests": served.autoscaling.target_ongoing,
        "upscale_delay_s": served.autoscaling.upscale_delay_s,
        "downscale_delay_s": served.autoscaling.downscale_delay_s,
    }
    return options | {"autoscaling_config": scaling}


def llm_settings(served: Served, folder: str, config: ServeConfig) -> dict[str, Any]:
    """The arguments of `ray.serve.llm.LLMConfig` for the model in `folder`."""
    engine: dict[str, Any] = {
        "dtype": served.dtype,
        "load_format": "safetensors",
        "kv_cache_memory_bytes": int(served.kv_cache_gib * 2**30),
        "enforce_eager": served.device == "cpu",
    }
    if served.max_model_len is not None:
        engine["max_model_len"] = served.max_model_len
    if config.limits.max_tokens is not None:  # of requests that set no bound, within what the context leaves
        engine["override_generation_config"] = {"max_new_tokens": config.limits.max_tokens}
    settings: dict[str, Any] = {
        "model_loading_config": {"model_id": served.name, "model_source": folder},
        "server_cls": "actors.llm_server:StoppingServer",
        "accelerator_config": {"kind": served.device},
        "engine_kwargs": engine,
        "deployment_config": deployment_settings(served, config),
        "runtime_env": {"env_vars": _ENVIRONMENT},
        "log_engine_metrics": False,
    }
    if served.device == "cpu":
        # vLLM's CPU workers are children of the replica, so they need no bundle of their own
        settings["placement_group_config"] = {"bundle_per_worker": {"CPU": 0}}
    return settings


def build(config: ServeConfig) -> Any:
    """The Ray Serve application: a deployment for each model, and the ingress in front of them.

    Raises ConfigError for models at a URI, which come to this node alone, on a cluster of several.
    """
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from actors.http_guard import digest
    from actors.openai_ingress import RequestLimits, ingress_class
    from actors.reward_server import RewardServer

    remote = [served.model for served in config.served if "://" in served.model]
    if remote and ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1:
        raise ConfigError(
            f"{', '.join(remote)}: a model at a URI is fetched to one node, and this cluster has several: copy it to a "
            "file system that all of them share"
        )
    writers, scorers = {}, {}
    for served in config.served:
        folder, content = model_folder(served.model), stage_hash(served.model)
        if is_reward_model(folder):
            options = deployment_settings(served, config)
            options["ray_actor_options"]["num_gpus"] = 1 if served.device == "gpu" else 0
            deployment = serve.deployment(name=f"RewardServer:{served.name}", **options)(RewardServer)
            arguments = folder, config.score_batch, max(1, int(served.cpus))
            scorers[served.name] = _versioned(deployment.bind(*arguments), content, arguments)
        else:
            settings = llm_settings(served, folder, config)
            made = build_llm_deployment(LLMConfig(**settings))
            made_of = {key: value for key, value in settings.items() if key != "deployment_config"}
            writers[served.name] = _versioned(made, content, made_of)
    key = config.api_key
    front = ingress_class(key and digest(key), int(config.limits.body_mib * 2**20))
    options = {
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 10**6,  # what counts are those of the models' deployments
        "graceful_shutdown_timeout_s": config.drain_s,
        "health_check_period_s": config.health_check_s,
        "max_surge_percent": config.surge_percent,
    }
    limits = RequestLimits(config.limits.max_tokens, config.limits.max_answers)
    names = {name: one._bound_deployment.name for name, one in (writers | scorers).items()}
    ingress = serve.deployment(name="Ingress", **options)(front).bind(writers, scorers, config.ab, limits, names)
    return _versioned(ingress, key and digest(key), config.ab, config.limits.model_dump(), names)


def _versioned(application: Any, *made_of: Any) -> Any:
    """`application` with a version of its deployment: an update leaves the replicas alone that would be the same again,
    while without one Ray Serve replaces every replica of an application."""
    text = json.dumps([__version__, *made_of], sort_keys=True)
    version = hashlib.sha256(text.encode()).hexdigest()[:16]
    application._bound_deployment = application._bound_deployment.options(version=version, _internal=True)
    return application


def application(args: dict[str, Any]) -> Any:
    """The builder that a Serve configuration (`serve deploy`, KubeRay's RayService) names as `jobs.serve:application`;
    `args` are the keys of `rayrlhf serve`, but those of the listening: they are the cluster's (`http_options`).

    Raises ConfigError, also for no key: such a cluster listens for others.
    """
    of_others = [key for key in _NOT_OF_AN_APPLICATION if key in args]
    if of_others:
        raise ConfigError(f"{', '.join(of_others)}: not of an application's args; see http_options of the file")
    config = from_tree(ServeConfig, {"host": "0.0.0.0"} | args)
    check_models(config)
    check_key(config, is_open=True)
    return build(config)


def start(config: ServeConfig) -> str:
    """Deploy on the connected cluster and wait until the application answers.

    Returns the base URL, `http://HOST:PORT/v1`.  Raises RoleError when a replica cannot start,
    ResourceError when it is not up within `start_deadline_s`, ConfigError when Ray Serve listens elsewhere already.
    """
    from ray import serve

    _quiet()
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
    _check_listens(config)
    if APP_NAME in serve.status().applications:
        raise ConfigError(
            f"this cluster serves {APP_NAME} already, and an application has one command that answers for it: end that "
            "one, or let it follow newer checkpoints (follow_s)"
        )
    app = build(config)
    try:
        _deploy(app, config.start_deadline_s)
    except BaseException:
        stop(config.drain_s)
        raise
    return f"http://{config.host}:{config.port}/v1"


def update(config: ServeConfig) -> None:
    """Let the application be what `config`, and the checkpoints that it names, say now; replicas of what has changed
    are replaced, the new ones first (`surge_percent`), and what cannot start leaves the old ones as they are.

    Raises RoleError and ResourceError as `start`.
    """
    _deploy(build(config), config.start_deadline_s)


def _deploy(app: Any, deadline_s: float) -> None:
    from ray import serve

    serve.run_many([serve.RunTarget(app, name=APP_NAME)], wait_for_applications_running=False)
    _wait_until_running(deadline_s)


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
            raise RoleError(
                f"the model could not be served: {application.message} {details}\n"
                "The last lines above are vLLM's own; the usual causes are a model it does not support, "
                "max_model_len beyond the model's context, and kv_cache_gib too small for one sequence."
            )
        if time.monotonic() - started > deadline_s:
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
    api_key: str | None = None,
) -> str:
    """The answer to a text (`/v1/completions`) or to chat messages (`/v1/chat/completions`)."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key=api_key or "none")
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


def stop(drain_s: float = 60.0) -> None:
    """Take the application down, once its replicas have finished their requests, `drain_s` at most; Serve's own actors
    go too unless they serve other applications.

    On a local cluster they are left to its end, which is next.
    """
    from ray import serve

    if APP_NAME in serve.status().applications:
        serve.delete(APP_NAME, _blocking=False)  # blocking it gives up after 60 seconds
        deadline = time.monotonic() + drain_s + 30
        while APP_NAME in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.2)
    if os.environ.get("RAY_ADDRESS") and not serve.status().applications:
        serve.shutdown()


def run(config: ServeConfig) -> NoReturn:
    """Serve until interrupted."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    names = ", ".join(f"{served.name} from {served.model}" for served in config.served)
    console.print(f"starting {names}: about a minute")
    with Snapshots(console.print) as snapshots:
        follower = Follower(config, update, console.print, snapshots)  # before: what comes while it starts is newer
        base_url = start(follower.pinned)
        try:
            console.print(f"served at {base_url} (Ctrl-C stops it). Try:\n")
            # written plainly: a wrapped line could not be pasted into a shell
            print(_example(config, base_url), flush=True)
            while True:
                time.sleep(config.follow_s or 1)
                if config.follow_s is not None:
                    follower.look()
        finally:
            stop(config.drain_s)


def _example(config: ServeConfig, base_url: str) -> str:
    """A command that asks the first model."""
    first = config.served[0]
    path, body = "completions", {"model": first.name, "prompt": "The movie", "max_tokens": 32}
    if is_reward_model(model_folder(first.model)):
        path, body = "score", {"model": first.name, "text_1": "The movie", "text_2": " is good"}
    key = f' -H "Authorization: Bearer ${config.api_key_env}"' if config.api_key_env else ""
    return f"curl {base_url}/{path}{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        arguments = split_arguments(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        command.complain(str(error))
        return command.USER_ERROR
    return command.main("serve", ServeConfig, check, plan, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
