"""Mistakes with clusters: addresses, layouts, room, ports."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing

from tests.bad_input.registry import PPO, SFT, Case, file, given, without
from tests.bad_input.workshop import Answer, Workshop, free_port


def _layout(content: str) -> Callable[[Workshop], Answer]:
    return file("mine.yaml", content, *PPO, "layout=mine.yaml")


def _port_taken(*argv: str) -> Callable[[Workshop], Answer]:
    """With PORT for one that another server has."""

    def provoke(here: Workshop) -> Answer:
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            return here.renamed(here.run(*(one.replace("PORT", port) for one in argv)), port, "PORT")

    return provoke


def _serve(*argv: str, **environment: str) -> Callable[[Workshop], Answer]:
    """On a free port."""

    def provoke(here: Workshop) -> Answer:
        port = str(free_port())
        return here.renamed(here.run("serve", *argv, f"port={port}", **environment), port, "PORT")

    return provoke


CASES = (
    Case(
        "more workers than CPUs",
        given(*SFT, "train.num_workers=64"),
        ("64 bundles", "available: 4 CPU", "Lower the numbers"),
    ),
    Case("GPUs where there are none", given(*SFT, "train.gpus_per_worker=1"), ("1 GPU", "0 GPU", "larger cluster")),
    Case(
        "a layout for a GPU where there is none", given(*PPO, "layout=one_gpu"), ("pool all", "layout=cpu needs 1 CPU")
    ),
    Case(
        "more memory than the machine has",
        given(*PPO, "rollout.kv_cache_gib=500"),
        ("501.0 GiB", "20.0 GiB", "lower kv_cache_gib"),
    ),
    Case("a layout that is not there", given(*PPO, "layout=two_gpus"), ("'two_gpus'", "one_gpu", "nor a file")),
    Case("a layout file that is text", _layout("hello\n"), ("mine.yaml", "must hold the keys pools and roles")),
    Case("a layout file that is indented with a tab", _layout("pools:\n\tall: {}\n"), ("line 2", "indent with spaces")),
    Case(
        "a layout without a role that is needed",
        _layout("pools: {all: {cpus: 4}}\nroles: {rollout: {pool: all}}\n"),
        ("no policy, critic",),
    ),
    Case("a role is misspelt", given(*PPO, "layout.roles.polcy.ranks=2"), ("polcy", "did you mean policy?")),
    Case(
        "a role on a pool that is not there",
        given(*PPO, "layout.roles.policy.pool=gpu"),
        ("'gpu'", "pools: all", "add layout.pools.gpu"),
    ),
    Case("a pool without a role", given(*PPO, "layout.pools.more.cpus=1"), ("no role is on pool more", "remove it")),
    Case(
        "a role that its pool has no room for",
        given(*PPO, "layout.roles.policy.cpus=50"),
        ("policy-0 (50 CPU", "raise layout.pools.all"),
    ),
    Case(
        "offload without a GPU",
        given(*PPO, "layout.roles.policy.offload=true"),
        ("offload has no effect", "leave it out"),
    ),
    Case(
        "sampling ahead with roles that take turns",
        given(*PPO, "layout=one_gpu", "max_staleness=1"),
        ("has them", "take turns on a GPU", "set max_staleness=0"),
    ),
    Case(
        "the sampler's log-probs while it samples ahead",
        given(*PPO, "policy.recompute_logprobs_every=5", "max_staleness=1"),
        ("are of other weights", "leave one out"),
    ),
    Case(
        "judging while it samples ahead",
        given(*PPO, "judge_parts=4", "max_staleness=1"),
        ("judge_parts=4", "responses ready before it begins", "leave one out"),
    ),
    Case(
        "judging beside sampling with roles that take turns",
        given(*PPO, "judge_parts=4", "layout=one_gpu"),
        ("judge_parts=4", "take turns on a GPU", "leave one out"),
    ),
    Case(
        "a share that may fail of a few responses at a time",
        given(
            *without(PPO, "reward_model"),
            "reward_function=rayrlhf.data.demo:gold",
            "judge_parts=4",
            "reward_failures.score=0",
        ),
        ("judge_parts=4", "reward_failures.max_share=0.1", "set reward_failures.max_share=1"),
    ),
    Case(
        "parts of responses that come too late",
        given(*PPO, "partial_rollout_tokens=5", "max_staleness=1"),
        ("partial_rollout_tokens=5", "max_staleness is 1: set at least"),
    ),
    Case(
        "parts as long as a response",
        given(*PPO, "partial_rollout_tokens=4096", "max_staleness=1"),
        ("partial_rollout_tokens=4096 cuts no response", "leave it out"),
    ),
    Case(
        "a stop string over two parts",
        given(*PPO, "partial_rollout_tokens=5", "max_staleness=20", "sampling.stop_strings=[END]"),
        ("'END' ends a response", "Leave one of them out"),
    ),
    Case(
        "importance weights of log-probs that are the same",
        given(*PPO, "policy.recompute_logprobs_every=5", "policy.importance_cap=2"),
        ("importance_cap=2", "leave one of them out"),
    ),
    Case("a cluster that is not there", given(*SFT, RAY_ADDRESS="127.0.0.1:1"), ("127.0.0.1:1", "rayrlhf cluster up")),
    Case(
        "a cluster's address without a port",
        given(*SFT, RAY_ADDRESS="somewhere"),
        ("RAY_ADDRESS=somewhere", "HOST:PORT"),
    ),
    Case(
        "a cluster's address with an open bracket",
        given(*SFT, RAY_ADDRESS="[::1"),
        ("RAY_ADDRESS=[::1", "correct the address"),
    ),
    Case(
        "the dashboard's address for the cluster's",
        given(*SFT, RAY_ADDRESS="http://127.0.0.1:8265"),
        ("ray job submit", "RAY_ADDRESS=auto"),
    ),
    Case(
        "a relative run root in a submitted job",
        given(*SFT, RAY_JOB_CONFIG_JSON_ENV_VAR="{}"),
        ("run.root=runs is relative", "run.root=$PWD/runs"),
    ),
    Case(
        "a dashboard that does not answer",
        given("jobs", "--address", "http://127.0.0.1:1"),
        ("http://127.0.0.1:1", "rayrlhf cluster up"),
    ),
    Case(
        "a dashboard's address that is no URL",
        given("jobs", "--address", "head:8265"),
        ("head:8265", "http://127.0.0.1:8265"),
    ),
    Case(
        "the status of a cluster that was not started",
        given("cluster", "status", RAYRLHF_CACHE="cache"),
        ("no cluster was started here", "cluster up"),
    ),
    Case("a port beyond the last", given("cluster", "up", "--port", "99999"), ("99999", "from 1024 to 65535")),
    Case(
        "a port that is taken",
        _port_taken("cluster", "up", "--port", "PORT", "--temp-dir", "ray"),
        ("PORT is taken", "set --port"),
    ),
    Case("a server's port that is taken", _port_taken("serve", "llama", "port=PORT"), ("127.0.0.1:PORT", "Set port=")),
    Case(
        "a server for others without a key", _serve("llama", "host=0.0.0.0"), ("host=0.0.0.0", "set api_key_env=NAME")
    ),
    Case("a server's key that is not set", _serve("llama", "api_key_env=MY_KEY"), ("MY_KEY", "export MY_KEY=")),
    Case(
        "a server's interface that is not there",
        _serve("llama", "host=nowhere.invalid", "without_key=true"),
        ("nowhere.invalid", "host="),
    ),
    Case("a server of a model that is not there", _serve("runs/done/ppo"), ("no model at runs/done/ppo",)),
    Case("a server without a model", _serve(), ("neither is given", "model=PATH")),
    Case("two models of one name", _serve("llama", "./llama"), ("both be named llama", "first=llama")),
    Case(
        "an A/B name of a model that is not there", _serve("llama", "ab={mix: {lama: 1}}"), ("lama", "there are llama")
    ),
    Case(
        "an A/B name of a reward model",
        _serve("llama", "judge", "ab={mix: {judge: 1}}"),
        ("names judge, a reward model",),
    ),
    Case(
        "a server's length beyond the context", _serve("llama", "max_model_len=1000"), ("1000", "set max_model_len=128")
    ),
    Case("a server that follows what cannot change", _serve("llama", "follow_s=5"), ("llama", "name stages")),
    Case(
        "fewer replicas at most than at least",
        _serve("llama", "replicas=3", "autoscaling.max_replicas=2"),
        ("max_replicas=2", "replicas=3"),
    ),
)
