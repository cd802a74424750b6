"""Which tokenizers speak of the same things."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rayrlhf.data.vocabulary import is_same, reads
from rayrlhf.models.causal_lm import load_tokenizer, with_pad_apart
from tests.conftest import byte_tokenizer


def test_tokenizers_are_compared_by_content(
    tiny_model: Callable[[str], str], foreign_reward_folder: str, tmp_path: Path
) -> None:
    own, other = load_tokenizer(tiny_model("llama")), load_tokenizer(foreign_reward_folder)
    assert is_same(own, load_tokenizer(tiny_model("gpt2"))) and reads(own, own), "from another folder"
    assert not is_same(own, other) and not reads(other, own)
    used = byte_tokenizer()
    used("some text", truncation=True, max_length=3, padding="max_length")  # this leaves its mark in tokenizer.json
    used.save_pretrained(tmp_path)
    assert is_same(own, load_tokenizer(str(tmp_path)))


def test_what_makes_a_difference() -> None:
    own = byte_tokenizer()
    template, end, bare, pad = (byte_tokenizer() for _ in range(4))
    template.chat_template += " "
    assert not is_same(own, template) and reads(own, template)
    end.eos_token = "<pad>"
    assert not is_same(own, end)
    bare.pad_token = bare.eos_token  # as `load_tokenizer` has it where there is none
    pad.add_special_tokens({"pad_token": "<another>"})  # as many a reward model has
    assert is_same(bare, pad) and reads(pad, bare) and not reads(bare, pad)
    for start in ("<s>", "</s>"):
        bare.bos_token = start
        assert is_same(bare, with_pad_apart(bare)), "a reward model's, made from this one"
    added = byte_tokenizer()
    added.add_tokens(["ab"])
    assert not is_same(own, added) and reads(added, own)
