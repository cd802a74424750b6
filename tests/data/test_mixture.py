"""A mixture as a stream: rows a pass, the same order whatever the blocks, sources that go on where they stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.data import mixture
from rayrlhf.data.config import DataConfig
from rayrlhf.data.mixing_rates import parts
from rayrlhf.errors import DataError


def made(data: DataConfig, counts: list[int], blocks: int) -> mixture.Mixture:
    """Sources of rows {id: [source, n]}, in `blocks` blocks."""
    from ray import data as ray_data

    rows = []
    for number, count in enumerate(counts):
        items = [{"id": [number, n]} for n in range(count)]
        rows.append(ray_data.from_items(items[:: 1 if blocks == 1 else -1], override_num_blocks=blocks).materialize())
    return mixture.Mixture(parts(data, counts), rows, {})


def test_shares_of_every_pass_and_all_rows_before_one_comes_again(ray_local: None) -> None:
    data = DataConfig.model_validate(
        {"train": [{"path": "a", "weight": 1, "epochs": 2}, {"path": "b", "weight": 2}], "mixing": {"rows": 30}}
    )
    streams = [made(data, [8, 50], blocks).in_order(3, seed=5).take_all() for blocks in (1, 6)]
    assert streams[0] == streams[1], "whatever the blocks"
    rows = streams[0]
    assert len(rows) == 90 and all(row["source"] == row["id"][0] for row in rows)
    passes = [rows[start : start + 30] for start in (0, 30, 60)]
    for some in passes:
        assert Counter(row["source"] for row in some) == {0: 10, 1: 20}
    # 60 of b's 50 in all: none twice in the first two passes, ten twice in the end
    seen = Counter(row["id"][1] for row in rows[:60] if row["source"])
    assert len(seen) == 40 and set(seen.values()) == {1}
    assert sorted(Counter(row["id"][1] for row in rows if row["source"]).values()) == [1] * 40 + [2] * 10
    assert sorted(Counter(row["id"][1] for row in rows if not row["source"]).values()) == [3, 3] + [4] * 6
    twice = [row["id"] for row in passes[0] if not row["source"]]
    assert Counter(map(str, twice)).most_common(1)[0][1] == 2
    places = [n for n, row in enumerate(passes[0]) if Counter(map(str, twice))[str(row["id"])] == 2]
    assert places[0] + 1 != places[1] or places[2] + 1 != places[3], "repetitions do not stand side by side"
    other = made(data, [8, 50], 1).in_order(3, seed=6).take_all()
    assert other != rows and Counter(row["source"] for row in other) == Counter(row["source"] for row in rows)


def test_sources_are_shuffled_together(ray_local: None) -> None:
    data = DataConfig.model_validate({"train": [{"path": "a"}, {"path": "b"}]})
    rows = made(data, [40, 40], 2).in_order(1, seed=0).take_all()
    halves = [Counter(row["source"] for row in rows[start : start + 40])[0] for start in (0, 40)]
    assert sum(halves) == 40 and 10 < halves[0] < 30
    assert len({str(row) for row in rows}) == 80, "every row once"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows: dict[str, list[dict[str, Any]]] = {
        "sft": [{"prompt": f"q{n}", "completion": " a"} for n in range(12)],
        "text": [{"text": f"text {n}"} for n in range(20)],
        "strings": [{"prompt": f"p{n}"} for n in range(10)],
        "messages": [{"prompt": [{"role": "user", "content": f"m{n}"}]} for n in range(10)],
        "more": [{"prompt": f"r{n}"} for n in range(4)],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "odd.dat").write_text("odd one\n" * 2 + "odd two\n")
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows} | {"odd": str(tmp_path / "odd.dat")}


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], str]) -> Any:
    from rayrlhf.models.causal_lm import load_tokenizer

    return load_tokenizer(tiny_model("llama"))


@pytest.mark.slow
def test_text_among_sft_rows_counts_with_all_its_tokens(ray_local: None, files: dict[str, str], tokenizer: Any) -> None:
    data = DataConfig.model_validate(
        {"train": files["sft"], "pretraining": {"path": files["odd"], "share": 0.2, "format": "text"}}
    )
    found = mixture.load(data, "prompt_completion", tokenizer)
    rows = found.in_order(2, seed=0).take_all()
    assert [part.quota for part in found.parts] == [12, 3] and len(rows) == 30
    for row in rows:
        # " a" and the end token of a completion, everything but the start of a text
        assert row["loss_mask"].count(True) == (len(row["input_ids"]) - 1 if row["source"] else 3)
    with pytest.raises(DataError, match="odd is to give 12 rows a pass, but with its epochs it has 3"):
        more = {"train": files["sft"], "pretraining": {"path": files["odd"], "share": 0.5, "format": "text"}}
        mixture.load(DataConfig.model_validate(more), "prompt_completion", tokenizer)


def test_columns_of_two_types_are_one_error(ray_local: None, files: dict[str, str], tokenizer: Any) -> None:
    data = DataConfig.model_validate({"train": [{"path": files["strings"]}, {"path": files["messages"]}]})
    with pytest.raises(DataError, match="strings and messages have columns of other types"):
        mixture.load(data, "prompts", tokenizer)


@pytest.mark.slow
def test_prompts_of_several_sources_go_on_where_a_resumed_run_left_them(
    ray_local: None, files: dict[str, str], tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from rayrlhf.data.prompt_stream import text_batches, training_prompts

    sources = [{"path": files["strings"], "weight": 1}, {"path": files["more"], "weight": 1}]
    data = DataConfig.model_validate({"train": sources, "max_tokens": 16})
    whole = list(training_prompts(data, tokenizer, 4, 6, seed=1))  # 24 prompts: 3 passes of 4 and 4
    assert "prompts: more: 4 of 4 rows a pass (50.0%), each 3 times in 3 pass(es); used up" in capsys.readouterr().out
    texts = [tokenizer.decode(ids[1:length]) for b in whole for ids, length in zip(b.tokens, b.lengths, strict=True)]
    for start in (0, 8, 16):
        assert Counter(text[0] for text in texts[start : start + 8]) == {"p": 4, "r": 4}
    resumed = list(training_prompts(data, tokenizer, 4, 6, seed=1, skip=4))
    assert [batch.prompt_index.tolist() for batch in resumed] == [batch.prompt_index.tolist() for batch in whole[4:]]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(resumed, whole[4:], strict=True))
    texts_too = DataConfig.model_validate({"train": [{"path": files["text"], "max_rows": 3}], "max_tokens": 16})
    assert len(list(text_batches(texts_too, tokenizer, 3, 5, seed=1))) == 5
