"""Where a supervised stage's metrics go, one worker in this process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from rayrlhf.models import precision
from rayrlhf.run import RunConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig, TrainConfig
from rayrlhf.training.losses import CausalLoss, Row
from rayrlhf.training.supervised import Stage, Supervised
from tests.training.experience import free_port


def test_rows_know_the_total_and_trackers_are_the_runs(
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())
    monkeypatch.setenv("WANDB_OF_A_TEST", "the worker's own")
    row: Row = {"input_ids": [5, 6, 7, 8], "loss_mask": [1, 1, 1, 1]}
    for name, trackers, kind in (("with", ("tensorboard",), "bf16"), ("without", (), "float32")):
        stage = Stage(
            name="sft",
            loss=CausalLoss(),
            run=RunConfig(name=name, root=str(tmp_path), trackers=trackers),
            train=TrainConfig(minibatch=2, microbatch_tokens=64, engine=EngineConfig(precision=kind)),
            folder=tiny_model("llama"),
            new=None,
            total_steps=3,
            config={},
            parents={},
            resume_from=None,
            started=time.time(),
            is_terminal=False,
            environment={"WANDB_OF_A_TEST": "the driver's"},
        )
        Supervised(stage).fit([[row, row]] * 3, [])
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [(line["step"], line["total_steps"]) for line in lines] == [(1, 3), (2, 3), (3, 3)]
        is_warned = "warning: sft: train.engine.precision=bf16" in capsys.readouterr().out
        assert is_warned == (kind == "bf16")
        assert (tmp_path / name / "tensorboard" / "sft").exists() == bool(trackers)
    assert os.environ["WANDB_OF_A_TEST"] == "the driver's"
    assert "the driver's" not in repr(stage), "it may hold a key"
