"""Real runs as Prometheus and Ray's dashboard see them: every panel's query, and the names of things.

Prometheus is Debian's; Grafana, which would draw the panels, is not there: only what it would ask is run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import dashboards
from rayrlhf.metric_names import METRICS, described, find, gauge_name
from rayrlhf.metrics import ROW_KEYS
from tests.cluster.prometheus import Prometheus, scraping
from tests.jobs.test_interrupt import ROOT, assert_nothing_left, ray_folder  # noqa: F401  (a fixture)
from tests.jobs.test_ppo import overrides

STEPS = 60
ROLLBACKS = "ray_" + gauge_name("optim/rollbacks")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def completions(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"number {n}", "completion": f" is {n % 7}"} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@contextmanager
def started(ray_folder: Path, said: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:  # noqa: F811
    """A job with a Ray of its own in that folder, what it says in the file `said`; it has succeeded afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(ray_folder), "RAY_metrics_report_interval_ms": "500"}
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    with open(said, "wb") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield job
        assert job.wait(200) == 0, said.read_text()
    finally:
        job.terminate()
        job.wait(60)


def rows_of(root: Path, stage: str) -> list[dict[str, Any]]:
    path = root / "tiny" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row for row in rows if row["stage"] == stage]


def wait_for(job: subprocess.Popen[bytes], is_there: Callable[[], Any]) -> None:
    while not is_there():
        assert job.poll() is None, "it ended before"
        time.sleep(0.2)


def test_every_panel_of_a_real_run_has_data(
    tiny_model,
    reward_folder,
    prompts_file,
    completions,
    tmp_path,
    ray_folder,  # noqa: F811
):
    discovery, data = ray_folder / "ray" / "prom_metrics_service_discovery.json", tmp_path / "prometheus"
    data.mkdir()
    sft = [f"data.train={completions}", f"data.validation={completions}", "data.max_tokens=64", "train.minibatch=8"]
    sft += [f"model={tiny_model('llama')}", "train.epochs=60", "train.validate_every=40", "train.save_every=0"]
    more = {"rollout.engine": "transformers", "loop.steps": STEPS, "loop.save_every": STEPS, "loop.evaluate_every": 5}
    ppo = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **more)
    with scraping(discovery, data) as prometheus:
        with started(ray_folder, tmp_path / "sft.log", "sft", "run.name=tiny", f"run.root={tmp_path}", *sft):
            pass
        assert_panels_have_data(prometheus, "sft", rows_of(tmp_path, "sft"))
        with started(ray_folder, tmp_path / "ppo.log", "ppo", *ppo) as job:
            wait_for(job, lambda: rows_of(tmp_path, "ppo")[15:])  # Ray tells of a call about a second after it
            seen = names_in_the_dashboard(ray_folder / "ray" / "session_latest")
            wait_for(job, lambda: prometheus.ask("metadata", metric=ROLLBACKS)["data"])
            [told] = prometheus.ask("metadata", metric=ROLLBACKS)["data"][ROLLBACKS]
            assert (told["type"], told["help"]) == ("gauge", described("optim/rollbacks"))
        assert_panels_have_data(prometheus, "ppo", rows_of(tmp_path, "ppo"))
        assert_names(seen)
    assert_nothing_left(ray_folder)


def assert_panels_have_data(prometheus: Prometheus, stage: str, rows: list[dict[str, Any]]) -> None:
    """Each panel draws what metrics.jsonl has of its metric, and only that."""
    logged = {name for row in rows for name in row.keys() - set(ROW_KEYS)}
    always = {metric for metric in METRICS if stage in metric.stages and not metric.when}
    assert always <= {find(name) for name in logged}, "of the registry, what every such run writes"
    empty, wrong = [], []
    for panel in dashboards.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$run", "tiny").replace("$stage", stage)
            found, name = prometheus.series(query), panel["title"].partition(": ")[0]
            names = {one for one in logged if find(one).name == name}
            if len(found) != len(names):
                empty.append((name, len(found)))
            for series in found:
                assert series["metric"]["run"] == "tiny" and series["metric"]["stage"] == stage
                drawn = {float(value) for _, value in series["values"] if value != "NaN"}
                known = [row[one] for one in names for row in rows if row.get(one) is not None]
                wrong += [(name, value) for value in drawn if value not in map(pytest.approx, known)]
    assert (empty, wrong) == ([], [])


def names_in_the_dashboard(session: Path) -> dict[str, Any]:
    """What tests/jobs/dashboard_names.py sees while a run goes on."""
    command = [sys.executable, "-m", "tests.jobs.dashboard_names", str(session)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.partition("SEEN ")[2]))


def assert_names(seen: dict[str, Any]) -> None:
    kinds = {"policy": "PolicyRank", "critic": "CriticRank", "reference": "ReferenceReplica", "reward": "RewardReplica"}
    kinds["rollout"] = "RolloutReplica"
    actors = {(name, kind) for name, kind in seen["actors"]}
    assert {(f"{role}-0", kind) for role, kind in kinds.items()} <= actors
    assert all(name for name, _ in actors), f"every actor has a name: {actors}"
    assert seen["groups"] == ["tiny/ppo/all"]
    [job] = seen["jobs"]
    assert (job["job_name"], job["job"], job["run"]) == ("tiny/ppo", "ppo", "tiny")
    assert re.fullmatch(r"[0-9a-f]{12}", job["config"])
    assert {"policy-0.start", "rollout-0.generate", "reward-0.scores", "critic-0.values"} <= set(seen["tasks"])
