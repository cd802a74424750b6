"""Folders of causal LMs: what is checked, made, loaded and saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rayrlhf.errors import ConfigError, ModelError
from rayrlhf.models import causal_lm
from rayrlhf.models.config import ModelConfig
from rayrlhf.models.forward import causal_logits

SMALL = ModelConfig(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, context=64)


def copy_without(folder: str, to: Path, *patterns: str) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*patterns))
    return to


def test_a_folder_without_tokenizer_config_or_weights_is_named(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    assert causal_lm.check_folder(folder) == 128
    for name, pattern, message in (
        ("a", "tokenizer.json", "has no tokenizer"),
        ("b", "config.json", "no config.json"),
        ("c", "*.safetensors", "no weights"),
    ):
        broken = copy_without(folder, tmp_path / name, pattern)
        with pytest.raises(ModelError, match=message) as error:
            causal_lm.check_folder(str(broken))
        assert str(broken) in str(error.value)
    with pytest.raises(ModelError, match="no such folder"):
        causal_lm.check_folder(str(tmp_path / "nothing"))


def test_a_tokenizer_without_pad_pads_with_its_end(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    folder = copy_without(tiny_model("llama"), tmp_path / "nopad")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    tokenizer = causal_lm.load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no eos token"):
        causal_lm.load_tokenizer(str(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_llama_has_the_size_asked_for(tied: bool, tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = causal_lm.load_tokenizer(tiny_model("llama"))
    config = SMALL.model_copy(update={"tied": tied})
    model = causal_lm.new_llama(config, tokenizer)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters(259)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == config.shapes(259)
    causal_lm.save(model, tokenizer, str(tmp_path))
    assert causal_lm.check_folder(str(tmp_path)) == 64
    assert causal_lm.vocabulary_size(str(tmp_path)) == 259
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert again.config.pad_token_id == tokenizer.pad_token_id


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden=30"):
        ModelConfig(hidden=30, heads=4)
    with pytest.raises(ValueError, match="kv_heads=3"):
        ModelConfig(heads=4, kv_heads=3)
    with pytest.raises(ConfigError, match="model.tokenizer"):
        ModelConfig().source()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_logits_do_not_depend_on_padding(kind: str, tiny_model: Callable[[str], str]) -> None:
    model = causal_lm.load_causal_lm(tiny_model(kind)).eval()
    rows = [torch.arange(5, 14), torch.arange(40, 44)]
    tokens = torch.full((2, 11), model.config.eos_token_id)  # pad == eos
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    lengths = torch.tensor([9, 4])
    with torch.no_grad():
        logits = causal_logits(model, tokens, lengths)
        for row, ids in enumerate(rows):
            alone = model(input_ids=ids[None]).logits[0]
            torch.testing.assert_close(logits[row, : len(ids)], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_no_rows_still_reach_every_parameter(kind: str, tiny_model: Callable[[str], str]) -> None:
    model = causal_lm.load_causal_lm(tiny_model(kind))
    logits = causal_logits(model, torch.zeros((0, 1), dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 1, 259)
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_dropout_is_off_in_training(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    folder = copy_without(tiny_model("gpt2"), tmp_path / "dropout")
    path = folder / "config.json"
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | rates))
    model = causal_lm.load_causal_lm(str(folder)).train()
    tokens = torch.arange(20)[None]
    assert torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert model.config.resid_pdrop == 0.5  # what is saved keeps the model's own rates


def test_lengths_must_fit(tiny_model: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"lengths \[2\] do not fit tokens \[1, 3\]"):
        causal_logits(None, torch.zeros((1, 3), dtype=torch.long), torch.ones(2, dtype=torch.long))
