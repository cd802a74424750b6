"""Mistakes with models: what a Hugging Face folder lacks, and models where another kind is expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.registry import DPO, EVALUATE, PPO, PRETRAIN, SFT, Case, given, without
from tests.bad_input.workshop import Answer, Workshop

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4f3c\nsize 430944\n"


def _spoilt(spoil: Callable[[Path], Any], *argv: str) -> Callable[[Workshop], Answer]:
    """SFT (or `argv`) on a copy of the model after `spoil(its folder)`."""

    def provoke(here: Workshop) -> Answer:
        spoil(here.copy("llama", "mine"))
        return here.run(*(argv or (*without(SFT, "model"), "model=mine")))

    return provoke


def _config(**changes: Any) -> Callable[[Workshop], Answer]:
    def provoke(here: Workshop) -> Answer:
        here.copy("llama", "mine")
        here.change("mine/config.json", **changes)
        return here.run(*without(SFT, "model"), "model=mine")

    return provoke


def _without(*names: str) -> Callable[[Workshop], Answer]:
    return _spoilt(lambda folder: [(folder / name).unlink() for name in names])


def _with(name: str, content: bytes) -> Callable[[Workshop], Answer]:
    return _spoilt(lambda folder: (folder / name).write_bytes(content))


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _adapter(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text("{}")


def _more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def _no_end(folder: Path) -> None:
    import json

    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"})
    )


CASES = (
    Case(
        "the folder is not there",
        given(*without(SFT, "model"), "model=mine"),
        ("no model at mine", "Give a stage directory"),
    ),
    Case(
        "a model of the hub by its name",
        given(*without(SFT, "model"), "model=hf://org/model"),
        ("hf download", "give the folder"),
    ),
    Case(
        "an empty folder",
        _spoilt(lambda folder: [one.unlink() for one in folder.iterdir()]),
        ("found: nothing", "give a runs/NAME/STAGE"),
    ),
    Case(
        "no tokenizer",
        _without("tokenizer.json", "tokenizer_config.json"),
        ("no tokenizer", "tokenizer.save_pretrained"),
    ),
    Case("no weights", _without("model.safetensors"), ("no weights", "*.safetensors")),
    Case("no config.json", _without("config.json"), ("no config.json", "copy the model again")),
    Case(
        "weights as a pickle alone",
        _spoilt(lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
        ("pytorch_model.bin alone", "save_pretrained(folder)"),
    ),
    Case("weights cut off while they were copied", _spoilt(_cut), ("its header says", "copy the model again")),
    Case(
        "weights that are Git LFS's pointer",
        _with("model.safetensors", LFS),
        ("no whole safetensors file", "copy the model again"),
    ),
    Case(
        "a tokenizer that is Git LFS's pointer",
        _with("tokenizer.json", LFS),
        ("tokenizer of mine", "copy its files again"),
    ),
    Case("a torn config.json", _with("config.json", b"{"), ("config.json cannot be read", "copy the model again")),
    Case(
        "a config.json that is a list",
        _with("config.json", b"[1]"),
        ("config.json cannot be read", "copy the model again"),
    ),
    Case(
        "config.json of another model", _config(hidden_size=32), ("259 x 64", "a width of 32", "Copy the model again")
    ),
    Case("config.json without a context", _config(max_position_embeddings=None), ("max_position_embeddings", "add")),
    Case("a context that is a word", _config(max_position_embeddings="long"), ("'long'", "no number of tokens")),
    Case(
        "an architecture that transformers does not know",
        _config(model_type="mine", architectures=["MineForCausalLM"]),
        ("'mine'", "MineForCausalLM", "another architecture"),
    ),
    Case(
        "a model that writes no text",
        _config(model_type="bert", architectures=["BertForMaskedLM"]),
        ("BertForMaskedLM", "ForCausalLM"),
    ),
    Case(
        "a model with an encoder",
        _config(model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        ("T5ForConditionalGeneration", "no causal language model"),
    ),
    Case(
        "more tokens than embeddings",
        _spoilt(_more_tokens),
        ("260 tokens", "embeddings of 259", "resize_token_embeddings"),
    ),
    Case("a tokenizer without an end token", _spoilt(_no_end), ("no eos token", "set eos_token")),
    Case("an adapter alone", _spoilt(_adapter), ("adapter_config.json", "merge_and_unload")),
    Case(
        "a reward model for SFT",
        given(*without(SFT, "model"), "model=judge"),
        ("reward model", "give an SFT or PPO stage"),
    ),
    Case(
        "a reward model as the policy",
        given(*without(PPO, "policy_model"), "policy_model=judge"),
        ("policy_model=judge", "writes none", "give an SFT or PPO stage"),
    ),
    Case(
        "a language model as the reward model",
        given(*without(PPO, "reward_model"), "reward_model=llama"),
        ("reward_model=llama", "LlamaForCausalLM", "give a reward model's stage"),
    ),
    Case(
        "a reward model as DPO's reference",
        given(*DPO, "reference=judge"),
        ("reference=judge", "give an SFT or PPO stage"),
    ),
    Case(
        "a policy of another size than its baseline",
        _spoilt(lambda folder: None, *without(EVALUATE, "baseline"), "baseline=small"),
        ("no model at small",),
    ),
    Case("pretraining without a tokenizer", given(*without(PRETRAIN, "model.tokenizer")), ("model: required",)),
    Case(
        "a tokenizer's folder that is not there",
        given(*without(PRETRAIN, "model.tokenizer"), "model.tokenizer=mine"),
        ("no model at mine",),
    ),
    Case(
        "answers of a reward model",
        given("generate", "judge", "hello"),
        ("judge holds a reward model", "give an SFT or PPO stage"),
    ),
    Case(
        "answers of a model that is cut off",
        _spoilt(_cut, "generate", "mine", "hello"),
        ("its header says", "copy the model again"),
    ),
)
