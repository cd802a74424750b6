"""`rayrlhf cluster`: what is refused before anything starts; two real nodes on this machine (the head alone:
tests/jobs/test_submit.py, whose jobs run on one)."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from cluster import local_cluster
from cluster.local_cluster import LocalCluster, Node, Settings, since_boot, state_file
from jobs import local_cluster as commands
from rayrlhf.errors import ConfigError

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    yield tmp_path


def settings(**changes) -> Settings:
    ports = {"port": free_port(), "dashboard_port": free_port(), "metrics_port": free_port()}
    return Settings(**{**ports, "temp_dir": f"/tmp/ray-{secrets.token_hex(3)}", **changes})


def test_what_cannot_be_started_is_refused_before_anything_starts(cache, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for wrong, told in [
            (settings(port=16379), r"--port=16379 is among those that Ray gives its workers, 10002 to 19999"),
            (settings(dashboard_port=port), f"port {port} is taken, by another Ray perhaps: set --dashboard-port"),
            (settings(port=7001, metrics_port=7001), "each port needs a number of its own: --port=7001"),
            (settings(temp_dir="/tmp/" + "x" * 40), "give an absolute path of at most 36 characters"),
            (settings(temp_dir="here"), "--temp-dir=here: give an absolute path"),
            (settings(temp_dir="/proc/self/none"), "--temp-dir=/proc/self/none cannot be made"),
        ]:
            with pytest.raises(ConfigError, match=re.escape(told)):
                local_cluster.start(wrong, 1)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled: Ray's Jobs API runs any code"):
        local_cluster.start(settings(), 1)
    assert local_cluster.read() is None


def test_a_state_file_that_says_nothing_is_told(cache):
    state_file().write_text('{"nodes": [1]}')
    with pytest.raises(ConfigError, match="does not say which cluster was started"):
        local_cluster.read()


def test_where_nothing_runs_status_says_so_and_down_has_nothing_to_end(cache, capsys):
    assert commands.run(["status"]) == 2 and "no cluster was started here" in capsys.readouterr().err
    assert commands.run(["down"]) == 0 and "nothing to end" in capsys.readouterr().out
    ended = psutil.Popen(["true"])
    gone = LocalCluster(settings(), "127.0.0.1", [Node(ended.pid, since_boot(ended), 1, 2)])
    ended.wait()
    state_file().write_text(json.dumps(asdict(gone)))
    assert commands.run(["status"]) == 2 and f"is gone; its log is in {gone.logs}" in capsys.readouterr().err
    assert commands.run(["down"]) == 0 and "ended 0 processes" in capsys.readouterr().out
    assert local_cluster.read() is None


def test_each_node_announces_its_share_of_the_machine(cache):
    from cluster.bring_up import local_node

    one, two = commands._defaults(1), commands._defaults(2)
    assert one["cpus"] == two["cpus"] == local_node()["CPU"]
    for name, whole in [("memory_mib", "memory"), ("object_store_mib", "object_store_memory")]:
        assert one[name] == int(local_node()[whole] / 2**20) and abs(2 * two[name] - one[name]) <= 1


def test_only_the_process_that_was_started_is_ended_not_a_later_one_of_its_number(cache):
    bystander, own = (psutil.Popen(["sleep", "60"]) for _ in range(2))
    try:
        nodes = [Node(bystander.pid, since_boot(bystander) - 5, 1, 2), Node(own.pid, since_boot(own), 1, 2)]
        made = LocalCluster(settings(), "127.0.0.1", nodes)
        state_file().write_text(json.dumps(asdict(made)))
        assert local_cluster.read() == made and not made.is_up()
        assert local_cluster.stop(made) == 1
        assert bystander.is_running() and not own.is_running()
    finally:
        bystander.kill()
        own.kill() if own.is_running() else None
        bystander.wait()
    assert local_cluster.read() is None


def test_bad_arguments_of_cluster_are_refused():
    for given, told in [
        ([], "the following arguments are required"),
        (["restart"], "invalid choice: 'restart'"),
        (["up", "--nodes", "0"], "--nodes: 0 is no whole number from 1"),
        (["up", "--port", "80"], "--port: 80 is no whole number from 1024 to 65535"),
        (["up", "--timeout", "soon"], "--timeout: soon is no number of seconds above 0"),
        (["down", "--address", "http://x:1"], "unrecognized arguments: --address"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(told)):
            commands._parser().parse_args(given)


@pytest.mark.slow
def test_two_nodes_with_a_token_of_their_own_run_a_job_and_end(tmp_path):
    home, temporary = tmp_path / "home", f"/tmp/ray-{secrets.token_hex(3)}"
    home.mkdir()
    dashboard = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAYRLHF_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def rayrlhf(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        kept = {**environment, **more}
        return subprocess.run(command, env=kept, cwd=ROOT, capture_output=True, text=True, timeout=280)

    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--metrics-port={free_port()}"]
    try:
        up = rayrlhf(
            "cluster", "up", "--nodes=2", "--cpus=4", "--object-store-mib=256", f"--temp-dir={temporary}", *ports
        )
        assert up.returncode == 0, up.stdout + up.stderr
        token = home / ".ray" / "auth_token"
        assert token.read_text() not in up.stdout and stat.S_IMODE(token.stat().st_mode) == 0o600
        told = rayrlhf("cluster", "status", "--wait-nodes", "2").stdout
        assert [line.split()[0] for line in told.splitlines()[2:4]] == ["head", "worker-1"]
        keys = ["run.name=sums", f"run.root={tmp_path}", "data.source=demo:arithmetic", "tokenizer.vocab_size=259"]
        url = f"http://127.0.0.1:{dashboard}"
        done = rayrlhf("submit", "prepare", *keys, "--address", url, RAY_AUTH_MODE="token")
        assert done.returncode == 0 and done.stdout.endswith("SUCCEEDED\n"), done.stdout[-4000:] + done.stderr[-2000:]
    finally:
        down = rayrlhf("cluster", "down", "--force")
        left = [process.info for process in psutil.process_iter(["pid", "cmdline"]) if temporary in str(process.info)]
        shutil.rmtree(temporary, ignore_errors=True)
    assert down.returncode == 0 and not left
    assert "nothing to end" in rayrlhf("cluster", "down").stdout
    gone = rayrlhf("cluster", "status")
    assert gone.returncode == 2 and "no cluster was started here" in gone.stderr
