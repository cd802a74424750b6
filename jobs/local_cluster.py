"""A Ray cluster on this machine: `rayrlhf cluster up`, `status` and `down`.

rayrlhf cluster up              # a head with dashboard, token and metrics, which stays when the command has ended
rayrlhf cluster up --nodes 2    # two nodes on this machine, to try a layout
rayrlhf cluster status          # also of another cluster: --address URL
rayrlhf cluster down
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cluster.local_cluster import LocalCluster, Settings, check, default_temp_dir, read, start, state_file, stop
from jobs.command import USER_ERROR, ToolParser, complain
from jobs.submission import TERMINAL, connect, dashboard_address
from rayrlhf.errors import ConfigError, ResourceError, UserError

_MIB = 2**20


def run(argv: Sequence[str]) -> int:
    """`up`, `status` or `down`; returns the exit code."""
    try:
        given = _parser().parse_args(argv)
        return {"up": up, "status": status, "down": down}[given.action](given)
    except UserError as error:
        complain(str(error))
        return USER_ERROR


def up(given: argparse.Namespace) -> int:
    """Start the cluster, and print what to paste; where it is up already only the latter."""
    wanted = {name: value for name in asdict(Settings()) if (value := getattr(given, name, None)) is not None}
    found = read()
    if found is not None and found.is_up():
        has = asdict(found.settings)
        other = [f"{name}={has[name]}, not {value}" for name, value in wanted.items() if has[name] != value]
        if other:
            raise ConfigError(f"a cluster is up already, with {'; '.join(other)}: `rayrlhf cluster down` first")
        print(f"up already\n{_lines(found)}")
        return 0
    settings = Settings(**{**_defaults(wanted.get("nodes", 1)), **wanted})
    check(settings)
    if found is not None:
        print(f"the cluster that was up is gone (its log: {found.logs}); {stop(found)} processes were left of it")
    print(_lines(start(settings, given.timeout)))
    return 0


def status(given: argparse.Namespace) -> int:
    """Nodes, resources and running jobs of the local cluster, or of the one at --address."""
    found = None if given.address else read()
    if found is None and given.address is None:
        raise ResourceError(f"no cluster was started here ({state_file()}): `rayrlhf cluster up`, or give --address")
    if found is not None and not found.is_up():
        raise ResourceError(f"the cluster that was started is gone; its log is in {found.logs}. `rayrlhf cluster up`")
    if found is not None:
        os.environ["RAY_AUTH_MODE"] = "token"  # before Ray is imported
    address = found.dashboard if found is not None else dashboard_address(given.address)
    client = connect(address)
    nodes = _wait_for(given.wait_nodes, address, given.timeout)
    _print_status(address, client, nodes)
    if found is not None:
        print(f"\n{_lines(found)}")
    return 0


def down(given: argparse.Namespace) -> int:
    """End the local cluster, and nothing else on the machine."""
    found = read()
    if found is None:
        print("nothing to end: no cluster was started here")
        return 0
    if found.is_up() and not given.force:
        os.environ["RAY_AUTH_MODE"] = "token"
        running = _running(connect(found.dashboard))
        if running:
            raise ConfigError(
                f"{', '.join(running)} still run{'s' if len(running) == 1 else ''}: `rayrlhf stop ID` ends a job "
                "resumably, `rayrlhf cluster down --force` ends the cluster under it"
            )
    print(f"ended {stop(found)} processes; their logs stay in {found.logs}")
    return 0


def _parser() -> ToolParser:
    parser = ToolParser(prog="rayrlhf cluster", description="A Ray cluster on this machine.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="up | status | down", required=True)
    make = actions.add_parser("up", help="start it", allow_abbrev=False)
    make.add_argument("--port", type=_port, help="what nodes and drivers join (default 6379)")
    make.add_argument("--dashboard-port", type=_port, help="dashboard and jobs, on loopback only (default 8265)")
    make.add_argument("--metrics-port", type=_port, help="Prometheus metrics of the head (default 8080)")
    make.add_argument("--nodes", type=_count, help="nodes, all on this machine, to try layouts (default 1)")
    make.add_argument("--cpus", type=_count, help="CPUs that each announces (default: the machine's, at least 4)")
    make.add_argument("--memory-mib", type=_count, help="memory that each announces (default: its share)")
    make.add_argument("--object-store-mib", type=_count, help="each one's object store (default: a tenth of memory)")
    make.add_argument("--temp-dir", help=f"Ray's files and logs (default {default_temp_dir()})")
    make.add_argument("--timeout", type=_seconds, default=120.0, help="seconds to wait for it (default 120)")
    look = actions.add_parser("status", help="nodes, resources, running jobs", allow_abbrev=False)
    look.add_argument("--address", help="another cluster's dashboard URL")
    look.add_argument("--wait-nodes", type=_count, default=1, help="wait until so many nodes are there")
    look.add_argument("--timeout", type=_seconds, default=600.0, help="seconds to wait for them (default 600)")
    end = actions.add_parser("down", help="end it", allow_abbrev=False)
    end.add_argument("--force", action="store_true", help="also under running jobs")
    return parser


def _port(text: str) -> int:
    return _within(text, 1024, 65535)


def _count(text: str) -> int:
    return _within(text, 1, 2**31)


def _within(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} to {high}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _defaults(nodes: int) -> dict[str, Any]:
    """What this machine has, as a job that starts a cluster of its own would announce it; memory in equal shares."""
    from cluster.bring_up import local_node

    has = local_node()
    shares = {"memory_mib": has["memory"], "object_store_mib": has["object_store_memory"]}
    return {
        "cpus": int(has["CPU"]),
        **{name: max(1, int(size / nodes / _MIB)) for name, size in shares.items()},
        "temp_dir": default_temp_dir(),
    }


def _lines(cluster: LocalCluster) -> str:
    """What to paste where."""
    metrics = " ".join(f"{cluster.ip}:{node.metrics_port}" for node in cluster.nodes)
    return "\n".join(
        [
            f"dashboard   {cluster.dashboard}   asks for the token that `ray get-auth-token` prints",
            f"metrics     {metrics}   for Prometheus, at /metrics",
            f"logs        {cluster.logs}",
            "",
            "in the shell that submits jobs:",
            f"    export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS={cluster.dashboard}",
            "    rayrlhf submit pipeline jobs/configs/demo.yaml run.root=$PWD/runs",
            "a job in this shell, without submitting it:",
            f"    RAY_AUTH_MODE=token RAY_ADDRESS={cluster.address} rayrlhf pipeline jobs/configs/demo.yaml",
            "another machine that joins (same Ray and Python, the same token in its ~/.ray/auth_token):",
            f"    RAY_AUTH_MODE=token ray start --address={cluster.address}",
        ]
    )


def _wait_for(number: int, address: str, timeout_s: float) -> list[Any]:
    """The live nodes, once there are `number`.  Raises ResourceError when there are fewer after `timeout_s`."""
    from ray.util.state import list_nodes

    deadline = time.monotonic() + timeout_s
    while True:
        alive = [node for node in list_nodes(address=address, limit=10_000) if node.state == "ALIVE"]
        if len(alive) >= number:
            return alive
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{address} has {len(alive)} live nodes, not {number}, after {timeout_s:g} s: look at the logs of "
                "those that are missing, or raise --timeout"
            )
        time.sleep(1)


def _print_status(address: str, client: Any, nodes: list[Any]) -> None:
    import ray
    from rich.console import Console
    from rich.table import Table

    version = client._do_request("GET", "/api/version").json()["ray_version"]
    here = "" if version == ray.__version__ else f"; here is {ray.__version__}: submit from the cluster's version"
    guard = "asks for a token" if _asks_for_token(address) else "OPEN: asks for no token"
    print(f"{address}   Ray {version}{here}   {guard}")
    table = Table("node", "address", "CPU", "GPU", "memory GiB", "object store GiB", box=None, pad_edge=False)
    for node in sorted(nodes, key=lambda node: not node.is_head_node):
        has = node.resources_total
        sizes = [f"{has.get(name, 0) / 2**30:.1f}" for name in ("memory", "object_store_memory")]
        table.add_row(node.node_name, node.node_ip, *(f"{has.get(name, 0):g}" for name in ("CPU", "GPU")), *sizes)
    Console(width=None if sys.stdout.isatty() else 250).print(table)
    running = _running(client)
    print(f"running jobs: {', '.join(running) if running else 'none'}")


def _running(client: Any) -> list[str]:
    """The jobs that have not ended; drivers that joined without being submitted by their number."""
    return [job.submission_id or job.job_id for job in client.list_jobs() if job.status.value not in TERMINAL]


def _asks_for_token(address: str) -> bool:
    """Whether a request without a token is turned away."""
    try:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=10).close()
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    return False
