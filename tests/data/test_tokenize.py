"""templates, tokenizer and tokenize: ids worked out by hand over a byte tokenizer."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayrlhf.data import templates, tokenizer
from rayrlhf.data.config import TokenizerConfig
from rayrlhf.data.tokenize import _fitting, encode_batch, encoded
from rayrlhf.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def tok(tiny_model: Callable[[str], str]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model("llama"))


def _ids(tok: Any, text: str) -> list[int]:
    return [tok.convert_tokens_to_ids("Ġ" if letter == " " else letter) for letter in text]


def _encode(tok: Any, kind: str, rows: list[dict], max_tokens: int = 100, too_long: str = "drop") -> list[dict]:
    return encode_batch(pa.Table.from_pylist(rows), kind, tok, max_tokens, too_long).to_pylist()


def test_each_kind_of_row(tok: Any) -> None:
    bos, eos = tok.bos_token_id, tok.eos_token_id
    assert _encode(tok, "text", [{"text": "ab"}]) == [
        {"input_ids": [bos, *_ids(tok, "ab"), eos], "loss_mask": [False, True, True, True]}
    ]
    assert _encode(tok, "prompt_completion", [{"prompt": "ab", "completion": " c"}]) == [
        {"input_ids": [bos, *_ids(tok, "ab c"), eos], "loss_mask": [False] * 3 + [True] * 3}
    ]
    ids = {"chosen_ids": [bos, *_ids(tok, "px"), eos], "rejected_ids": [bos, *_ids(tok, "pyz"), eos]}
    assert _encode(tok, "preference", [{"prompt": "p", "chosen": "x", "rejected": "yz"}]) == [
        ids | {"prompt_length": 2}
    ]
    assert _encode(tok, "labelled", [{"prompt": "ab", "completion": " c", "label": False}]) == [
        {"input_ids": [bos, *_ids(tok, "ab c"), eos], "prompt_length": 3, "label": False}
    ]
    assert _encode(tok, "preference_margin", [{"prompt": "p", "chosen": "x", "rejected": "yz", "margin": 1.5}]) == [
        ids | {"prompt_length": 2, "margin": 1.5}
    ]
    assert _encode(tok, "ranking", [{"prompt": "p", "ranked": ["x", "yz", ""]}]) == [
        {"ranked_ids": [*ids.values(), [bos, *_ids(tok, "p"), eos]], "prompt_length": 2}
    ]
    assert _encode(tok, "scored", [{"prompt": "ab", "completion": " c", "score": -0.5}]) == [
        {"input_ids": [bos, *_ids(tok, "ab c"), eos], "prompt_length": 3, "score": -0.5}
    ]
    assert _encode(tok, "prompts", [{"prompt": "ab"}]) == [{"prompt_ids": [bos, *_ids(tok, "ab")], "prompt": "ab"}]


def test_messages_go_through_the_chat_template(tok: Any) -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    expected = [tok.bos_token_id, *_ids(tok, "ab"), tok.eos_token_id, *_ids(tok, "c")]
    assert templates.encode_prompt(tok, chat) == expected
    assert templates.as_text(chat) == "a\nb\nc"


def test_without_a_template_or_a_start_token(tok: Any) -> None:
    import copy

    plain = copy.deepcopy(tok)
    plain.chat_template = None
    assert templates.encode_prompt(plain, "ab") == [tok.bos_token_id, *_ids(tok, "ab")]
    user = {"role": "user", "content": "ab"}
    assert templates.encode_prompt(plain, [user]) == templates.encode_prompt(plain, "ab")
    for chat in ([{"role": "system", "content": "s"}, user], [user, {"role": "assistant", "content": "c"}, user]):
        with pytest.raises(ConfigError, match=r"no chat template to tell them apart: set chat_template"):
            templates.encode_prompt(plain, chat)  # who says what would be lost
    plain.bos_token = None
    assert templates.encode_prompt(plain, "ab") == _ids(tok, "ab")
    assert templates.encode_prompt(plain, "") == []
    plain.eos_token = None
    with pytest.raises(ModelError, match="has no end token"):
        templates.encode_completion(plain, "a")


def test_too_long_rows_are_dropped_or_cut_and_counted(tok: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "ab", "completion": "c"},  # 5 tokens
        {"prompt": "ab", "completion": "cdef"},  # 8 tokens
        {"prompt": "abcdef", "completion": "g"},  # the prompt alone has 7
    ]
    with caplog.at_level(logging.WARNING):
        dropped = _encode(tok, "prompt_completion", rows, max_tokens=5)
        cut = _encode(tok, "prompt_completion", rows, max_tokens=5, too_long="truncate")
    assert "of 3 rows 2 dropped and 0 cut" in caplog.text
    assert "of 3 rows 1 dropped and 1 cut" in caplog.text
    short = {
        "input_ids": [tok.bos_token_id, *_ids(tok, "abc"), tok.eos_token_id],
        "loss_mask": [False] * 3 + [True] * 2,
    }
    longer = {"input_ids": [tok.bos_token_id, *_ids(tok, "abcd")], "loss_mask": [False] * 3 + [True] * 2}
    assert dropped == [short]
    assert cut == [short, longer]
    assert _encode(tok, "prompts", [{"prompt": "abc"}], max_tokens=3, too_long="truncate") == []


def test_a_ranking_is_too_long_where_one_of_its_texts_is(tok: Any) -> None:
    rows = [{"prompt": "p", "ranked": ["abcdef", "x"]}, {"prompt": "p", "ranked": ["ab", "x"]}]
    assert len(_encode(tok, "ranking", rows, max_tokens=5)) == 1
    cut = _encode(tok, "ranking", rows, max_tokens=5, too_long="truncate")
    assert [len(ids) for ids in cut[0]["ranked_ids"]] == [5, 4]


def test_a_ranking_too_large_for_a_microbatch_is_refused(tok: Any) -> None:
    table = encode_batch(pa.Table.from_pylist([{"prompt": "", "ranked": ["abc", "x", "y"]}]), "ranking", tok, 9, "drop")
    assert _fitting(table, microbatch_tokens=15) is table
    with pytest.raises(ConfigError, match="ranks 3 texts of up to 5 tokens, which take 15 .*microbatch_tokens=14"):
        _fitting(table, microbatch_tokens=14)


def test_through_ray_rows_keep_their_order(ray_local: None, tok: Any) -> None:
    from ray import data

    texts = ["a" * n for n in range(40)]
    ds = encoded(data.from_items([{"text": t} for t in texts], override_num_blocks=8), "text", tok, 20)
    assert [len(row["input_ids"]) for row in ds.take_all()] == list(range(2, 21))


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_the_trained_tokenizer(kind: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["the cat sat on the mat", "the dog's café - 9 ½ weeks"] * 20
    words = {"num_pieces": 270} if kind == "words" else {}
    config = TokenizerConfig(kind=kind, vocab_size=300, model_max_length=64, **words)
    made = tokenizer.train(lambda: [texts[:20], texts[20:]], config)
    made.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert (back.pad_token_id, back.bos_token_id, back.eos_token_id) == (0, 1, 2)
    assert 259 < len(back) <= 300 and back.model_max_length == 64
    unseen = "Zürich 日本 <b> the  cat"
    assert back.decode(back(unseen)["input_ids"], skip_special_tokens=True) == unseen
    assert len(back("the cat", add_special_tokens=False)["input_ids"]) <= 3
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " sat"}]
    rendered = back.apply_chat_template(chat, tokenize=False)
    assert rendered == "<s>the cat sat</s>"
    # A plain request and a chat request start alike, and a cut text has the same tokens as the whole.
    assert back("the cat")["input_ids"] == templates.encode_prompt(back, "the cat")
    assert templates.encode_prompt(back, "the cat") + templates.encode_completion(back, " sat") == (
        templates.encode_text(back, "the cat sat")
    )


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_training_twice_gives_the_same_tokenizer(kind: Any) -> None:
    texts = [f"some word{i % 7} and other{i % 11} things" for i in range(100)]
    words = {"num_pieces": 300} if kind == "words" else {}
    config = TokenizerConfig(kind=kind, vocab_size=400, **words)

    def made(rows: list[str]) -> Any:
        return tokenizer.train(lambda: iter([rows]), config).backend_tokenizer.to_str()

    assert made(texts) == made(texts[::-1])


def test_frequent_words_are_whole_and_rare_ones_in_pieces() -> None:
    texts = ["a splendid film"] * 3 + ["a gruesome film", "the splendid one", "the end"]
    config = TokenizerConfig(kind="words", vocab_size=1000, num_pieces=259, min_count=3)
    made = tokenizer.train(lambda: [texts], config)
    assert made.tokenize("a splendid film") == ["a", "Ġsplendid", "Ġfilm"]
    assert made.tokenize("film gruesome") == [*"film", *"Ġgruesome"], "a word after a space is another one"
    assert len(made) == 259 + 2, "Ġsplendid and Ġfilm; a is a byte already, the others occur less than 3 times"
    assert len(tokenizer.train(lambda: [texts], config.model_copy(update={"min_count": 1, "vocab_size": 262}))) == 262
    assert made.decode(made("x" * 500)["input_ids"], skip_special_tokens=True) == "x" * 500


def test_a_word_without_end_takes_no_time_without_end() -> None:
    made = tokenizer.train(lambda: [["a few words"] * 3], TokenizerConfig(kind="words", vocab_size=300, num_pieces=262))
    text = "x" * 100_000 + "日本" * 10_000
    assert made.decode(made(text)["input_ids"], skip_special_tokens=True) == text


def test_keys_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="no effect with kind=bpe"):
        TokenizerConfig(min_count=3)


def test_words_need_room() -> None:
    with pytest.raises(ValueError, match="num_pieces=400 leaves no room for words in vocab_size=400"):
        TokenizerConfig(kind="words", vocab_size=400)
