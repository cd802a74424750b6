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
import ray

from rayrlhf.checkpoint import find_stage
from tests.jobs.test_ppo import assert_invariants, overrides, rows_of

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Cluster:
    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        return self._run([RAY, *arguments], timeout_s)

    def rayrlhf(self, tool: str, *arguments: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", tool, "--address", self.dashboard, *arguments]
        return self._run(command, timeout_s)

    def local(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`rayrlhf cluster`, of the cluster in this environment's cache."""
        return self._run([sys.executable, "-m", "jobs.cli", "cluster", action, *arguments], 150)

    def _run(self, command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`rayrlhf cluster up` with its own token and ports; its processes end with `rayrlhf cluster down`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAYRLHF_CACHE": str(tmp_path_factory.mktemp("cache")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    temporary = f"/tmp/ray-{secrets.token_hex(3)}"
    made = Cluster(f"http://127.0.0.1:{free_port()}", environment)
    ports = [f"--port={free_port()}", f"--dashboard-port={made.dashboard.rpartition(':')[2]}"]
    options = [*ports, f"--metrics-port={free_port()}", f"--temp-dir={temporary}", "--object-store-mib=256"]
    started = made.local("up", *options, "--cpus=4")
    try:
        assert started.returncode == 0 and made.dashboard in started.stdout, started.stdout + started.stderr
        yield made
    finally:
        ended = made.local("down", "--force")
        left = [process.info for process in psutil.process_iter(["pid", "cmdline"]) if temporary in str(process.info)]
        shutil.rmtree(temporary, ignore_errors=True)
        assert ended.returncode == 0 and not left, (ended.stderr, left)


def test_a_cluster_that_is_up_is_not_started_again_and_says_what_it_has(cluster):
    again = cluster.local("up")
    assert again.returncode == 0 and again.stdout.startswith("up already\n") and cluster.dashboard in again.stdout
    other = cluster.local("up", "--nodes", "3")
    assert other.returncode == 2 and "up already, with nodes=1, not 3" in other.stderr
    told = cluster.local("status").stdout
    assert f"{cluster.dashboard}   Ray {ray.__version__}   asks for a token" in told
    [head] = [line.split() for line in told.splitlines() if line.startswith("head ")]
    assert head[2:4] == ["4", "0"] and head[5] == "0.2", "CPUs, GPUs, object store"
    assert "running jobs: none" in told
    elsewhere = cluster.local("status", "--address", cluster.dashboard, "--wait-nodes", "2", "--timeout", "0.1")
    assert elsewhere.returncode == 2 and "has 1 live nodes, not 2, after 0.1 s" in elsewhere.stderr


def test_its_metrics_are_exported(cluster):
    state = json.loads(
        Path(cluster.environment["RAYRLHF_CACHE"], f"local_cluster-{socket.gethostname()}.json").read_text()
    )
    url = f"http://{state['ip']}:{state['settings']['metrics_port']}/metrics"
    assert b"# TYPE ray_" in urllib.request.urlopen(url, timeout=10).read()


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "path",
    ["/api/version", "/nodes?view=summary", "/api/cluster_status", "/api/v0/actors", "/logs", "/api/v0/logs?node_ip=x"],
)
def test_the_dashboard_says_nothing_without_the_token(cluster, path):
    for headers in ({}, {"Authorization": f"Bearer {secrets.token_hex(32)}"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(cluster.dashboard + path, headers=headers), timeout=10)
        assert refused.value.code in (401, 403)


def test_no_job_is_taken_without_the_token(cluster, tmp_path):
    mark = tmp_path / "ran"
    body = json.dumps({"entrypoint": f"touch {mark}"}).encode()
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", data=body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code in (401, 403) and not mark.exists()


@pytest.mark.slow  # Ray tries for 20 s
def test_nobody_joins_without_the_token(cluster):
    """The ports inside the cluster are open to the network: there the token alone stands."""
    state = json.loads(
        Path(cluster.environment["RAYRLHF_CACHE"], f"local_cluster-{socket.gethostname()}.json").read_text()
    )
    address = f"{state['ip']}:{state['settings']['port']}"
    join = [sys.executable, "-c", "import sys, ray; ray.init(address=sys.argv[1]); print('joined')", address]
    for token, joins in (("0" * 64, False), (cluster.environment["RAY_AUTH_TOKEN"], True)):
        environment = {**cluster.environment, "RAY_AUTH_TOKEN": token}
        done = subprocess.run(join, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ("joined" in done.stdout) == joins, done.stdout + done.stderr[-2000:]


def test_the_dashboard_listens_on_loopback_alone(cluster):
    port = int(cluster.dashboard.rpartition(":")[2])
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}


def test_a_request_without_the_token_is_refused(cluster):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/",
        headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"},
    )
    assert urllib.request.urlopen(request, timeout=10).status == 200
    without = Cluster(cluster.dashboard, {**cluster.environment, "RAY_AUTH_MODE": "disabled"}).rayrlhf("jobs")
    assert without.returncode == 2 and "where it asks for a token set RAY_AUTH_MODE=token" in without.stderr
    assert "Traceback" not in without.stderr


def test_submit_follows_a_job_to_its_end_and_names_it(cluster, tmp_path):
    keys = ["run.name=sums", f"run.root={tmp_path}", "data.source=demo:arithmetic", "tokenizer.vocab_size=259"]
    done = cluster.rayrlhf("submit", "prepare", *keys, "--id", "sums-1", "--env", "RAYRLHF_TEST=1", "--cpus", "0.5")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "prepare: prompts/train" in done.stdout and done.stdout.endswith("sums-1: SUCCEEDED\n")
    assert find_stage(str(tmp_path / "sums" / "prepare")).manifest["is_final"]
    listed = cluster.rayrlhf("jobs").stdout
    [line] = [line for line in listed.splitlines() if line.startswith("sums-1")]
    assert "SUCCEEDED" in line and "python -m jobs.prepare run.name=sums" in line
    assert "prepare: prompts/train" in cluster.rayrlhf("logs", "sums-1").stdout
    ended = cluster.rayrlhf("stop", "sums-1")
    assert ended.returncode == 2 and "sums-1 has ended already: SUCCEEDED" in ended.stderr
    again = cluster.rayrlhf("submit", "prepare", *keys, "--id", "sums-1")
    assert again.returncode == 2 and "sums-1" in again.stderr


@pytest.mark.slow
def test_the_exit_code_and_the_error_of_a_failed_job_come_back(cluster, tmp_path):
    keys = ["run.name=mine", f"run.root={tmp_path}", "model=/nowhere", "data.train=/nowhere.jsonl"]
    failed = cluster.rayrlhf("submit", "sft", *keys, "--id", "fails")
    assert failed.returncode == 2
    assert "Give a stage directory" in failed.stdout and "fails: FAILED" in failed.stderr
    assert cluster.rayrlhf("logs", "fails", "--follow").returncode == 2


@pytest.mark.slow
def test_a_job_that_runs_can_be_left_and_stopped(cluster, tmp_path):
    keys = ["run.name=sums", f"run.root={tmp_path}", "data.source=demo:arithmetic", "tokenizer.vocab_size=259"]
    left = cluster.rayrlhf("submit", "prepare", *keys, "--no-wait")
    assert left.returncode == 0
    name = left.stdout.split()[1]
    assert name.startswith("sums-prepare-")
    busy = cluster.local("down")
    assert busy.returncode == 2 and f"{name} still runs: `rayrlhf stop ID`" in busy.stderr
    stopped = cluster.rayrlhf("stop", name)
    assert stopped.returncode == 0 and stopped.stdout.endswith(f"{name}: STOPPED\n")


@pytest.mark.slow
def test_a_stopped_job_has_saved_its_step(cluster, tiny_model, reward_folder, prompts_file, tmp_path):
    more = {"loop.steps": 1500, "loop.save_every": 1500, "loop.evaluate_every": 1500, "rollout.engine": "transformers"}
    keys = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
    assert cluster.rayrlhf("submit", "ppo", *keys, "--no-wait", "--id", "long").returncode == 0
    for _ in range(240):
        if "ppo    2/1500" in cluster.rayrlhf("logs", "long").stdout:
            break
        time.sleep(0.5)
    stopped = cluster.rayrlhf("stop", "long")
    assert stopped.returncode == 0 and stopped.stdout.endswith("long: STOPPED\n")
    logs = cluster.rayrlhf("logs", "long").stdout
    assert "stopping after this step" in logs and "ppo: stopped after a whole step" in logs, logs[-2000:]
    saved = find_stage(str(tmp_path / "tiny" / "ppo")).manifest
    assert 2 <= saved["step"] < 1500 and not saved["is_final"]


def run_cli(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)


SFT = ["sft", "run.name=x", "model=m", "data.train=d"]
SHARED = ["run.root=/shared", "--address", "http://127.0.0.1:9"]


def test_what_is_here_and_would_not_be_sent_is_refused(tmp_path):
    for folder in ("runs/a", "data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.jsonl").write_text("")
    (tmp_path.parent / "up.jsonl").write_text("")
    sources = "data.train=[{path: data/rows.jsonl}, {path: runs/a/*.jsonl}]"
    for given, key, path in [
        ("model=runs/a", "model", tmp_path / "runs/a"),
        (sources, "data.train.1.path", tmp_path / "runs/a/*.jsonl"),
        ("data.validation=../up.jsonl", "data.validation", tmp_path.parent / "up.jsonl"),
    ]:
        done = run_cli(tmp_path, "submit", *SFT, given, *SHARED)
        told = " ".join(done.stderr.split())
        assert done.returncode == 2 and f"{key}=" in told and f"give its absolute path, {path}" in told
    done = run_cli(tmp_path, "submit", *SFT, "data.train=data/rows.jsonl", f"model={tmp_path}/runs/a", *SHARED)
    assert "no cluster takes jobs at" in done.stderr, "these are sent, or seen where they are"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["submit", "pppo"], "no job 'pppo' can be submitted; there are prepare,"),
        (["submit", "generate", "x"], "no job 'generate' can be submitted"),
        (["submit", "sft", "run.nam=x"], "nothing was submitted: sft refuses its configuration"),
        (["submit", "sft", "/etc/passwd"], "/etc/passwd is outside the working directory"),
        (["submit", *SFT, "--address", "http://far:1"], "run.root=runs is relative, but the job runs on http://far:1"),
        (["submit", *SFT, "--adress", "far"], "unrecognized arguments: --adress"),
        (["submit", *SFT, "--env", "x"], "--env x: write NAME=VALUE"),
        (["submit", *SFT[:-1], "data.train=s3://key:word@b/x"], "data.train=s3://***@b/x holds a secret"),
        (["submit", *SFT, "max_new_token=128"], "max_new_token: unknown key"),
        (["jobs", "--address", "far:8265"], "--address=far:8265 is no URL"),
        (["jobs", "--address", "http://127.0.0.1:9"], "no cluster takes jobs at http://127.0.0.1:9"),
        (["logs"], "the following arguments are required: id"),
    ],
)
def test_what_cannot_be_submitted_is_told_before_anything_is_sent(tmp_path, arguments, told):
    done = run_cli(tmp_path, *arguments)
    assert done.returncode == 2 and told in done.stderr
    assert "Traceback" not in done.stderr
