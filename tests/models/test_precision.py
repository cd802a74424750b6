"""What `auto` comes to, and the lines about a precision that the processor has no instructions for."""

from __future__ import annotations

import pytest
import torch

from rayrlhf.models import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has", "found"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (CPU, None, torch.float32),
        (GPU, False, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_device_has_it(monkeypatch, device, has, found):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    assert precision.matrix_dtype(device, "auto") == found
    assert precision.matrix_dtype(device, "bf16") == torch.bfloat16
    assert precision.matrix_dtype(device, "float32") == torch.float32


def test_a_pass_computes_in_it(monkeypatch):
    one = torch.ones(2, 2)
    for has, found in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda has=has: has)
        with precision.autocast(CPU, "auto"):
            assert (one @ one).dtype == found


def said(monkeypatch, capsys, kind="bf16", device=CPU, rank=0, has=False) -> str:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    precision.warn_if_slow("sft", "train.engine", kind, device, rank)
    return capsys.readouterr().out


def test_one_line_names_the_key_and_the_value(monkeypatch, capsys):
    line = said(monkeypatch, capsys)
    assert line.startswith("warning: sft: train.engine.precision=bf16") and line.count("\n") == 1
    assert line.endswith("Set train.engine.precision=auto\n")
    line = said(monkeypatch, capsys, kind="auto")
    assert line.startswith("sft: train.engine.precision=auto is float32 here") and line.count("\n") == 1


@pytest.mark.parametrize("kind", ["bf16", "auto"])
@pytest.mark.parametrize(
    "more",
    [{"kind": "float32"}, {"device": GPU}, {"rank": 1}, {"has": True}, {"has": None}],
    ids=["float32", "on a GPU", "another rank", "with instructions", "not known"],
)
def test_otherwise_nothing_is_said(monkeypatch, capsys, kind, more):
    assert said(monkeypatch, capsys, **({"kind": kind} | more)) == ""
