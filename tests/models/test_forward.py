"""Passes that compute nothing of padding, against plain transformers on one row at a time: the same numbers, gradients
too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrlhf.models import forward
from rayrlhf.models.causal_lm import load_causal_lm, without_dropout
from rayrlhf.models.scalar import load_scalar, sequence_scores
from rayrlhf.training.microbatches import pad

# lengths of several groups of attention: a long row, rows of like lengths, a short one
ROWS = [list(range(5, 35)), [40], [40, 41, 42], [7, 7], [50, 51, 52]]
LOSS = [[False] * 3 + [True] * 27, [False], [False, True, False], [False, False], [False, True, True]]
VOCAB, SIZE = 64, {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def build(kind: str) -> Any:
    """A tiny model of random weights."""
    import transformers

    torch.manual_seed(0)
    wide = {**SIZE, "num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 64}
    configs = {
        "llama": lambda: transformers.LlamaConfig(**wide),
        "qwen3": lambda: transformers.Qwen3Config(**wide, head_dim=32),
        "mistral": lambda: transformers.MistralConfig(**wide, sliding_window=4),
        "gemma3": lambda: transformers.Gemma3TextConfig(**wide, head_dim=32, sliding_window=4),
        "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=64),
        "gemma2": lambda: transformers.Gemma2Config(**wide, head_dim=32, sliding_window=4),
        "mamba": lambda: transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB),
        "lfm2": lambda: transformers.Lfm2Config(**wide, layer_types=["conv", "full_attention"]),
    }
    return without_dropout(transformers.AutoModelForCausalLM.from_config(configs[kind]())).eval()


def one_by_one(model: Any) -> list[Tensor]:
    """Each row's logits."""
    return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS]


LEAVE_OUT = {"llama": True, "qwen3": True, "mistral": True, "gemma3": True, "gpt2": True}
LEAVE_OUT |= {"gemma2": False, "mamba": False, "lfm2": False}


@pytest.mark.parametrize("kind", LEAVE_OUT)
def test_rows_are_what_they_are_alone(kind: str) -> None:
    model = build(kind)
    assert forward.leaves_padding_out(model) == LEAVE_OUT[kind]
    tokens, lengths = pad(ROWS)
    mask = pad(LOSS)[0].bool()
    expected = one_by_one(model)
    logits = forward.causal_logits(model, tokens, lengths)
    for row, alone in enumerate(expected):
        torch.testing.assert_close(logits[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)
        assert not logits[row, len(alone) :].any()
    alone = torch.cat(
        [row[[t - 1 for t, counts in enumerate(some) if counts]] for row, some in zip(expected, LOSS, strict=True)]
    )
    chosen = forward.chosen_logits(model, tokens, lengths, mask)
    torch.testing.assert_close(chosen, alone, atol=2e-5, rtol=1e-4)
    packed = forward.packed_logits(
        model, torch.tensor(sum(ROWS, [])), lengths, torch.tensor([counts for some in LOSS for counts in some])
    )
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
    grads = [gradients(model, chosen), gradients(model, alone)]
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-4, rtol=1e-3, msg=name)


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    """Of an uneven sum of the logits."""
    model.zero_grad()
    (logits * torch.arange(logits.numel()).view(logits.shape).sin()).sum().backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_nothing_is_computed_of_padding_and_of_tokens_that_are_not_asked_for() -> None:
    model, seen = build("llama"), {}
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, inputs: seen.update(body=inputs[0].shape))
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.update(head=output.shape))
    tokens, lengths = pad(ROWS)
    forward.chosen_logits(model, tokens, lengths, pad(LOSS)[0].bool())
    assert seen == {"body": (1, sum(map(len, ROWS)), 64), "head": (1, sum(map(sum, LOSS)), VOCAB)}
    forward.causal_logits(model, tokens, lengths)
    assert seen["head"] == (1, sum(map(len, ROWS)), VOCAB), "the head is as before again"
    assert model.config._attn_implementation == "sdpa", "and so is attention"


def test_a_row_sees_only_itself() -> None:
    model = build("llama")
    with torch.no_grad():
        before = forward.causal_logits(model, *pad(ROWS))[2, :3]
        after = forward.causal_logits(model, *pad([[9, 8], [40], [40, 41, 42], [1]]))[2, :3]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_attention_is_padded_to_twice_its_tokens_at_most() -> None:
    lengths = [3, 100, 60, 1, 49, 50, 2, 51]
    rows = forward._Rows(torch.tensor(lengths))
    assert rows.groups == [(4, 100), (1, 49), (2, 3), (1, 1)], "longest first: 100 60 51 50, 49, 3 2, 1"
    numbered = torch.arange(1.0, sum(lengths) + 1)[None, :, None]  # [H, N, D]
    groups = [group[:, 0, :, 0].tolist() for group in rows.padded(numbered)]  # [rows, longest]
    assert [round(row[0]) for group in groups for row in group] == [4, 104, 266, 214, 165, 1, 264, 164]
    assert groups[0][1][59:62] == [163, 0, 0] and groups[2][1] == [264, 265, 0]
    back = rows.flat([group.transpose(1, 2) for group in rows.padded(numbered)])
    assert back[:, 0, 0].tolist() == numbered[0, :, 0].tolist()


def test_rows_without_padding_stay_where_they_are() -> None:
    assert forward._Rows(torch.tensor([4, 4, 2, 1])).groups == [(3, 4), (1, 1)]
    assert forward._Rows(torch.tensor([4, 4]))._place is None
    assert forward._Rows(torch.tensor([4, 1, 4]))._place is not None


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_short_rows_attend_in_float32_on_cpus(kind: str, monkeypatch) -> None:
    """Up to a length, under bfloat16's autocast too; no less exact than bfloat16's own attention."""
    model, (tokens, lengths) = build(kind), pad(ROWS)
    exact = forward.causal_logits(model, tokens, lengths)
    attend, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watched(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.add((query.dtype, torch.is_autocast_enabled("cpu")))
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    far = {}
    for short in (29, 30):  # the longest row has 30
        monkeypatch.setattr(forward, "_SHORT", short)
        seen.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward.causal_logits(model, tokens, lengths)
        assert gradients(model, logits.float())
        far[short] = float((logits - exact).detach().abs().mean())
        assert {is_cast for _, is_cast in seen} == {short < 30}
    assert {dtype for dtype, _ in seen} == {torch.float32}
    assert far[29] != far[30] and max(far[30], far[29]) < 0.01 and far[30] < 1.1 * far[29]


def test_what_cannot_be_asked_for_is_refused() -> None:
    model = build("llama")
    tokens, lengths = pad(ROWS)
    for where, what in (((0, 0), "the first token of a row"), ((1, 5), "tokens of padding")):
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        mask[where] = True
        with pytest.raises(ValueError, match=what):
            forward.chosen_logits(model, tokens, lengths, mask)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_no_rows_still_run_every_module(kind: str) -> None:
    model = build(kind)
    none = forward.chosen_logits(model, *pad([]), torch.zeros((0, 1), dtype=torch.bool))
    nothing = forward.chosen_logits(model, *pad(ROWS), torch.zeros(len(ROWS), 30, dtype=torch.bool))
    for logits in (none, nothing):
        model.zero_grad()
        logits.sum().backward()
        assert logits.shape == (0, VOCAB) and all(p.grad is not None for p in model.parameters())


def test_scores(tiny_model: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    model = load_scalar(tiny_model("qwen3"))
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0, -1] for row in ROWS]
        expected = model.score(torch.stack(hidden))[:, 0]
        torch.testing.assert_close(sequence_scores(model, *pad(ROWS)), expected, atol=1e-6, rtol=1e-5)
    none = sequence_scores(model, *pad([]))
    none.sum().backward()
    assert none.shape == (0,) and all(p.grad is not None for p in model.parameters()), "collectives still run"


def test_a_saved_model_is_saved_with_its_own_attention(tiny_model: Callable[[str], str]) -> None:
    model = load_causal_lm(tiny_model("llama"))
    forward.causal_logits(model, *pad(ROWS))
    assert "rayrlhf" not in model.config.to_json_string()
