"""Operations of passes against counts by hand, and against torch's own counter on real models."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from rayrlhf.models.adapters import with_adapter
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.models.scalar import load_scalar
from rayrlhf.training.flops import ModelShape, Text, flops, model_shape

# tests/conftest.py: 2 layers, width 64, 2 heads of 32, 1 key-value head, feed-forward 128, vocabulary 259
_LLAMA_LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, gate up down: 36,864
_LLAMA = 2 * _LLAMA_LAYER
_GPT2 = 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256)  # qkv, o, up and down
_HEAD = 64 * 259


def test_by_hand():
    shape = ModelShape(trained=100, frozen=10, attention=8)
    # texts of 3 and 2 tokens: 5 tokens, 9 + 4 pairs
    texts = [Text(3, 1), Text(2, 1)]
    assert flops(shape, texts, backward=False) == 2 * 110 * 5 + 4 * 8 * 13 == 1516
    assert flops(shape, texts) == (6 * 100 + 4 * 10) * 5 + 12 * 8 * 13 == 4448
    assert flops(shape, []) == 0
    assert flops(shape, [Text(5, 2)]) - flops(shape, texts) == 12 * 8 * (25 - 13), "one longer text has more pairs"
    all_trained = ModelShape(110, 0, 8)
    assert flops(all_trained, texts) == 3 * flops(all_trained, texts, backward=False), "PaLM's 6 N and 12 L H Q T"


def test_the_head_counts_for_what_is_predicted():
    shape = ModelShape(trained=100, frozen=0, attention=8, trained_head=1000, frozen_head=50)
    texts = [Text(3, 1), Text(4, 2)]
    without = ModelShape(trained=100, frozen=0, attention=8)
    assert flops(shape, texts) - flops(without, texts) == (6 * 1000 + 4 * 50) * 3
    assert flops(shape, texts, backward=False) - flops(without, texts, backward=False) == 2 * 1050 * 3


@pytest.mark.parametrize(
    ("kind", "matrices"),
    [("llama", _LLAMA), ("qwen3", _LLAMA), ("gpt2", _GPT2)],  # the last two tie their heads
)
def test_shapes_of_models(kind, matrices, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(kind))
    assert model_shape(model) == ModelShape(trained=matrices, frozen=0, attention=2 * 2 * 32, trained_head=_HEAD)


def test_the_shape_of_a_scalar_model_has_its_head_of_one_output(tiny_model):
    assert model_shape(load_scalar(tiny_model("llama"))) == ModelShape(_LLAMA + 64, 0, 128)


def test_under_an_adapter_the_frozen_matrices_have_no_gradient_of_their_own(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    adapted = with_adapter(model, PeftConfig(rank=4, target_modules=("q_proj", "v_proj")))
    # of each layer q: 64 x 4 and 4 x 64, v: 64 x 4 and 4 x 32
    assert model_shape(adapted) == ModelShape(2 * (256 + 256 + 256 + 128), _LLAMA, 128, 0, _HEAD)
    ia3 = with_adapter(AutoModelForCausalLM.from_pretrained(tiny_model("llama")), PeftConfig(kind="ia3"))
    assert model_shape(ia3) == ModelShape(0, _LLAMA, 128, 0, _HEAD), "its factors scale"


def test_what_cannot_be_counted_is_not(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    prompt = PeftConfig(kind="prompt_tuning", num_virtual_tokens=4)
    assert model_shape(with_adapter(model, prompt)) is None
    mixture = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    mixture.experts = torch.nn.Module()
    mixture.experts.weight = torch.nn.Parameter(torch.zeros(4, 64, 64))
    assert model_shape(mixture) is None


@pytest.mark.parametrize("adapter", [None, PeftConfig(rank=4)])
def test_torch_counts_as_many_for_one_text(adapter, tiny_model):
    """With attention written as matrix products; the key-value head is repeated for each query head, as transformers
    does it there."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), attn_implementation="eager")
    model = with_adapter(model, adapter)
    tokens = torch.arange(3, 14)[None]
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    with FlopCounterMode(display=False) as whole:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    shape = model_shape(model)
    # rotary embeddings multiply positions with 16 frequencies: no weights
    rotary = forward.get_total_flops() - flops(shape, [Text(11, 11)], backward=False)
    assert 0 <= rotary <= 2 * 11 * 16 * 2
    # the first layer's gradients of its input: with frozen embeddings below it nobody needs them
    unused = 0 if adapter is None else 2 * 11 * (64 * 64 + 2 * 64 * 32 + 3 * 4 * 64)
    assert whole.get_total_flops() - rotary == pytest.approx(flops(shape, [Text(11, 11)]) - unused, rel=1e-3)
