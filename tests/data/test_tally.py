"""What is dropped and cut, why, and that it is counted."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from rayrlhf.data import tally
from rayrlhf.data.tally import Tally, check_share, metrics, summary
from rayrlhf.data.tokenize import encode_batch, encoded
from rayrlhf.errors import DataError
from tests.conftest import byte_tokenizer

TURNS = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "bc")]
CHAT = [{"role": role, "content": content} for role, content in TURNS]


def encode(kind: str, rows: list[dict[str, Any]], max_tokens: int, too_long: str, turns: str = "all") -> list[dict]:
    return encode_batch(pa.Table.from_pylist(rows), kind, byte_tokenizer(), max_tokens, too_long, turns).to_pylist()


def test_the_beginning_of_a_prompt_is_cut() -> None:
    made = byte_tokenizer()
    bos, a, b, c, d, eos = (made.convert_tokens_to_ids(token) for token in ["<s>", *"abcd", "</s>"])
    rows = [{"prompt": "abc", "completion": "d"}, {"prompt": "a", "completion": "bcd"}]
    # <s> a b c | d </s> is 6 long: the oldest 2 after the start go; <s> a | b c d </s> has no 2 to give and keep one
    assert encode("prompt_completion", rows, 4, "truncate_prompt") == [
        {"input_ids": [bos, c, d, eos], "loss_mask": [False, False, True, True]}
    ]
    pair = {"prompt": "abc", "chosen": "d", "rejected": "da"}
    assert encode("preference", [pair], 5, "truncate_prompt") == [
        {"chosen_ids": [bos, c, d, eos], "rejected_ids": [bos, c, d, a, eos], "prompt_length": 2}
    ]
    ranking = encode("ranking", [{"prompt": "abc", "ranked": ["d", "a", ""]}], 5, "truncate_prompt")
    assert ranking == [{"ranked_ids": [[bos, b, c, d, eos], [bos, b, c, a, eos], [bos, b, c, eos]], "prompt_length": 3}]
    labelled = {"prompt": "abc", "completion": "d", "label": True}
    assert encode("labelled", [labelled], 4, "truncate_prompt") == [
        {"input_ids": [bos, c, d, eos], "prompt_length": 2, "label": True}
    ]
    prompt = [{"role": "user", "content": "abcd"}]
    assert encode("prompts", [{"prompt": prompt}], 3, "truncate_prompt") == [
        {"prompt_ids": [bos, c, d], "prompt": prompt}
    ]
    (text,) = encode("text", [{"text": "abcd"}], 3, "truncate_prompt")
    assert text["input_ids"] == [made.bos_token_id, a, b]


def test_conversations_are_cut_at_their_end_or_before_their_first_answer() -> None:
    row = {"messages": CHAT, "num_given": 0}  # <s> q a </s> r b c </s>
    whole = [False, False, True, True, False, True, True, True]
    assert [found["loss_mask"] for found in encode("prompt_completion", [row], 8, "error")] == [whole]
    assert [found["loss_mask"] for found in encode("prompt_completion", [row], 6, "truncate")] == [whole[:6]]
    assert encode("prompt_completion", [row], 7, "truncate_prompt") == [], "a prompt keeps a token after its start"
    longer = {"messages": [CHAT[0] | {"content": "qqq"}, *CHAT[1:]], "num_given": 0}
    assert [found["loss_mask"] for found in encode("prompt_completion", [longer], 8, "truncate_prompt")] == [whole]
    assert encode("prompt_completion", [row], 2, "truncate") == []
    (last,) = encode("prompt_completion", [row], 8, "drop", "last")
    assert last["loss_mask"] == [False] * 5 + [True] * 3
    (given,) = encode("prompt_completion", [row | {"num_given": 2}], 8, "drop")
    assert given == last


def test_too_long_can_be_an_error() -> None:
    with pytest.raises(DataError, match="a prompts row has 5 tokens, more than max_tokens=4: .*The row: .*abcd"):
        encode("prompts", [{"prompt": "abcd"}], 4, "error")


def test_equal_pairs_and_empty_answers_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "abcdefg", "rejected": "abcdefh"},  # alike when both are cut
        {"prompt": "q", "chosen": " ", "rejected": "b"},
        {"prompt": "q", "chosen": "b", "rejected": ""},  # that nothing is better said is learnt
    ]
    with caplog.at_level(logging.WARNING):
        kept = encode("preference", pairs, 8, "truncate")
    assert [len(row["rejected_ids"]) for row in kept] == [4, 3]
    assert "of 5 rows 3 dropped and 0 cut, max_tokens=8 (2 pairs of equal texts, 1 without an answer)" in caplog.text
    assert encode("preference_margin", [pairs[1] | {"margin": 1.0}], 8, "drop") == []
    for row in ({"prompt": "q", "completion": " \n"}, {"messages": [*CHAT[:3], {"role": "assistant", "content": ""}]}):
        assert encode("prompt_completion", [row | ({"num_given": 0} if "messages" in row else {})], 20, "drop") == []
    given = {"messages": [CHAT[0], {"role": "assistant", "content": ""}, *CHAT[2:]], "num_given": 2}
    assert len(encode("prompt_completion", [given], 20, "drop")) == 1, "an empty answer that is not learnt does no harm"


def test_tasks_count_every_row_once(ray_local: None, tmp_path: Path) -> None:
    from ray import data

    rows = [
        {"prompt": "q", "chosen": "a" * (1 + n % 9), "rejected": "b" if n % 3 else "a" * (1 + n % 9)} for n in range(60)
    ]
    counts = Tally()
    ds = encoded(data.from_items(rows, override_num_blocks=6), "preference", byte_tokenizer(), 9, "drop", tally=counts)
    kept = len(ds.materialize().take_all())
    assert counts.counts() == {
        "read": 60, "kept": kept, "cut": 0, "too_long": sum(n % 9 > 5 for n in range(60)),
        "equal": sum(n % 3 == 0 and n % 9 <= 5 for n in range(60)), "empty": 0, "bad": 0,
    }  # fmt: skip


def test_the_summary_the_metrics_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"read": 1000, "kept": 700, "cut": 5, "too_long": 200, "equal": 90, "empty": 10, "bad": 0}
    line = (
        "a.jsonl: of 1,000 rows 200 dropped (longer than max_tokens), 90 dropped (pairs of equal texts), 10 dropped "
        "(without an answer), 5 cut to max_tokens"
    )
    assert summary("a.jsonl", counts) == line
    assert summary("a.jsonl", counts | {"cut": 0, "too_long": 0, "equal": 0, "empty": 0}) == ""
    named = metrics(counts, "validation_")
    assert named["data/validation_rows_read"] == 1000 and named["data/validation_rows_dropped_equal"] == 90
    made = cast(Tally, SimpleNamespace(counts=lambda: counts, bad=lambda: ["a.jsonl, line 3: not JSON"]))
    assert tally.report("a.jsonl", made, 0.3)["data/rows_dropped_too_long"] == 200
    assert capsys.readouterr().out == line + "\n"
    counts |= {"bad": 1, "empty": 9}
    tally.report("a.jsonl", made, 0.3)
    first, second = capsys.readouterr().out.splitlines()
    assert "1 dropped (that cannot be read)" in first and second == "  a.jsonl, line 3: not JSON"
    counts |= {"bad": 0, "empty": 10}
    check_share("a.jsonl", counts, None)
    with pytest.raises(DataError, match="a.jsonl: of 1,000 rows .* more than data.max_dropped_share=0.29"):
        check_share("a.jsonl", counts, 0.29)
