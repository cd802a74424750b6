"""The memory estimate, against hand-computed numbers."""

import pytest
from transformers import AutoModelForCausalLM

from actors.config import RolloutConfig
from cluster import memory
from rayrlhf.models.headers import tensor_shapes
from rayrlhf.training.config import EngineConfig

GIB = 2**30
# one billion (2^30) parameters, so that 4 bytes of each are 4 GiB; none of them a layer in a numbered block
ONE = {"model.embed_tokens.weight": (2**20, 2**10)}
# a block of two layers 8 -> 24 -> 8 and an embedding of 100 words, 8 wide
SMALL = {
    "model.layers.0.mlp.up_proj.weight": (24, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 24),
    "model.embed_tokens.weight": (100, 8),
}


def engine(stage, **more):
    return EngineConfig(zero_stage=stage, **more)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_shapes_tell_the_parameters_and_the_vocabulary(tiny_model, kind):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(kind))
    shapes = tensor_shapes(tiny_model(kind))
    assert memory.parameters(shapes) == sum(p.numel() for p in model.parameters())
    assert memory.vocabulary(shapes) == model.config.vocab_size


def test_zero_stages_divide_what_they_shard():
    # 4 ranks; 4 GiB of weights, 4 of gradients, 8 of moments.  Besides, at stage 0 the gradients twice (8); from stage
    # 1 on a buffer of 5e8 elements (2e9 bytes), and of the rank's quarter (1 GiB) a copy of the weights, the flat
    # gradients and what Adam computes in (3), at 1 the reduced gradients too, which at 2 are the only ones
    buffer = 4 * 5e8 / GIB
    held = {stage: memory.trained(ONE, engine(stage), 4, 0) for stage in range(4)}
    assert {stage: one.optimizer for stage, one in held.items()} == pytest.approx(
        {0: 4 + 8 + 8, 1: 4 + 2 + buffer + 4, 2: 1 + 2 + buffer + 3, 3: 1 + 2 + buffer + 3}
    )
    # at 3 a quarter of the weights, and as many gathered as DeepSpeed keeps
    live = 4 * 1e9 / GIB
    assert [one.weights for one in held.values()] == pytest.approx([4, 4, 4, 1 + live])
    assert memory.trained(ONE, engine(0, optimizer="sgd"), 4, 0).optimizer == pytest.approx(12), "SGD has no moments"


def test_auto_splits_the_states_of_large_models_over_ranks():
    def same_as(stage, *arguments, **more):
        return memory.trained(*arguments, engine("auto"), **more) == memory.trained(*arguments, engine(stage), **more)

    assert same_as(1, ONE, ranks=2, train_tokens=0) and same_as(0, ONE, ranks=1, train_tokens=0)
    assert same_as(0, SMALL, ranks=2, train_tokens=0)
    assert same_as(1, SMALL, ranks=1, train_tokens=0, offload=True), "DeepSpeed moves states from stage 1 on"
    assert same_as(0, ONE, ranks=2, train_tokens=0, num_adapter=1000)
    assert EngineConfig().stage(2, 100_000_000) == 0 and EngineConfig().stage(2, 100_000_001) == 1
    assert engine(3).stage(1, 10, offload=True) == 3


def test_a_small_models_buffer_is_no_larger_than_the_model():
    weights = 4 * (2 * 24 * 8 + 800) / GIB
    assert memory.trained(SMALL, engine(2), 1, 0).optimizer == pytest.approx(weights * (1 + 2 + 1 + 3))


def test_only_an_adapter_has_gradients_and_moments():
    # 4 of weights, and of an eighth as many parameters 4 of weights, 4 of gradients, 8 of moments, 8 of buffers
    held = memory.trained(ONE, engine(0), 1, 0, num_adapter=GIB // 8)
    assert (held.weights, held.optimizer) == pytest.approx((4.5, 2.5))


def test_activations_are_what_the_layers_read_and_write_and_the_vocabulary():
    # with gradients 6 bytes * (8 + 24 + 24 + 8) a token, and 5 tensors of 100 words (in bf16 4 bytes, and 3 tensors);
    # without 2 of them
    held = memory.trained(SMALL, engine(0), 1, train_tokens=1000)
    assert held.activations * GIB == pytest.approx(1000 * (6 * 64 + 5 * 4 * 100))
    half = memory.trained(SMALL, engine(0).model_copy(update={"precision": "bf16"}), 1, train_tokens=1000)
    assert half.activations * GIB == pytest.approx(1000 * (4 * 64 + 3 * 4 * 100))
    assert memory.frozen(SMALL, 1000).activations * GIB == pytest.approx(1000 * (6 * 64 + 2 * 4 * 100))
    assert memory.frozen(SMALL, 1000, has_logits=False).activations * GIB == pytest.approx(1000 * 6 * 64)
    assert memory.frozen(SMALL, 1000, "bf16", has_logits=False).activations * GIB == pytest.approx(1000 * 4 * 64)
    # the larger of the two passes counts
    longer = memory.trained(SMALL, engine(0), 1, train_tokens=1000, forward_tokens=4000)
    assert longer.activations * GIB == pytest.approx(4000 * (6 * 64 + 2 * 4 * 100))


def test_a_sampler_holds_weights_of_its_type_and_the_cache():
    held = memory.sampler(ONE, RolloutConfig(kv_cache_gib=3.0, dtype="bfloat16"))
    assert (held.weights, held.cache, held.device) == (2.0, 3.0, 5.0)
    assert held.total > held.device, "a process besides"
    two = memory.sampler(ONE, RolloutConfig(kv_cache_gib=3.0, tensor_parallel=2))
    assert (two.weights, two.cache, two.process) == (4.0, 6.0, 2 * held.process), "vLLM's cache is a worker's"
    assert memory.sampler(ONE, RolloutConfig(engine="transformers", kv_cache_gib=3.0)).device == 4.0


def test_a_reward_function_has_no_model():
    assert memory.rewarding(ONE, 1000, "rewards:vowels").device == 0
    assert memory.rewarding(ONE, 1000, None) == memory.frozen(ONE, 1000, has_logits=False)
