"""What `auto` comes to, and the lines about a precision that the processor has no instructions for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from cluster.bring_up import ENVIRONMENT
from rayrlhf.environment import cpu_has_bf16
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


_NEW_SHAPES = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 688), torch.nn.Linear(688, 256))
held = []
for tokens in range(600, 900):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(tokens, 256)).float().sum()
    loss.backward()
    held.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
print(held[-1] - held[100])
"""


@pytest.mark.skipif(not cpu_has_bf16(), reason="about kernels that need instructions for bfloat16")
def test_microbatches_of_ever_new_lengths_keep_no_memory() -> None:
    """With what an actor's environment has, and not by itself."""

    def grown_mib(environment: dict[str, str]) -> float:
        command = [sys.executable, "-c", _NEW_SHAPES]
        return float(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)

    default = {name: "1024" for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")}
    assert grown_mib(ENVIRONMENT) < 50 < 150 < grown_mib(ENVIRONMENT | default)
