"""Adapters: merged and unmerged models give the same outputs, and peft itself reads what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayrlhf.errors import ConfigError
from rayrlhf.models import adapters
from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer, save
from rayrlhf.models.forward import causal_logits
from rayrlhf.models.headers import tensor_shapes
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.models.scalar import load_scalar
from rayrlhf.models.targets import adapted_layers, adapter_size

TOKENS = torch.arange(24).view(2, 12)
KINDS = {"lora": PeftConfig(rank=3, alpha=5.0), "ia3": PeftConfig(kind="ia3")}


def shaken(model: Any) -> Any:
    """`model` as if it had been trained: random numbers added to whatever is trainable."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def folder_of(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The tiny models, GPT-2 with biases that are not 0."""

    def make(kind: str) -> str:
        if kind != "gpt2":
            return tiny_model(kind)
        folder = str(tmp_path_factory.mktemp("gpt2"))
        model = load_causal_lm(tiny_model(kind))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        save(model, load_tokenizer(tiny_model(kind)), folder)
        return folder

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def write(model: Any, source: str, folder: Path) -> None:
    """As the engine does on one rank."""
    save(
        model, load_tokenizer(source), str(folder / "model"), {w.name: w.whole() for w in adapters.whole_weights(model)}
    )
    adapters.save_adapter(model, adapters.adapter_parameters(model), str(folder / "adapter"))


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_merged_saved_and_reloaded_models_give_the_same_logits(
    kind: str, method: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = folder_of(kind)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = adapters.with_adapter(load_causal_lm(folder), KINDS[method]).eval()
    assert torch.equal(logits(model), logits(plain)), "a fresh adapter changes nothing"
    expected = logits(shaken(model))
    assert not torch.allclose(expected, logits(plain), atol=0.1)
    with adapters.adapter_off(model):
        assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model), expected)

    write(model, folder, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert sorted(tensor_shapes(str(tmp_path / "model"))) == sorted(tensor_shapes(folder)), "tied weights once"
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(logits(beside), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_reward_models_head_is_trained_beside_the_adapter(
    kind: str, method: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = folder_of(kind)
    model = adapters.with_adapter(load_scalar(folder), KINDS[method])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in trainable and all("lora_" in n or "ia3_" in n for n in trainable - {"score.weight"})
    expected = logits(shaken(model))
    write(model, folder, tmp_path)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)  # with a random head
    base.config.pad_token_id = model.config.pad_token_id
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(beside), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "config", "ends"),
    [
        ("llama", PeftConfig(), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("qwen3", PeftConfig(target_modules=("q_proj", "mlp.up_proj")), "q_proj up_proj"),
        ("qwen3", PeftConfig(kind="ia3"), "k_proj v_proj down_proj"),
        ("gpt2", PeftConfig(), "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        ("gpt2", PeftConfig(kind="ia3"), "attn.c_attn mlp.c_proj"),
    ],
)
def test_the_same_layers_from_the_files_and_in_the_model(
    kind: str, config: PeftConfig, ends: str, tiny_model: Callable[[str], str]
) -> None:
    shapes = tensor_shapes(tiny_model(kind))
    layers = adapted_layers(config, shapes)
    assert len(layers) == 2 * len(ends.split()) and all(name.endswith(tuple(ends.split())) for name in layers)
    model = adapters.with_adapter(load_causal_lm(tiny_model(kind)), config)
    adapted = {name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer")}
    assert adapted == set(layers)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = adapter_size(config, shapes)
    assert found == size if config.kind == "lora" else size <= found <= 2 * size


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_virtual_tokens_come_before_the_text_and_the_weights_stay(
    kind: str, method: Any, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    folder, lengths = tiny_model(kind), torch.tensor([12, 12])
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = PeftConfig(kind=method, num_virtual_tokens=3)
    fresh = adapters.with_adapter(load_causal_lm(folder), config)
    if method == "prompt_tuning":
        rows = next(p for p in fresh.parameters() if p.requires_grad)
        distances = torch.cdist(rows, plain.get_input_embeddings().weight).min(dim=1).values
        assert float(distances.detach().max()) < 1e-3, "a fresh prompt is made of words"
    model = shaken(fresh)
    [(name, trained)] = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert "prompt_encoder" in name and len(trained) == 3
    with torch.no_grad():
        expected = causal_logits(model, TOKENS, lengths)
        assert expected.shape == logits(plain).shape and not torch.allclose(expected, logits(plain), atol=0.1)
        half = causal_logits(model, TOKENS[:, :6], lengths.clamp(max=6))
        torch.testing.assert_close(expected[:, :6], half, atol=1e-5, rtol=0)
        # by hand: the learned embeddings, then those of the tokens
        if method == "prompt_tuning":
            embedded = plain.get_input_embeddings()(TOKENS)
            given = torch.cat([trained.expand(2, 3, -1), embedded], dim=1)
            torch.testing.assert_close(plain(inputs_embeds=given).logits[:, 3:], expected, atol=1e-5, rtol=0)
        empty = causal_logits(model, TOKENS[:0], lengths[:0])
        assert empty.shape == (0, 12, 259)
    save(adapters.plain_model(model), load_tokenizer(folder), str(tmp_path / "model"))
    adapters.save_adapter(model, adapters.adapter_parameters(model), str(tmp_path / "adapter"))
    for weight in adapters.whole_weights(model):
        assert torch.equal(weight.whole(), plain.get_parameter(weight.name))
    again, taken = adapters.with_virtual_tokens(load_causal_lm(str(tmp_path / "model")), str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(causal_logits(again, TOKENS, lengths), expected, atol=1e-6, rtol=0)
    assert taken == 3


def test_alpha_rank_and_dropout_take_effect(tiny_model: Callable[[str], str]) -> None:
    base = load_causal_lm(tiny_model("llama"))
    name = "model.layers.0.self_attn.q_proj"
    before = base.get_parameter(f"{name}.weight").clone()
    model = shaken(adapters.with_adapter(base, PeftConfig(rank=4, alpha=6.0, dropout=0.5)))
    a, b = (model.get_parameter(f"{name}.lora_{part}.default.weight").detach() for part in "AB")
    assert a.shape == (4, 64) and b.shape == (64, 4)
    merged = {weight.name: weight.whole() for weight in adapters.whole_weights(model)}[f"{name}.weight"]
    torch.testing.assert_close(merged, before + 1.5 * b @ a, atol=1e-6, rtol=0)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model)), "dropout in training"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "ia3", "rank": 4}, "rank=4 has no effect with kind=ia3"),
        ({"kind": "ia3", "dropout": 0.1}, "dropout=0.1 has no effect with kind=ia3"),
        ({"kind": "lorra"}, "lora"),
        ({"rank": 0}, "rank"),
        ({"num_virtual_tokens": 3}, "num_virtual_tokens=3 has no effect with kind=lora"),
        ({"kind": "prefix_tuning", "target_modules": ["q_proj"]}, "no effect with kind=prefix_tuning"),
        ({"target_modules": []}, "target_modules"),
    ],
)
def test_keys_without_effect_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PeftConfig(**given)


def test_layers_that_the_model_has_not(tiny_model: Callable[[str], str]) -> None:
    shapes = tensor_shapes(tiny_model("llama"))
    known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    for target, words in (("qproj", f"did you mean q_proj.*{known}"), ("lm_head", known), ("embed_tokens", known)):
        with pytest.raises(ConfigError, match=f"policy.peft.target_modules: .*{target}.*{words}"):
            adapted_layers(PeftConfig(target_modules=("v_proj", target)), shapes, "policy.peft")
    with pytest.raises(ConfigError, match="no linear layer in numbered blocks"):
        adapted_layers(PeftConfig(), {"lm_head.weight": (8, 8)})
    with pytest.raises(ConfigError, match=r"set peft.target_modules; there are Wqkv"):
        adapted_layers(PeftConfig(kind="ia3"), {"blocks.0.Wqkv.weight": (8, 8)})
