"""The streams of prompts and texts that an RL run takes its batches from."""

import itertools
import json
from pathlib import Path

import pytest
import torch

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
