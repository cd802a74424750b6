"""Run by test_bring_up.py in a process of its own: joins a local cluster, leaves it, prints what it saw."""

import json
import os
import urllib.error
import urllib.request

import psutil
import ray
from ray.util.state import list_jobs

from cluster import bring_up, dashboards
from rayrlhf.environment import environment, remember_command


@ray.remote(num_cpus=0)
def remote_environment():
    return {name: os.environ.get(name) for name in bring_up.ENVIRONMENT}


@ray.remote(num_cpus=0)
def remote_command():
    return environment()["command"]


def refusal(url):
    """The HTTP code of a request without a token; 200 where it is answered."""
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def main():
    planned = bring_up.planned_nodes()
    me = psutil.Process()
    remember_command(["rayrlhf", "sft", "run.name=try"])
    bring_up.connect({"job": "sft", "run": "try"})
    during = me.children(recursive=True)
    seen = {
        "planned_cpus": [node["CPU"] for node in planned],
        "cpus": [node["CPU"] for node in bring_up.nodes()],
        "store": bring_up.nodes()[0]["object_store_memory"],
        "planned_store": planned[0]["object_store_memory"],
        "environment": ray.get(remote_environment.remote()),
        "command": ray.get(remote_command.remote()),
        "dashboard": ray.get_runtime_context() is not None and ray._private.worker.get_dashboard_url(),
    }
    seen["job"] = [job.metadata for job in list_jobs(f"http://{ray._private.worker.get_dashboard_url()}", detail=True)]
    seen["refusals"] = [refusal(f"http://{seen['dashboard']}{path}") for path in ("/api/jobs/", "/api/version")]
    port = int(seen["dashboard"].rpartition(":")[2])
    connections = [c for process in [me, *during] if process.is_running() for c in process.net_connections("tcp")]
    seen["dashboard_at"] = sorted({c.laddr.ip for c in connections if c.status == "LISTEN" and c.laddr.port == port})
    folder = dashboards.folder_of(ray.get_runtime_context().get_session_name())
    seen["grafana"] = sorted(path.name for path in folder.iterdir())
    bring_up.disconnect()
    _, left = psutil.wait_procs(during, timeout=20)
    seen["left"] = [process.name() for process in left]
    seen["started"] = len(during)
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
