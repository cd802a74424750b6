"""The memory estimate, against hand-computed numbers."""

import pytest
from transformers import AutoModelForCausalLM

from cluster.memory import estimate, parameters_in
from rayrlhf.errors import ModelError

BILLION = 2**30


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_parameters_are_counted_from_the_file_headers(tiny_model, kind):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(kind))
    assert parameters_in(tiny_model(kind)) == sum(p.numel() for p in model.parameters())


def test_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(ModelError, match="safetensors"):
        parameters_in(str(tmp_path))


def test_zero_stages_divide_what_they_shard():
    # float32: 4 bytes of weights, 4 of gradients, 8 of moments a parameter; the process aside
    process = estimate("reference", 0)
    held = {stage: estimate("policy", BILLION, ranks=4, zero_stage=stage) - process for stage in range(4)}
    assert held == pytest.approx({0: 16, 1: 10, 2: 7, 3: 4})


def test_rollout_holds_weights_and_cache():
    assert estimate("rollout", BILLION, kv_cache_gib=3) - estimate("rollout", 0) == pytest.approx(7)


def test_only_an_adapter_has_gradients_and_moments():
    process = estimate("reference", 0)
    # 4 of weights, and of an eighth as many parameters 4 of weights, 4 of gradients, 8 of moments
    held = estimate("policy", BILLION, num_adapter=BILLION // 8) - process
    assert held == pytest.approx(4 + 16 / 8)
    # at ZeRO 3 over 4 ranks all are divided
    assert estimate("critic", BILLION, 4, 3, num_adapter=BILLION // 8) - process == pytest.approx(6 / 4)
