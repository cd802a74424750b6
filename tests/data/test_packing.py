"""Packing: pieces and bins by hand, the same rows whatever the blocks, the loss of single texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrlhf.data import packing
from rayrlhf.data.config import DataConfig, PackingConfig
from rayrlhf.data.token_rows import token_rows

TEXTS = [[100 + n, *range(n % 7), 2] for n in range(40)] + [[1, *range(3, 30), 2]]


def encoded_rows(texts: list[list[int]] = TEXTS) -> list[dict[str, Any]]:
    return [{"input_ids": text, "loss_mask": [False] + [True] * (len(text) - 1)} for text in texts]


def test_pieces_by_hand() -> None:
    assert packing.pieces(4, 4, 0) == [(0, 4)]
    assert packing.pieces(10, 4, 0) == [(0, 4), (4, 8), (8, 10)]
    assert packing.pieces(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert packing.pieces(11, 4, 1) == [(0, 4), (3, 7), (6, 10), (9, 11)]
    assert packing.pieces(9, 4, 3) == [(0, 4), (1, 5), (2, 6), (3, 7), (4, 8), (5, 9)]


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_every_token_counts_once(overlap: int) -> None:
    import pyarrow as pa

    batch = pa.Table.from_pylist(encoded_rows([list(range(23)), [50, 51]]))
    rows = packing._cut(batch, length=6, overlap=overlap).to_pylist()
    counted = [t for row in rows for t, counts in zip(row["input_ids"], row["loss_mask"], strict=True) if counts]
    # without an overlap nothing predicts the first token of a piece
    lost = {0, 50} | ({6, 12, 18} if overlap == 0 else set())
    assert Counter(counted) == Counter(t for t in [*range(23), 50, 51] if t not in lost)
    assert all(len(row["input_ids"]) == len(row["loss_mask"]) <= 6 for row in rows)


def test_best_fit_by_hand() -> None:
    # 7; 6; 4 goes beside 6 (no room beside 7); 3 beside 7; 2 and 1 open one more
    assert packing.best_fit([3, 7, 1, 4, 2, 6], 10) == [[1, 0], [5, 3], [4, 2]]
    # first fit would put 2 beside 6, best fit puts it beside 7, which it fills further
    assert packing.best_fit([6, 7, 2], 10) == [[1, 2], [0]]
    assert packing.best_fit([], 5) == []
    with pytest.raises(ValueError, match="6 tokens does not fit a row of 5"):
        packing.best_fit([6], 5)


def test_best_fit_against_a_slow_loop() -> None:
    sizes = random.Random(0).choices(range(1, 65), k=300)
    bins: list[list[int]] = []
    for number in sorted(range(300), key=lambda n: (-sizes[n], n)):
        room = [(64 - sum(sizes[n] for n in some), which) for which, some in enumerate(bins)]
        fitting = [one for one in room if one[0] >= sizes[number]]
        if fitting:
            bins[min(fitting)[1]].append(number)
        else:
            bins.append([number])
    assert packing.best_fit(sizes, 64) == bins
    assert len(bins) <= -(-sum(sizes) // 64) * 1.03, "nearly as few as can be"


def test_the_same_rows_whatever_the_blocks(ray_local: None) -> None:
    from ray import data

    found = []
    for rows, blocks, buffer in ((encoded_rows(), 1, 1000), (encoded_rows()[::-1], 5, 1000), (encoded_rows(), 3, 3)):
        config = PackingConfig(overlap=2, buffer=buffer)
        ds = packing.packed(data.from_items(rows, override_num_blocks=blocks), 10, config).materialize()
        found.append(sorted(ds.take_all(), key=repr))
        num_pieces, num_tokens = (sum(len(row[name]) for row in found[-1]) for name in ("lengths", "input_ids"))
        assert packing.fill(ds, 10) == (num_pieces, num_tokens, num_tokens / (10 * len(found[-1])))
    assert found[0] == found[1]
    assert len(found[2]) > len(found[0]), "the fewer are packed together, the worse they fit"
    whole = Counter(tuple(text) for text in TEXTS[:40])
    for rows in found:
        pieces, num_counted = Counter[tuple[int, ...]](), 0
        for row in rows:
            assert sum(row["lengths"]) == len(row["input_ids"]) == len(row["loss_mask"]) <= 10
            start = 0
            for length in row["lengths"]:
                pieces[tuple(row["input_ids"][start : start + length])] += 1
                start += length
            num_counted += sum(row["loss_mask"])
        assert all(pieces[text] == count for text, count in whole.items()), "short texts stay whole"
        assert num_counted == sum(len(text) - 1 for text in TEXTS), "every token but the texts' first, once"


def test_packing_of_files_and_of_nothing(ray_local: None, tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from ray import data

    from rayrlhf.models.causal_lm import load_tokenizer

    (tmp_path / "a.txt").write_text("a\nbb\n" + "c" * 30 + "\n")
    config = DataConfig(train=str(tmp_path / "a.txt"), max_tokens=16, packing=PackingConfig())
    rows = token_rows(config.sources[0], "text", config, load_tokenizer(tiny_model("llama")))
    # 3 and 4 tokens, and 32 in two pieces of 16
    assert sorted(row["lengths"] for row in rows.take_all()) == [[4, 3], [16], [16]]
    assert packing.packed(data.from_items(encoded_rows()).limit(0), 9, PackingConfig()).count() == 0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_loss_and_gradients_of_packed_rows_are_those_of_their_texts(
    kind: str, tiny_model: Callable[[str], str]
) -> None:
    import pyarrow as pa

    from rayrlhf.models.causal_lm import load_causal_lm
    from rayrlhf.training.losses import CausalLoss

    texts = [text for text in TEXTS if len(text) > 2]
    single = encoded_rows(texts)
    rows = packing._packed_window(pa.Table.from_pylist([row | {"_window": 0} for row in single]), length=32).to_pylist()
    assert len(rows) < len(single) / 3 and max(len(row["lengths"]) for row in rows) > 2
    loss, found = CausalLoss(), []
    for some in (single, rows):
        model = load_causal_lm(tiny_model(kind)).eval()
        count = loss.count(some)
        parts = [loss.shares(model, part, count, torch.device("cpu"))["loss"] for part in (some[:3], some[3:], [])]
        sum(parts).backward()  # type: ignore[union-attr]
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((count, sum(float(part.detach()) for part in parts), gradients))
    (count, value, one), (packed_count, packed_value, other) = found
    assert packed_count == count and packed_value == pytest.approx(value, abs=1e-5)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
