"""The measured rate of matrix products, and the share that training reaches."""

from __future__ import annotations

import random

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from rayrlhf.training import distributed, matrix_rate
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.engine import Engine
from rayrlhf.training.flops import Text, flops, model_shape
from tests.training.experience import free_port


@pytest.fixture(scope="module")
def engine(tiny_model):
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())
    return Engine(AutoModelForCausalLM.from_pretrained(tiny_model("llama")), EngineConfig(), total_steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_draws_no_random_number_and_is_done_once(dtype):
    torch.manual_seed(7)
    before, python = torch.get_rng_state(), random.getstate()
    rate = matrix_rate.matrix_rate(torch.device("cpu"), dtype, torch.get_num_threads())
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python
    assert 1e8 < rate < 1e14
    assert matrix_rate.matrix_rate(torch.device("cpu"), dtype, torch.get_num_threads()) == rate


def test_the_share_is_operations_over_seconds_and_rate(engine, monkeypatch):
    monkeypatch.setattr(matrix_rate, "matrix_rate", lambda device, dtype, threads: 2e9)
    share, shape = matrix_rate.MatrixShare(engine), model_shape(engine.module)
    found = share.metrics("perf/matrix", [Text(3, 2), Text(5, 5)], 0.5, forward_only=[Text(4, 1)])
    expected = (flops(shape, [Text(3, 2), Text(5, 5)]) + flops(shape, [Text(4, 1)], backward=False)) / 0.5 / 2e9
    assert found == {"perf/matrix_tflops": 0.002, "perf/matrix_share": pytest.approx(expected)}


def test_a_model_that_cannot_be_counted_has_a_rate_and_no_share(engine, monkeypatch):
    monkeypatch.setattr(matrix_rate, "model_shape", lambda model: None)
    assert matrix_rate.MatrixShare(engine).metrics("perf/matrix", [Text(3, 2)], 0.5).keys() == {"perf/matrix_tflops"}
