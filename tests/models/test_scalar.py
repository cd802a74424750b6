"""Reward model and critic: a scalar head on every position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rayrlhf.errors import ModelError
from rayrlhf.models import causal_lm, scalar
from rayrlhf.training.microbatches import pad

ROWS = [[5, 6, 7, 8, 9, 10], [40, 41, 42]]
TOKENS = torch.tensor([ROWS[0], ROWS[1] + [9, 9, 9]])
LENGTHS = torch.tensor([6, 3])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_saved_scores_are_those_of_plain_transformers(
    kind: str, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = scalar.load_scalar(tiny_model(kind)).eval()
    torch.nn.init.normal_(model.score.weight)  # so that a wrong position shows
    with torch.no_grad():
        scores = scalar.sequence_scores(model, TOKENS, LENGTHS)
    causal_lm.save(model, causal_lm.load_tokenizer(tiny_model(kind)), str(tmp_path))

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    padded = TOKENS.clone()
    padded[1, 3:] = plain.config.pad_token_id
    with torch.no_grad():
        theirs = plain(input_ids=padded, attention_mask=(torch.arange(6) < LENGTHS[:, None]).long())
        again = scalar.sequence_scores(scalar.load_scalar(str(tmp_path)), TOKENS, LENGTHS)
    torch.testing.assert_close(scores, theirs.logits[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(again, scores, atol=1e-6, rtol=1e-6)


def without_pad(folder: str, out: Path, start: str) -> str:
    """The model of `folder` with a tokenizer that has no pad token, its bytes ending with `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *{"</s>": 0, start: 1}]
    backend = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=start, eos_token="</s>")
    model = causal_lm.load_causal_lm(folder)
    model.resize_token_embeddings(len(bare), mean_resizing=False)
    model.config.pad_token_id = None
    model.save_pretrained(out)
    bare.save_pretrained(out)
    return str(out)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("start", ["<s>", "</s>"])
def test_an_end_token_is_scored_where_there_is_no_pad_token(
    kind: str, start: str, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = without_pad(tiny_model(kind), tmp_path / "bare", start)
    model, tokenizer = scalar.load_scalar(folder).eval(), causal_lm.load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    torch.nn.init.normal_(model.score.weight)
    causal_lm.save(model, tokenizer, str(tmp_path / "saved"))
    texts = ["a longer text</s>", "one</s>"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    with torch.no_grad():
        ours = scalar.sequence_scores(model, *pad(rows))
    plain, theirs = (
        kind.from_pretrained(tmp_path / "saved") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    batch = theirs(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits[:, 0], ours, atol=1e-5, rtol=0)
        for row, score in zip(rows, ours, strict=True):
            assert float(plain(torch.tensor([row])).logits) == pytest.approx(float(score), abs=1e-5)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id, "the caller's own stays as it is"
    again = scalar.load_scalar(str(tmp_path / "saved"))
    assert again.get_input_embeddings().num_embeddings == plain.get_input_embeddings().num_embeddings


def test_each_position_scores_its_prefix(tiny_model: Callable[[str], str]) -> None:
    model = scalar.load_scalar(tiny_model("llama")).eval()
    with torch.no_grad():
        scores = scalar.position_scores(model, TOKENS, LENGTHS)
        for row, ids in enumerate(ROWS):
            for end in range(1, len(ids) + 1):
                prefix = scalar.sequence_scores(model, torch.tensor([ids[:end]]), torch.tensor([end]))
                assert float(scores[row, end - 1]) == pytest.approx(float(prefix), abs=1e-6)
    assert scores[1, 3:].tolist() == [0.0] * 3
    assert scores.dtype == torch.float32


def test_a_fresh_head_is_small_and_follows_the_seed(tiny_model: Callable[[str], str]) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(scalar.load_scalar(tiny_model("gpt2")).score.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.005 < float(heads[0].std()) < 0.02


def test_the_body_is_the_causal_lms(tiny_model: Callable[[str], str]) -> None:
    folder = tiny_model("qwen3")
    body, lm = scalar.load_scalar(folder).model, causal_lm.load_causal_lm(folder).model
    assert all(torch.equal(a, b) for a, b in zip(body.parameters(), lm.parameters(), strict=True))


def test_no_rows(tiny_model: Callable[[str], str]) -> None:
    model = scalar.load_scalar(tiny_model("llama"))
    none = torch.zeros(0, dtype=torch.long)
    scores = scalar.sequence_scores(model, torch.zeros((0, 1), dtype=torch.long), none)
    assert scores.shape == (0,)
    scores.sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == dict(model.named_parameters()).keys()


def test_a_classifier_of_many_labels_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model("llama")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    causal_lm.load_tokenizer(folder).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="3 labels"):
        scalar.load_scalar(str(tmp_path))


def test_under_autocast_the_head_stays_in_float32(tiny_model: Callable[[str], str]) -> None:
    """bfloat16 has 8 bits: scores around 100 would be 0.5 apart."""
    model = scalar.load_scalar(tiny_model("llama")).eval()
    model.score.weight.data.mul_(1e4)
    tokens, lengths = torch.randint(3, 250, (64, 12)), torch.full((64,), 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scalar.sequence_scores(model, tokens, lengths)
    assert scores.dtype == torch.float32
    assert not scores.equal(scores.bfloat16().float()), "none of them has more than 8 bits"
