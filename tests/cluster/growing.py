"""Run by test_growth.py in a process of its own: a cluster of one node whose autoscaler may bring another.

Ray's `AutoscalingCluster` stops all of the machine's Rays when it starts; this starts and ends only its own.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

os.environ["RAY_AUTH_MODE"] = "disabled"  # `ray start` would make a token after this process has looked for one

import psutil
import ray

from cluster import bring_up, growth, placement
from cluster.config import LayoutConfig
from cluster.layout import worker_plan
from cluster.placement import Placement, grow
from rayrlhf.errors import ResourceError

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's fake provider takes it for the head


def config(address):
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "provider": {
            # as `external`: the example file that its own type wants is not in Ray's wheel
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 3, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def start(address, folder):
    path = os.path.join(folder, "cluster.json")
    with open(path, "w") as file:
        json.dump(config(address), file)
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    host, port = address.split(":")
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--node-ip-address={host}", "--num-cpus=1"]
    command += [f"--autoscaling-config={path}", "--include-dashboard=false", "--object-store-memory=80000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={free_port()}"]
    with open(os.path.join(folder, "ray.log"), "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def end(head, address):
    """Its processes, and those that its nodes left behind: they name its address."""
    mine = psutil.Process(head.pid).children(recursive=True) + [psutil.Process(head.pid)]
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(address in word for word in process.info["cmdline"] or []):
            mine.append(process)
    for process in mine:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def layout(cpus):
    pools = {"p": {"bundles": 1, "cpus": cpus}}
    return LayoutConfig.model_validate({"base": None, "pools": pools, "roles": {"a": {"pool": "p", "cpus": cpus}}})


def refusal(work):
    begin = time.monotonic()
    try:
        work()
    except ResourceError as error:
        return {"message": str(error), "seconds": time.monotonic() - begin}
    return None


def main():
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        head = start(address, folder)
        try:
            for _ in range(60):
                try:
                    ray.init(address=address, logging_level="error")
                    break
                except (ConnectionError, RuntimeError, ValueError):
                    time.sleep(1)
            seen = {"before": len(bring_up.nodes()), "most": [node["CPU"] for node in growth.most_of_cluster() or []]}
            lines = []
            placement._REPORT_EVERY_S = 0.5  # the node comes soon
            seen["too_much"] = refusal(lambda: Placement.reserve(layout(4), 120, lines.append))
            seen["too_many_workers"] = refusal(lambda: grow([worker_plan("sft", 5, 1.0)], 120, lines.append))
            seen["refused_lines"] = list(lines)
            reserved = Placement.reserve(layout(3), 120, lines.append)
            seen |= {"lines": lines, "after": len(bring_up.nodes())}
            reserved.release()
            grow([worker_plan("sft", 4, 1.0)], 5)  # there is room now
            ray.shutdown()
            print("SEEN " + json.dumps(seen))
        finally:
            end(head, address)


if __name__ == "__main__":
    sys.exit(main())
