"""Whether a cluster that has no room now could grow: what its autoscaler may bring.

Ray's own `get_cluster_config` is empty outside Anyscale, so the file that the autoscaler was started with
(`ray up`, `ray start --autoscaling-config`) is read on the head node.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import bring_up
from cluster.layout import RolePlan, fits, places
from rayrlhf.errors import ResourceError

HEAD = "node:__internal_head__"  # the resource that Ray gives the head node alone
_ANSWER_S = 60.0


def needs_growth(
    plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]], most: Sequence[Mapping[str, float]] | None
) -> bool:
    """Whether the plan has to wait for more nodes than the cluster's `nodes`; `most`: those of the cluster at its
    largest, None where nothing makes it grow.  Raises ResourceError where it could not hold the plan even then."""
    if most is None or places(plan, nodes)[1] is None:
        fits(plan, nodes)
        return False
    try:
        fits(plan, most)
    except ResourceError as error:
        raise ResourceError(
            f"also at its largest {error}\nThis is the autoscaler's maximum; now there are {len(nodes)} node(s) with "
            f"{_sum(nodes, 'CPU'):g} CPU, {_sum(nodes, 'GPU'):g} GPU. Raise max_workers in the cluster's file, or "
            "give it a node type that is large enough."
        ) from error
    return True


def most_nodes(config: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The nodes of a cluster of Ray's YAML `config` at its largest: the head that is there, and as many of each type
    as the type's max_workers and that of the cluster let in.  An upper bound: of all types together the cluster's
    max_workers may let in fewer."""
    limit = config.get("max_workers", 0)
    most = [dict(node) for node in nodes if HEAD in node]
    for name, kind in config["available_node_types"].items():
        if name != config.get("head_node_type"):
            most += [dict(kind.get("resources", {}))] * min(limit, kind.get("max_workers", limit))
    return most


def most_of_cluster() -> list[dict[str, float]] | None:
    """`most_nodes` of the connected cluster; None where it has no autoscaler, or one whose file is not on its head."""
    import ray

    if not ray.is_initialized():
        return None
    read = ray.remote(num_cpus=0, resources={HEAD: 0.001})(_autoscaler_config)
    try:
        config = ray.get(read.remote(ray.get_runtime_context().gcs_address), timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        return None
    return None if config is None else most_nodes(config, bring_up.nodes())


def planned_most() -> list[dict[str, float]] | None:
    """`most_of_cluster` of the cluster of RAY_ADDRESS; None for a local one, which does not grow."""
    if not os.environ.get("RAY_ADDRESS"):
        return None
    bring_up.connect()
    try:
        return most_of_cluster()
    finally:
        bring_up.disconnect()


def _autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """On the head: what the autoscaler of the cluster at `gcs_address` was started with."""
    import psutil
    import yaml

    option = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        files = [word.removeprefix(option) for word in line if word.startswith(option)]
        if files and f"--gcs-address={gcs_address}" in line and Path(files[0]).expanduser().is_file():
            return dict(yaml.safe_load(Path(files[0]).expanduser().read_text()))
    return None


def _sum(nodes: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(node.get(key, 0.0) for node in nodes)
