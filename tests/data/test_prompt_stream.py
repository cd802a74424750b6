"""The streams of prompts and texts that an RL run takes its batches from."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from rayrlhf.batches import Prompts, Rollouts
from rayrlhf.data.config import DataConfig
from rayrlhf.data.prompt_stream import text_batches, training_prompts
from rayrlhf.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, DataConfig]:
    rows = {
        "prompt": [{"prompt": f"question {n}"} for n in range(10)],
        "text": [{"text": "ab" * n} for n in range(1, 8)],
    }
    configs = {}
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        configs[name] = DataConfig(train=str(tmp_path / f"{name}.jsonl"), max_tokens=40)
    return configs


def test_the_samples_of_a_prompt_lie_side_by_side_with_seeds_of_their_own(files, tiny_model, ray_local) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    batches = list(training_prompts(files["prompt"], tokenizer, 12, 4, seed=0, group_size=3))  # 16 prompts: 2 epochs
    assert [len(batch) for batch in batches] == [12] * 4
    index = torch.cat([batch.prompt_index for batch in batches]).tolist()
    assert index == list(range(48)), "the number, and with it the seed, is another one for each sample"
    texts = []
    for batch in batches:
        rows = [tuple(tokens[:length].tolist()) for tokens, length in zip(batch.tokens, batch.lengths, strict=True)]
        groups = [rows[start : start + 3] for start in range(0, 12, 3)]
        assert all(len(set(group)) == 1 for group in groups)
        texts += [group[0] for group in groups]
    assert len(set(texts[:10])) == 10, "one epoch has every prompt once"
    resumed = list(training_prompts(files["prompt"], tokenizer, 12, 4, seed=0, skip=2, group_size=3))
    assert [batch.prompt_index.tolist() for batch in resumed] == [batch.prompt_index.tolist() for batch in batches[2:]]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(resumed, batches[2:], strict=True))


def test_texts_go_on_where_a_resumed_run_left_them(files, tiny_model, ray_local) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    whole = list(text_batches(files["text"], tokenizer, 3, 5, seed=1))
    assert [len(batch) for batch in whole] == [3] * 5
    for batch in whole:
        counted = batch.loss_mask.sum(1)
        assert counted.tolist() == (batch.lengths - 1).tolist(), "every token but the first, which nothing predicts"
        assert not batch.loss_mask[:, 0].any()
    resumed = itertools.islice(text_batches(files["text"], tokenizer, 3, 5, seed=1, skip=3), 2)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(resumed, whole[3:], strict=True))
    with pytest.raises(DataError, match="no text has at most max_tokens=2"):
        next(text_batches(files["text"].model_copy(update={"max_tokens": 2}), tokenizer, 3, 5, seed=1))


def test_columns_stay_with_their_prompt_and_change_no_order(tmp_path, tiny_model, ray_local) -> None:
    """Two rows have one prompt and two answers; a third has none."""
    from transformers import AutoTokenizer

    from rayrlhf.data.prompt_stream import Originals, held_out_prompts
    from rayrlhf.score_function import ALL

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    rows = [{"prompt": f"question {n // 2}", "label": n, "data_source": "s"} for n in range(8)] + [{"prompt": "no"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(path), validation=str(path), max_tokens=40)
    originals, counts = Originals(columns=("reference", "data_source")), dict[str, float]()
    plain = training_prompts(config, tokenizer, 18, 2, seed=0, group_size=2)
    seen = []
    stream = training_prompts(config, tokenizer, 18, 2, 0, group_size=2, originals=originals, counts=counts)
    for batch, same in zip(stream, plain, strict=True):
        assert torch.equal(batch.tokens, same.tokens), "the order is that of the prompts alone"
        columns = originals.columns_of(rollouts_of(batch))
        texts = tokenizer.batch_decode(batch.tokens, skip_special_tokens=True)
        assert columns["reference"][::2] == columns["reference"][1::2], "a group has one answer"
        for text, reference, source in zip(texts, columns["reference"], columns["data_source"], strict=True):
            assert (source, text) == ((None, "no") if reference is None else ("s", f"question {reference // 2}"))
        seen.append(columns["reference"])
    assert sorted(seen[0][::2], key=str) == [*range(8), None] and seen[0] != seen[1]
    assert counts["data/rows_read"] == 9
    every = Originals(columns=ALL)
    held_out = held_out_prompts(config, tokenizer, 9, every)
    columns = every.columns_of(rollouts_of(held_out))
    assert columns.keys() == {"label", "reference", "data_source"} and columns["label"] == columns["reference"]
    assert sorted(columns["reference"], key=str) == [*range(8), None]
    with pytest.raises(KeyError, match="no prompt 99"):
        every.columns_of(rollouts_of(held_out.rows([0]), first=99))


def test_one_prompt_with_two_answers_at_one_place_is_refused() -> None:
    from rayrlhf.data.prompt_stream import Originals

    originals = Originals(columns=("reference",))
    originals.add_columns([[1, 2]], ['{"reference": "a"}'], 0, is_held_out=True)
    originals.add_columns([[1, 2]], ['{"reference": "a"}'], 0, is_held_out=False)
    batch = Prompts(torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([0]))
    assert originals.columns_of(rollouts_of(batch)) == {"reference": ["a"]}
    originals.add_columns([[1, 2]], ['{"reference": "b"}'], 0, is_held_out=False)
    with pytest.raises(DataError, match="held out and trained on with different columns"):
        originals.columns_of(rollouts_of(batch))


def rollouts_of(prompts: Prompts, first: int = 0) -> Rollouts:
    """Responses of one token 7."""
    count, width = prompts.tokens.shape
    tokens = torch.nn.functional.pad(prompts.tokens, (0, 1))
    mask = torch.zeros(count, width + 1, dtype=torch.bool)
    for row, length in enumerate(prompts.lengths.tolist()):
        tokens[row, length], mask[row, length] = 7, True
    zeros, whole = torch.zeros(count, width + 1), torch.ones(count, dtype=torch.bool)
    return Rollouts(tokens, prompts.lengths + 1, mask, zeros, whole, prompts.prompt_index + first, whole.long())
