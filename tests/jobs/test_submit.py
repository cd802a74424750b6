"""`ray job submit` of a PPO job to a real cluster with token authentication on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rayrlhf.checkpoint import find_stage
from tests.jobs.test_ppo import assert_invariants, overrides, rows_of

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Cluster:
    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node of its own, with its own token and ports; its processes end with it."""
    port, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    # a short path: Ray's sockets lie in it, and may have 107 characters at most
    temporary = Path(f"/tmp/ray-{secrets.token_hex(3)}")
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--num-cpus=4",
    ]
    command += [
        "--object-store-memory=268435456",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={temporary}",
    ]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    made = Cluster(f"http://127.0.0.1:{dashboard}", environment)
    try:
        for _ in range(120):
            # the agent that starts jobs is ready some seconds after the dashboard
            probe = made.ray("job", "submit", "--no-wait", "--address", made.dashboard, "--", "true")
            if probe.returncode == 0:
                break
            assert head.poll() is None, "ray start ended"
            time.sleep(0.5)
        yield made
    finally:
        for process in psutil.process_iter():
            try:
                if str(temporary) in " ".join(process.cmdline()):
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        head.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_submitted_ppo_job_succeeds(cluster, tiny_model, reward_folder, prompts_file, tmp_path):
    from transformers import AutoModelForCausalLM

    keys = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file)
    submitted = cluster.ray(
        "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--submission-id", "two-steps",
        "--", "python", "-m", "jobs.ppo", *keys,
    )  # fmt: skip
    assert "two-steps' succeeded" in submitted.stdout, submitted.stdout[-4000:] + submitted.stderr[-2000:]
    actors = cluster.ray("list", "actors", "--address", cluster.dashboard, "--format", "json", "--limit", "500")
    names = {actor["name"] for actor in json.loads(actors.stdout)}
    assert {"policy-0", "critic-0", "reference-0", "reward-0", "rollout-0"} <= names
    assert_invariants(rows_of(tmp_path))
    AutoModelForCausalLM.from_pretrained(find_stage(str(tmp_path / "tiny" / "ppo"), kind="ppo").model_dir)


def test_a_relative_run_root_in_a_job_is_refused_with_the_remedy(cluster, tiny_model, reward_folder, prompts_file):
    keys = overrides(Path("runs"), tiny_model("llama"), reward_folder("llama"), prompts_file)
    submitted = cluster.ray(
        "job",
        "submit",
        "--address",
        cluster.dashboard,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "jobs.ppo",
        *keys,
    )
    assert submitted.returncode != 0
    assert "run.root=$PWD/runs" in submitted.stdout


def test_a_request_without_the_token_is_refused(cluster):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/",
        headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"},
    )
    assert urllib.request.urlopen(request, timeout=10).status == 200
