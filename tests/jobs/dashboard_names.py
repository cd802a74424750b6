"""Run by test_dashboard.py in a process of its own: prints what the state API says of a Ray, which the dashboard draws.

`python -m tests.jobs.dashboard_names SESSION_FOLDER`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "token"  # as a job's own Ray has it

from ray.util import get_node_ip_address, state  # noqa: E402


def address_of(session: Path) -> str:
    """Of the Ray on this machine whose session's folder this is."""
    [port] = session.glob("gcs_server_port_*")
    return f"{get_node_ip_address()}:{port.read_text().strip()}"


def main(session: Path) -> None:
    address = address_of(session)
    seen = {
        "actors": [(actor.name, actor.class_name) for actor in state.list_actors(address, limit=1000)],
        "groups": [group.name for group in state.list_placement_groups(address)],
        "jobs": [job.metadata for job in state.list_jobs(address, detail=True)],
        "tasks": sorted({task.name for task in state.list_tasks(address, limit=1000)}),
    }
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
