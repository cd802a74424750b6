"""Joining and leaving a cluster."""

import json
import socket
import time

import pytest

from cluster import bring_up
from rayrlhf.errors import ConfigError, ResourceError
from tests.cluster.test_placement import run_alone


def test_local_cluster_is_as_planned_quiet_and_gone_afterwards():
    seen = run_alone("tests.cluster.joining")
    assert seen["planned_cpus"] == seen["cpus"]
    assert seen["cpus"][0] >= 4
    assert seen["store"] == pytest.approx(seen["planned_store"], rel=0.01)
    assert seen["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert seen["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert seen["environment"]["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert seen["command"] == "rayrlhf sft run.name=try", "for the stages that workers write"
    assert seen["dashboard"].startswith("127.0.0.1:") and seen["dashboard_at"] == ["127.0.0.1"]
    assert set(seen["refusals"]) <= {401, 403}, "without the token nothing is answered"
    assert [job.items() >= {"job": "sft", "run": "try"}.items() for job in seen["job"]] == [True]
    assert {"rayrlhf.json", "train_grafana_dashboard.json"} <= set(seen["grafana"]), "beside Ray's own"
    assert seen["started"] >= 3  # GCS, raylet, dashboard
    assert seen["left"] == []


def test_an_address_where_nothing_answers_is_refused_quickly(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    begin = time.monotonic()
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}"):
        bring_up.connect()
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_of_another_kind_names_the_remedy(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="ray job submit"):
        bring_up.connect()


def test_an_address_without_a_port_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    with pytest.raises(ResourceError, match="no HOST:PORT"):
        bring_up.connect()


def test_relative_run_root_is_refused_inside_a_submitted_job_only(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    bring_up.check_run_root("runs")
    job = {
        "runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"},
        "metadata": {"job_submission_id": "raysubmit_1"},
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    for root in ("/shared/runs", "s3://bucket/runs"):
        bring_up.check_run_root(root)
    with pytest.raises(ConfigError, match=r"run\.root=\$PWD/runs"):
        bring_up.check_run_root("runs")


def test_variables_that_the_job_sets_itself_are_left_to_it(monkeypatch):
    job = {"runtime_env": {"env_vars": {"DO_NOT_TRACK": "0"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    names = bring_up._missing_in_job()
    assert "DO_NOT_TRACK" not in names
    assert "VLLM_NO_USAGE_STATS" in names
