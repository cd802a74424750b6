"""Joining the cluster that is there, or starting one on this machine.

RAY_ADDRESS (Ray sets it inside a submitted job) names an existing cluster; without it a private
one is started, and it goes away with `disconnect`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from cluster import dashboards
from rayrlhf.environment import COMMAND, memory_gib
from rayrlhf.errors import ConfigError, ResourceError

# Off unless the user has set them: telemetry, and chatter of the actors on the driver's console
# (Ray keeps their logs, and the dashboard shows them).
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "KINETO_LOG_LEVEL": "5",  # of torch's profiler
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    # glibc gives every tensor of some MB back to the kernel at once and takes fresh, zeroed pages for
    # the next: on CPUs a training step is up to 2.6 times as fast when it keeps them
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    # oneDNN, which makes bfloat16's products, keeps code and buffers for each of the last 1,024 shapes, twice, and each
    # microbatch has a number of tokens of its own: the demo's workers grew to 2.4 GiB.  64 hold a pass, at no cost
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # threads that wait for each other spin for some microseconds only, then sleep: by default they spin long, and where
    # another process has one of their cores (another role, or the user's browser) sampling was 7 to 30 times slower.
    # libgomp takes the count, other runtimes the policy, which alone costs a third of the speed on idle cores
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "3000",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # a call after the cluster has been left is an error: Ray would start one of its own, also while Python
    # exits and Ray Data cleans up, where it then waits for ever
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_GIB = 2**30
_READER = "iter_threaded"  # the threads of `iter_batches`, as Ray Data names them
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job manager sets it for a submitted job's driver


def connect(metadata: dict[str, str] | None = None) -> None:
    """Connects this process to the cluster of RAY_ADDRESS, or starts a local one.

    `metadata`: what the dashboard and the state API say of this job.

    Raises ResourceError when the cluster does not answer, ConfigError when the address is of
    another kind than a driver can join.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.job_config import JobConfig

    job = JobConfig(metadata=metadata)
    told = [name for name in (*_missing_in_job(), COMMAND) if name in os.environ]
    actors_environment = {"env_vars": {name: os.environ[name] for name in told}}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        try:
            ray.init(address=address, job_config=job, logging_level=logging.WARNING, runtime_env=actors_environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"could not join the Ray cluster at RAY_ADDRESS={address}: {error}\nIs it running, with the "
                "same versions of Ray and Python? Unset RAY_ADDRESS to start a local one."
            ) from error
        return
    # Ray turns token authentication on by itself and says at every start how to turn it off.  (Naming
    # the mode in RAY_AUTH_MODE silences it too, but then Ray makes no token where there is none.)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    node = local_node()
    ray.init(
        address="local",
        job_config=job,
        num_cpus=int(node["CPU"]),
        object_store_memory=int(node["object_store_memory"]),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        runtime_env=actors_environment,
    )
    dashboards.install(dashboards.folder_of(ray.get_runtime_context().get_session_name()))


def disconnect() -> None:
    """Leaves the cluster; a local one is stopped with all its processes."""
    import ray

    _wait_for_readers()
    ray.shutdown()


def _wait_for_readers(timeout_s: float = 5.0) -> None:
    """Ray Data reads ahead in threads that end a moment after their iterator is closed.  One that touches its blocks
    after Ray has gone ends the whole process at once: no message, a wrong exit code, Ray's processes left behind."""
    deadline = time.monotonic() + timeout_s
    for thread in threading.enumerate():
        if thread.name == _READER:
            thread.join(max(deadline - time.monotonic(), 0))


def nodes() -> list[dict[str, float]]:
    """The resources of each live node of the connected cluster, as Ray counts them (memory in bytes)."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def planned_nodes() -> list[dict[str, float]]:
    """`nodes()` of the cluster of RAY_ADDRESS, or of the local one that `connect` would start."""
    if not os.environ.get("RAY_ADDRESS"):
        return [local_node()]
    connect()
    try:
        return nodes()
    finally:
        disconnect()


def local_node() -> dict[str, float]:
    """What a local cluster offers.

    CPUs are for placement only, so a machine of two still has the four that the stages' helpers
    ask together; the threads that compute are set by the layout.
    """
    memory = memory_gib() * _GIB
    store = min(max(0.1 * memory, 0.5 * _GIB), 8 * _GIB)
    node = {"CPU": float(max(4, os.cpu_count() or 1)), "memory": memory - store, "object_store_memory": store}
    gpus = _gpus()
    return {**node, "GPU": float(gpus)} if gpus else node


def in_submitted_job() -> bool:
    """Whether this process is the driver of a job given to `ray job submit`."""
    return _JOB in os.environ


def check_run_root(root: str) -> None:
    """Refuses a relative run root inside a submitted job: its working directory is a temporary copy.

    Raises ConfigError.
    """
    if "://" in root or Path(root).is_absolute() or not in_submitted_job():
        return
    raise ConfigError(
        f"run.root={root} is relative, but a submitted job runs in a temporary copy of the tree that is "
        "deleted afterwards. Submit with an absolute path on storage that every node sees: run.root=$PWD/runs"
    )


def _missing_in_job() -> list[str]:
    """The variables actors still need; Ray refuses those that a submitted job's runtime_env sets too."""
    job = json.loads(os.environ.get(_JOB, "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return [name for name in ENVIRONMENT if name not in given]


def _check_answers(address: str) -> None:
    """Ray itself tries an address for many seconds before it gives up."""
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS={address} is not a cluster's own address. Use `ray job submit --address {address} "
            "--working-dir . -- python -m jobs.JOB ...`, or on a node of the cluster RAY_ADDRESS=auto"
        )
    if address in ("auto", "local"):
        return
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("no HOST:PORT")
        socket.create_connection((parts.hostname, parts.port), timeout=3).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}). Start one with `rayrlhf cluster up`, "
            "correct the address, or unset RAY_ADDRESS to start a local one."
        ) from error


def _gpus() -> int:
    """GPUs as Ray would count them, without starting it or CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0
