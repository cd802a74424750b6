"""Actors killed and stopped at random moments of real PPO runs: each run ends with the undisturbed one's numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import ppo, ppo_roles
from rayrlhf.config import load
from tests.conftest import ROOT
from tests.jobs.test_ppo import overrides

STEPS = 10
ROLES = ("policy", "critic", "reference", "reward", "rollout")


@pytest.fixture
def run(tiny_model, reward_folder, prompts_file, tmp_path, ray_local, monkeypatch) -> Callable[..., list[dict]]:
    """`run(name, faults, **keys)` -> the rows of a PPO run in which faults (step, role, signal) came to pass."""
    start = ppo_roles.start

    def make(name: str, faults: list[tuple[int, str, int]] = (), **more: Any) -> list[dict]:
        groups: dict[str, Any] = {}

        async def started(config, placement, made, *rest):
            groups.update(made)
            roles = await start(config, placement, made, *rest)
            groups.update(made)
            return roles

        monkeypatch.setattr(ppo_roles, "start", started)
        keys = {"loop.steps": STEPS, "loop.save_every": 2, "loop.evaluate_every": 3, "rollout.engine": "transformers"}
        keys |= {"recovery.backoff_s": 0.1, "run.trackers": "[]", **more}
        root = tmp_path / name
        given = overrides(root, tiny_model("llama"), reward_folder("llama"), prompts_file, **keys)
        log, over = root / "tiny" / "metrics.jsonl", threading.Event()
        fault = threading.Thread(target=come_to_pass, args=(faults, groups, log, over))
        fault.start()
        try:
            ppo.run(load(ppo.PPOConfig, None, given))
        finally:
            over.set()
            fault.join()
        return [json.loads(line) for line in log.read_text().splitlines()]

    return make


def come_to_pass(faults, groups: dict[str, Any], log: Path, over: threading.Event) -> None:
    """Each fault some time after its step was logged."""
    for step, role, number in faults:
        while not over.is_set() and not (log.exists() and f'"step": {step},' in log.read_text()):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))  # of steps that take about 0.2 s
        if not over.is_set():
            place = groups[role].places.get(f"{role}-0")
            if place is not None:  # None: it is being begun anew
                print(f"signal {number} to {role}-0 after step {step}", flush=True)
                os.kill(place.pid, number)


_undisturbed: dict[str, list[dict]] = {}  # by their keys: one such run is enough for all that are compared with it


def undisturbed(run: Callable[..., list[dict]], **more: Any) -> list[dict]:
    key = repr(sorted(more.items()))
    if key not in _undisturbed:
        _undisturbed[key] = run("whole", **more)
    return _undisturbed[key]


def plain(rows: list[dict]) -> list[dict]:
    """Rows without what a failure may change: times, and how long the last publish took."""
    changing = ("time", "perf", "sync/publish_s")
    return [{name: value for name, value in row.items() if not name.startswith(changing)} for row in rows]


@pytest.mark.slow
def test_killed_actors_change_no_number(run):
    whole = undisturbed(run)
    assert [row["step"] for row in whole] == list(range(STEPS + 1))
    random.seed(11)
    killed = run("killed", [(0, "rollout", signal.SIGKILL), (3, "policy", signal.SIGKILL)])
    assert plain(killed) == plain(whole)
    assert killed[-1]["perf/role_restarts"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ROLES)
def test_each_kind_of_actor_killed_at_random_moments(run, role):
    whole = undisturbed(run)
    for number in range(2):
        step = random.randrange(3)  # enough of them are left to need it once more
        rows = run(f"{number}", [(step, role, signal.SIGKILL)])
        assert plain(rows) == plain(whole), f"{role} killed after step {step}"
        assert rows[-1]["perf/role_restarts"] >= 1, "the kill was noticed"


@pytest.mark.slow
def test_a_killed_vllm_is_given_the_policys_weights_again(run):
    more = {"loop.steps": 3, "rollout.engine": "vllm"}
    assert plain(run("killed", [(1, "rollout", signal.SIGKILL)], **more)) == plain(undisturbed(run, **more))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["policy", "rollout"])
def test_one_that_hangs_is_begun_anew_after_its_deadline(run, role, capfd):
    whole = undisturbed(run)
    stopped = run("stopped", [(1, role, signal.SIGSTOP)], call_deadline_s=20, **{"recovery.stall_s": 8})
    assert plain(stopped) == plain(whole) and stopped[-1]["perf/role_restarts"] == 1
    printed = capfd.readouterr().out
    assert (
        f"waiting for {role}-0: " in printed.replace("\n", "") and "did not take the signal (is it stopped?)" in printed
    )


TWO_NODES = """
layout:
  base: null
  pools:
    train: {bundles: 1, cpus: 2}
    others: {bundles: 1, cpus: 2}
  roles:
    policy: {pool: train, cpus: 1}
    critic: {pool: train, cpus: 1}
    rollout: {pool: others, cpus: 1}
    reference: {pool: others, cpus: 0.5}
    reward: {pool: others, cpus: 0.5}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_nodes_roles_go_on_elsewhere(tiny_model, reward_folder, prompts_file, tmp_path):
    (tmp_path / "layout.yaml").write_text(TWO_NODES)

    def run_on_a_cluster(lost: str) -> list[dict]:
        more = {"loop.steps": STEPS, "loop.save_every": 2, "rollout.engine": "transformers", "run.trackers": "[]"}
        more |= {"recovery.stall_s": 20, "start_deadline_s": 120}
        keys = overrides(tmp_path / lost, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
        log, said = tmp_path / lost / "tiny" / "metrics.jsonl", tmp_path / f"{lost}.log"
        run = [sys.executable, "-m", "jobs.ppo", str(tmp_path / "layout.yaml"), *keys]
        command = [sys.executable, "-m", "tests.jobs.lose_node", lost, str(log), *run]
        with said.open("w") as file:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=300)
        assert done.returncode == 0, said.read_text()[-6000:]
        assert ("LOST" in said.read_text()) == (lost != "none")
        return [json.loads(line) for line in log.read_text().splitlines()]

    whole = run_on_a_cluster("none")
    for pool in ("others", "train"):
        rows = run_on_a_cluster(pool)
        assert plain(rows) == plain(whole) and rows[-1]["perf/role_restarts"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("job_name", "steps"), [("ppo", 8), ("sft", 240)])
def test_a_driver_killed_at_a_random_moment_goes_on_exactly(
    job_name, steps, tiny_model, reward_folder, prompts_file, tmp_path
):
    """SIGKILL to a run's driver, three times, while it trains, saves or starts; the same command goes on."""
    rows = [{"prompt": f"number {n}", "completion": f" is {n % 7}"} for n in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(root: Path) -> list[str]:
        if job_name == "ppo":
            more = {"loop.steps": steps, "loop.save_every": 2, "rollout.engine": "transformers", "run.trackers": "[]"}
            keys = overrides(root, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
        else:
            keys = ["run.name=tiny", f"run.root={root}", "run.trackers=[]", f"model={tiny_model('llama')}"]
            keys += [f"data.train={tmp_path / 'rows.jsonl'}", "data.max_tokens=64", "train.minibatch=8"]
            keys += ["train.num_workers=2", f"train.max_steps={steps}", "train.epochs=99", "train.save_every=20"]
        return [sys.executable, "-m", f"jobs.{job_name}", *keys]

    def rows_of(root: Path) -> list[dict]:
        return [json.loads(line) for line in (root / "tiny" / "metrics.jsonl").read_text().splitlines()]

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, env=environment, check=True, timeout=300)
    log = tmp_path / "cut" / "tiny" / "metrics.jsonl"
    for step in sorted(random.sample(range(1, steps), 3)):
        job = subprocess.Popen(command(tmp_path / "cut"), cwd=ROOT, env=environment, start_new_session=True)
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert job.poll() is None, "it ended before its step"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1.0))
        children = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
        job.kill()
        job.wait()
        psutil.wait_procs(children, timeout=60)
    subprocess.run(command(tmp_path / "cut"), cwd=ROOT, env=environment, check=True, timeout=300)
    assert plain(rows_of(tmp_path / "cut")) == plain(rows_of(tmp_path / "whole"))
