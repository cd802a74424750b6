"""What a recorded process leaves, and that recording changes no number."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
import torch.distributed as dist

from rayrlhf import profiling
from rayrlhf.errors import ConfigError
from rayrlhf.profile_steps import Steps, parse, told
from rayrlhf.ray_timeline import named, overlapping
from rayrlhf.role_logs import LoggedRole
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.policy_learner import PolicyLearner
from rayrlhf.training.ppo_config import PolicyUpdateConfig
from rayrlhf.training.step_recorder import StepRecorder
from tests.training.experience import free_port, policy_batch, random_rollouts


class Role(LoggedRole):
    def double(self, x):
        return self.inner(x)

    def inner(self, x):
        return x @ x


@pytest.fixture(autouse=True)
def nothing_is_recorded():
    yield
    assert not profiling.is_recording()


def trace(path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def updated(folder: str, profile_to: str | None) -> tuple[dict, dict]:
    config = PolicyUpdateConfig(engine=EngineConfig(lr=0.01), minibatch=4, epochs=2)
    learner = PolicyLearner(folder, config, temperature=0.7, total_steps=10, seed=3)
    rollouts = random_rollouts()
    batch = policy_batch(rollouts, learner.logprobs(rollouts))
    if profile_to is not None:
        profiling.begin()
    with profiling.span("update"):
        metrics = learner.update(batch, step=1)
    if profile_to is not None:
        began, ended = profiling.end(profile_to, "policy-0")
        assert 0 < ended - began < 60
    return metrics, {name: p.detach().clone() for name, p in learner.engine.module.named_parameters()}


def test_a_learner_s_profile_has_its_products_and_changes_no_number(tiny_model, tmp_path):
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())
    folder = f"file://{tmp_path}/profile"
    (plain, before), (recorded, after) = (updated(tiny_model("llama"), where) for where in (None, folder))
    assert {n: v for n, v in recorded.items() if "perf/" not in n} == {
        n: v for n, v in plain.items() if "perf/" not in n
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    events = trace(tmp_path / "profile" / "policy-0.json.gz")
    names = [event.get("name") for event in events]
    # 2 layers of 7 products and the head, forward and twice backward, of 2 epochs of 2 minibatches (4 and 3 rows)
    products = sum(name == "aten::mm" for name in names)
    assert products >= 3 * (2 * 7 + 1) * 2 * 2, "the backward pass's too"
    assert names.count("update") >= 1
    table = (tmp_path / "profile" / "policy-0.txt").read_text()
    assert "operators (CPU)" in table.splitlines()[0]
    calls, operators = table.split("\n\n")[1:]
    assert [line.split()[:2] for line in calls.splitlines()[1:]] == [["update", "1"]]
    rows = [line.split() for line in operators.splitlines()[1:]]
    assert len(rows) == profiling.NUM_OPERATORS and "update" not in [row[0] for row in rows]
    seconds = [float(row[-2]) for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert next(int(row[1]) for row in rows if row[0] == "aten::mm") == products


def test_a_role_s_calls_are_spans(tmp_path):
    profiling.begin()
    role = Role()
    role.double(torch.ones(8, 8))
    role.double(torch.ones(8, 8))
    profiling.end(str(tmp_path), "role-0")
    events = {(e["name"], e["ts"]): e for e in trace(tmp_path / "role-0.json.gz") if e.get("ph") == "X"}
    outer = [e for (name, _), e in events.items() if name == "double" and e["cat"] == "user_annotation"]
    product = [e for (name, _), e in events.items() if name == "aten::mm"]
    assert len(outer) == len(product) == 2
    for one, inside in zip(sorted(outer, key=lambda e: e["ts"]), sorted(product, key=lambda e: e["ts"]), strict=True):
        assert one["ts"] <= inside["ts"] and inside["ts"] + inside["dur"] <= one["ts"] + one["dur"]


def test_begin_again_drops_or_goes_on(tmp_path):
    def begun_twice(anew: bool) -> set[str]:
        profiling.begin()
        torch.ones(4).cumsum(0)
        profiling.begin(anew)
        torch.ones(4).sin()
        profiling.end(str(tmp_path), "x")
        return {"aten::cumsum", "aten::sin"} & {event.get("name") for event in trace(tmp_path / "x.json.gz")}

    assert begun_twice(anew=True) == {"aten::sin"}
    assert begun_twice(anew=False) == {"aten::cumsum", "aten::sin"}
    assert profiling.end(str(tmp_path), "y") is None and not (tmp_path / "y.txt").exists()


def test_a_worker_records_from_the_wait_for_the_first_of_its_steps_to_the_end_of_the_last(tmp_path):
    seen = []
    recorder = StepRecorder(Steps(3, 4), str(tmp_path), rank=1)
    for step, (batch, waited_s) in enumerate(recorder.waited(iter("bcdef"), done=1), start=2):
        assert waited_s >= 0
        seen.append((step, batch, profiling.is_recording()))
        recorder.end(step)
    assert seen == [(2, "b", False), (3, "c", True), (4, "d", True), (5, "e", False), (6, "f", False)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker-1.json.gz", "worker-1.txt"]
    assert "rows                                                    2" in (tmp_path / "worker-1.txt").read_text()


def test_a_worker_without_steps_records_nothing(tmp_path):
    recorder = StepRecorder(None, "", rank=0)
    assert [batch for batch, _ in recorder.waited([1, 2], done=2)] == [1, 2]
    recorder.end(3)
    assert not profiling.is_recording()


# ---- steps


def test_steps():
    assert parse("5-6") == Steps(5, 6) and str(parse("5-6")) == "5-6" and str(parse("7")) == "7" == str(Steps(7, 7))
    assert [step for step in range(9) if step in parse("5-6")] == [5, 6]
    assert parse(None).folder("s3://bucket/runs/mine", "ppo") == "s3://bucket/runs/mine/profile/ppo/step_000003"
    parse("3").check("sft", total=3, done=2)
    parse("300").check("sft", total=None)
    with pytest.raises(ConfigError, match="sft takes 2 steps .without a value it is step 3.. Give steps from 1 to 2"):
        parse(None).check("sft", total=2)
    with pytest.raises(ConfigError, match="--profile 5-6: sft goes on after step 5. Give later steps"):
        parse("5-6").check("sft", total=9, done=5)


@pytest.mark.parametrize("text", ["", "x", "-3", "3-", "1,2", "5-4", "0", "1-21", "3.5"])
def test_what_is_no_steps_is_refused(text):
    with pytest.raises(ConfigError, match=f"--profile {text}"):
        parse(text)


def test_without_a_trace_nothing_is_told(tmp_path):
    assert told(str(tmp_path / "none"), Steps(3, 3)) == "" == told(str(tmp_path), Steps(3, 3))


# ---- Ray's timeline


def event(name: str, ts: float, dur: float, cat: str = "", tid: str = "worker:a") -> dict:
    return {"name": name, "cat": cat or name, "tid": tid, "ts": ts * 1e6, "dur": dur * 1e6}


def test_events_of_the_times_are_kept():
    events = [event("before", 1, 1), event("into", 1, 2), event("in", 4, 1), event("out", 8, 9), event("after", 9, 1)]
    assert [e["name"] for e in overlapping(events, since=2.5, until=8.5)] == ["into", "in", "out"]


def test_rows_and_calls_have_the_actors_names():
    update = event("update", 1, 1, cat="task::policy-0.update")
    other = event("task:execute", 1, 1, tid="worker:b")
    task = event("_map", 1, 1, cat="task::_map", tid="worker:c")
    found = named([update, event("task:execute", 1, 1), other, task])
    assert [(e["name"], e["tid"]) for e in found] == [
        ("policy-0.update", "policy-0"),
        ("task:execute", "policy-0"),
        ("task:execute", "worker:b"),
        ("_map", "worker:c"),
    ]
