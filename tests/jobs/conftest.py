"""Prompts and reward models for the jobs that need them."""

from __future__ import annotations

import json

import pytest

from rayrlhf.metric_names import find
from rayrlhf.metrics import ROW_KEYS


@pytest.fixture(autouse=True)
def every_metric_is_registered(request):
    """What a test's real runs logged stands in rayrlhf/metric_names.py, under the stage that logged it."""
    is_real = {"ray_local", "tmp_path"} <= set(request.fixturenames)
    folder = request.getfixturevalue("tmp_path") if is_real else None
    yield
    for path in folder.rglob("metrics*.jsonl") if folder else ():
        for row in map(json.loads, path.read_text().splitlines()):
            metrics = {name: find(name) for name in row.keys() - set(ROW_KEYS)}
            unknown = sorted(n for n, metric in metrics.items() if metric is None or row["stage"] not in metric.stages)
            assert not unknown, f"add to rayrlhf/metric_names.py what stage {row['stage']} logs: {unknown}"


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"number {n} " + "ab" * (n % 5)} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def reward_folder(tiny_model, tmp_path_factory):
    """A reward model of each kind, made from the tiny language model."""
    made: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in made:
            import torch

            from rayrlhf.models.causal_lm import load_tokenizer, save
            from rayrlhf.models.scalar import load_scalar

            torch.manual_seed(1)
            made[kind] = str(tmp_path_factory.mktemp(f"reward-{kind}"))
            save(load_scalar(tiny_model(kind)), load_tokenizer(tiny_model(kind)), made[kind])
        return made[kind]

    return make
