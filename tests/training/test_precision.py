"""The warning of a precision that the processor has no instructions for."""

from __future__ import annotations

import pytest
import torch

from rayrlhf.training import precision
from rayrlhf.training.config import EngineConfig

BF16 = EngineConfig(precision="bf16")


def said(monkeypatch, capsys, config=BF16, device="cpu", rank=0, has=False) -> str:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    precision.warn_if_slow("sft", "train.engine", config, torch.device(device), rank)
    return capsys.readouterr().out


def test_one_line_names_the_key_and_the_value(monkeypatch, capsys):
    line = said(monkeypatch, capsys)
    assert line.startswith("warning: sft: train.engine.precision=bf16") and line.count("\n") == 1
    assert line.endswith("Set train.engine.precision=float32\n")


@pytest.mark.parametrize(
    "more",
    [{"config": EngineConfig()}, {"device": "cuda"}, {"rank": 1}, {"has": True}, {"has": None}],
    ids=["float32", "on a GPU", "another rank", "with instructions", "not known"],
)
def test_otherwise_nothing_is_said(monkeypatch, capsys, more):
    assert said(monkeypatch, capsys, **more) == ""
