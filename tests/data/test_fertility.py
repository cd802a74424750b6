"""Fertility by hand over a byte tokenizer, and of tokenizers of every kind on Chinese and English."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.data import tokenizer
from rayrlhf.data.config import TokenizerConfig
from rayrlhf.data.fertility import fertility

ENGLISH = ["the cat sat on the mat", "the dog's café - 9 ½ weeks", "and then they read the 1234 letters again"] * 20
CHINESE = ["今天天气很好，我们去公园。", "天气不好的时候，我们在家看书。", "他说：今天的天气很好。"] * 20
TEXTS = ENGLISH + CHINESE


def trained(**keys: Any) -> Any:
    return tokenizer.train(lambda: [TEXTS[:50], TEXTS[50:]], TokenizerConfig.model_validate(keys))


def test_by_hand(tiny_model: Callable[[str], str]) -> None:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(tiny_model("llama"))  # a byte a token
    assert fertility(tok, ["ab cd", "e"]) == {
        "tokenizer_tokens_per_word": 6 / 3,
        "tokenizer_tokens_per_char": 1.0,
        "tokenizer_unknown_share": 0.0,
        "tokenizer_byte_share": 0.0,
    }
    found = fertility(tok, ["ab cd", "é 好。x yz"])  # é has 2 bytes, 好 and 。 3 each
    assert found["tokenizer_tokens_per_char"] == (5 + 2 + 1 + 6 + 4) / (5 + 8)
    assert found["tokenizer_byte_share"] == 8 / 18
    assert (found["tokenizer_han_tokens_per_char"], found["tokenizer_han_byte_share"]) == (3.0, 1.0)
    assert found["tokenizer_other_tokens_per_word"] == 12 / 5
    assert found["tokenizer_other_byte_share"] == 2 / 12
    assert "tokenizer_han_tokens_per_word" not in found and "tokenizer_tokens_per_word" not in found


def test_unknown_tokens_are_counted() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert fertility(tok, ["a a b a"])["tokenizer_unknown_share"] == 0.25


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("alphabet", ["bytes", "characters"])
def test_every_kind_gives_any_text_back(kind: str, alphabet: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    special = ("<|user|>", "<|tool|>")
    keys = {"kind": kind, "alphabet": alphabet, "vocab_size": 420, "special_tokens": special, "split_digits": True}
    made = trained(**keys)
    made.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert [back.convert_tokens_to_ids(t) for t in ("<pad>", "<s>", "</s>", *special)] == [0, 1, 2, 3, 4]
    assert 264 < len(back) <= 420
    for text in (*TEXTS[:3], *CHINESE[:3], "Zürich 日本 <b> the  cat 😀 <0x41> ▁ x\ny", "天" * 300):
        assert back.decode(back(text)["input_ids"], skip_special_tokens=True) == text
    assert back.tokenize("in 1234")[-4:] == ["1", "2", "3", "4"]
    asked = back("<|user|>今天<|tool|>", add_special_tokens=False)["input_ids"]
    assert (asked[0], asked[-1]) == (3, 4) and back.decode(asked, skip_special_tokens=True) == "今天"
    found = fertility(back, ENGLISH[:3] + CHINESE[:3])
    assert found["tokenizer_unknown_share"] == 0 and found["tokenizer_other_tokens_per_word"] < 6
    assert found["tokenizer_han_tokens_per_char"] < 2, "frequent characters are whole"
    rare = fertility(back, ["麒麟"])
    assert (rare["tokenizer_han_tokens_per_char"], rare["tokenizer_han_byte_share"]) == (3.0, 1.0)


@pytest.mark.parametrize("alphabet", ["bytes", "characters"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_order_of_texts_changes_nothing(kind: str, alphabet: str) -> None:
    config = TokenizerConfig.model_validate({"kind": kind, "alphabet": alphabet, "vocab_size": 380})
    one = tokenizer.train(lambda: [TEXTS], config).backend_tokenizer.to_str()
    assert one == tokenizer.train(lambda: [TEXTS[:7:-1], TEXTS[7::-1]], config).backend_tokenizer.to_str()


def test_coverage_digits_and_the_sample_have_their_effect() -> None:
    few = trained(kind="bpe", alphabet="characters", vocab_size=400, coverage=0.5)
    most = trained(kind="bpe", alphabet="characters", vocab_size=400, coverage=1)
    assert "½" in most.get_vocab() and "½" not in few.get_vocab()
    assert few.tokenize("½") == ["<0xC2>", "<0xBD>"]
    assert trained(vocab_size=500).tokenize("1234") == ["12", "34"]
    assert trained(vocab_size=500, split_digits=True).tokenize("1234") == ["1", "2", "3", "4"]
    whole = trained(kind="words", vocab_size=500, num_pieces=280, special_tokens=("<x>",), split_digits=True)
    assert whole.tokenize(" the<x>12") == ["Ġthe", "<x>", "1", "2"]
    # the first 60 texts of two batches are English
    assert "å¤©" not in trained(vocab_size=500, max_texts=60).get_vocab()
    assert "å¤©" in trained(vocab_size=500, max_texts=90).get_vocab()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "unigram", "min_count": 3}, "no effect with kind=unigram"),
        ({"kind": "words", "alphabet": "characters"}, "kind=words spells rare words in bytes"),
        ({"coverage": 0.9}, "coverage=0.9 has no effect with alphabet=bytes"),
        ({"vocab_size": 260, "special_tokens": ["<a>", "<b>"]}, "no room for 256 bytes and 5 special tokens"),
        ({"special_tokens": ["<s>"]}, "special_tokens holds '<s>'"),
        ({"special_tokens": ["<a>", "<a>"]}, "special_tokens holds '<a>'"),
        ({"from_folder": "x", "vocab_size": 300}, "vocab_size have no effect with from_folder=x"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig.model_validate(keys)
