"""`--profile` of real jobs: the files of every actor and worker, and the numbers of a run without it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import ppo, sft
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.profile_steps import Steps
from tests.jobs.test_ppo import overrides

pytestmark = pytest.mark.slow
STEPS = Steps(2, 3)


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def numbers(root: Path, name: str) -> list[dict[str, Any]]:
    """What the run logged, without what a clock or the memory gave."""
    clocks = ("time", "perf/", "sync/publish_s")
    return [{key: value for key, value in row.items() if not key.startswith(clocks)} for row in rows(root, name)]


def opened(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def weights(stage: str) -> bytes:
    return (Path(find_stage(stage).model_dir) / "model.safetensors").read_bytes()


def spans(folder: Path, name: str) -> dict[str, int]:
    """How often the process called what; its operators are there too, most first."""
    events = [event for event in opened(folder / f"{name}.json.gz")["traceEvents"] if event.get("ph") == "X"]
    products = {"aten::mm", "aten::addmm", "_C::onednn_mm"}  # the last is vLLM's
    assert products & {event["name"] for event in events}, name
    table = (folder / f"{name}.txt").read_text()
    assert table.startswith(f"{name}: ") and "operators (CPU)" in table
    assert any(product in table for product in products)
    calls: dict[str, int] = {}
    for event in events:
        if event.get("cat") == "user_annotation":
            calls[event["name"]] = calls.get(event["name"], 0) + 1
    return calls


def test_ppo(tiny_model, reward_folder, prompts_file, tmp_path, ray_local):
    more = {"loop.steps": 4, "loop.evaluate_every": 4, "loop.save_every": 4, "layout.roles.reward.ranks": 2}
    more["layout.roles.reward.cpus"] = 0.1
    stages = []
    for name, profile in (("plain", None), ("recorded", STEPS)):
        own = {"run.name": name, **more}
        given = overrides(tmp_path, tiny_model("llama"), reward_folder("llama"), prompts_file, **own)
        stages.append(ppo.run(load(ppo.PPOConfig, None, given), profile=profile))
    assert numbers(tmp_path, "recorded") == numbers(tmp_path, "plain")
    assert weights(stages[1]) == weights(stages[0])
    assert not (tmp_path / "plain" / "profile").exists()

    folder = tmp_path / "recorded" / "profile" / "ppo" / "step_000002_to_000003"
    actors = ["policy-0", "critic-0", "reference-0", "reward-0", "reward-1", "rollout-0"]
    files = {f"{name}{end}" for name in actors for end in (".json.gz", ".txt")} | {"ray_timeline.json.gz"}
    assert {path.name for path in folder.iterdir()} == files
    calls = {name: spans(folder, name) for name in actors}
    assert {"logprobs": 2, "update": 2, "export_weights": 2}.items() <= calls["policy-0"].items()
    assert {"values": 2, "update": 2}.items() <= calls["critic-0"].items()
    assert calls["reference-0"]["logprobs"] == calls["reward-0"]["scores"] == calls["reward-1"]["scores"] == 2
    assert {"generate": 2, "load": 2}.items() <= calls["rollout-0"].items()
    timeline = opened(folder / "ray_timeline.json.gz")
    assert {"policy-0.update", "rollout-0.generate", "reward-1.scores"} <= {event["name"] for event in timeline}
    assert {"policy-0", "rollout-0"} <= {event["tid"] for event in timeline}

    learnt = rows(tmp_path, "recorded")[1:]
    for row in learnt:
        for name in ("policy", "critic"):
            assert 0 < row[f"perf/{name}_matrix_share"] < 1 and row[f"perf/{name}_update_tokens_per_s"] > 0
        assert row["perf/policy_matrix_tflops"] == learnt[0]["perf/policy_matrix_tflops"] > 0, "measured once"
        assert row["perf/generate_tokens_per_s"] > row["perf/rollout_tokens_per_s"]
        assert 0 <= row["time/data_s"] < row["time/step_s"]
    assert ["time/evaluate_s" in row for row in rows(tmp_path, "recorded")] == [True, False, False, False, True]


def test_sft_with_two_workers(tiny_model, tmp_path, ray_local):
    texts = [{"prompt": f"row {n}", "completion": " and more" * (n % 3 + 1)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    data = [f"data.train={tmp_path}/rows.jsonl", f"data.validation={tmp_path}/rows.jsonl", "data.max_tokens=64"]
    train = ["train.minibatch=8", "train.microbatch_tokens=256", "train.num_workers=2"]
    stages = []
    for name, profile in (("plain", None), ("recorded", STEPS)):
        given = [f"run.name={name}", f"run.root={tmp_path}", f"model={tiny_model('llama')}", *data, *train]
        stages.append(sft.run(load(sft.SFTConfig, None, given), profile=profile))
    assert numbers(tmp_path, "recorded") == numbers(tmp_path, "plain")
    assert weights(stages[1]) == weights(stages[0])

    folder = tmp_path / "recorded" / "profile" / "sft" / "step_000002_to_000003"
    workers = ["worker-0", "worker-1"]
    files = {f"{name}{end}" for name in workers for end in (".json.gz", ".txt")} | {"ray_timeline.json.gz"}
    assert {path.name for path in folder.iterdir()} == files
    for name in workers:
        assert {"rows": 2, "step": 2}.items() <= spans(folder, name).items()
    assert isinstance(opened(folder / "ray_timeline.json.gz"), list)
    learnt = rows(tmp_path, "recorded")
    assert len(learnt) == 5 and all(0 < row["perf/matrix_share"] < 1 for row in learnt)
    assert all(row["time/data_s"] >= 0 for row in learnt) and learnt[-1]["time/evaluate_s"] > 0
