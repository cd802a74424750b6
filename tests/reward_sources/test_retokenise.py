"""A reward model with another tokenizer and template: its scores are those of the text in plain transformers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.data.prompt_stream import Originals
from rayrlhf.data.templates import encode_prompt
from rayrlhf.models.causal_lm import load_tokenizer
from rayrlhf.reward_sources.model import RewardModel
from rayrlhf.reward_sources.retokenise import Retokeniser, judge
from rayrlhf.training.microbatches import pad

CHAT = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "the movie"},
    {"role": "assistant", "content": "was bad"},
    {"role": "user", "content": "and number 7"},
]
PROMPTS: list[Any] = ["number 3 the movie", CHAT, "número été"]
RESPONSES = [" was good", "good and bad", " sí"]
FINISHED = [True, True, False]


def rollouts_of(policy: Any, prompts: list[Any], responses: list[str], finished: list[bool]) -> Rollouts:
    before = [encode_prompt(policy, prompt) for prompt in prompts]
    after = [policy(text, add_special_tokens=False)["input_ids"] for text in responses]
    after = [ids + [policy.eos_token_id] * is_done for ids, is_done in zip(after, finished, strict=True)]
    tokens, lengths = pad([a + b for a, b in zip(before, after, strict=True)])
    starts, column = torch.tensor([len(ids) for ids in before]), torch.arange(tokens.shape[1])
    return Rollouts(
        tokens=tokens,
        lengths=lengths,
        response_mask=(column >= starts[:, None]) & (column < lengths[:, None]),
        sampled_logprobs=torch.zeros(tokens.shape),
        finished=torch.tensor(finished),
        prompt_index=torch.arange(len(before)),
        policy_version=torch.zeros(len(before), dtype=torch.long),
    )


def originals_of(policy: Any, prompts: list[Any]) -> Originals:
    originals = Originals()
    originals.add([encode_prompt(policy, prompt) for prompt in prompts], prompts, is_held_out=False)
    return originals


class Alone:
    """`roles.Reward` without actors."""

    def __init__(self, source: Any) -> None:
        self.source, self.seen = source, list[Rollouts]()

    async def scores(self, rollouts: Rollouts) -> Scores:
        self.seen.append(rollouts)
        return self.source.scores(rollouts)


def test_scores_are_those_of_the_text(tiny_model: Callable[[str], str], foreign_reward_folder: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_model("llama")
    policy = load_tokenizer(folder)
    role = Alone(RewardModel(foreign_reward_folder, microbatch_tokens=100))
    whole = judge(role, foreign_reward_folder, folder, originals_of(policy, PROMPTS), forward_tokens=1000)
    rollouts = rollouts_of(policy, PROMPTS, RESPONSES, FINISHED)
    scores, made = asyncio.run(whole.scores(rollouts)).total, role.seen[0]
    assert torch.equal(made.prompt_index, rollouts.prompt_index) and torch.equal(made.finished, rollouts.finished)

    tokenizer = AutoTokenizer.from_pretrained(foreign_reward_folder)
    model = AutoModelForSequenceClassification.from_pretrained(foreign_reward_folder)
    texts = [
        "<s><user>number 3 the movie\n<assistant> was good</s>",
        "<s><system>be good\n<user>the movie\n<assistant>was bad\n<user>and number 7\n<assistant>good and bad</s>",
        "<s><user>número été\n<assistant> sí",
    ]
    for row, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert made.tokens[row, : made.lengths[row]].tolist() == ids[0].tolist(), text
        start = int(made.response_mask[row].long().argmax())
        assert tokenizer.decode(ids[0, start:], skip_special_tokens=True) == RESPONSES[row]
        with torch.no_grad():
            assert float(scores[row]) == pytest.approx(float(model(ids).logits), abs=1e-5)
    assert len(set(scores.tolist())) == 3


def test_the_same_tokenizer_needs_nothing_made_anew(tiny_model: Callable[[str], str]) -> None:
    role = Alone(None)
    assert judge(role, tiny_model("llama"), tiny_model("qwen3"), Originals(), 1000) is role


def test_texts_too_long_lose_their_beginning_and_are_counted(
    tiny_model: Callable[[str], str], foreign_reward_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy, reward = load_tokenizer(tiny_model("llama")), load_tokenizer(foreign_reward_folder)
    rollouts, originals = rollouts_of(policy, PROMPTS, RESPONSES, FINISHED), originals_of(policy, PROMPTS)
    whole = Retokeniser(policy, reward, originals, 1000)(rollouts)
    limit = int(whole.lengths[0])
    with caplog.at_level(logging.WARNING):
        cut = Retokeniser(policy, reward, originals, limit)(rollouts)
    assert f"2 of 3 texts lost their beginning: with up to {int(whole.lengths.max())} tokens" in caplog.text
    assert cut.lengths.tolist() == [limit] * 3
    assert torch.equal(cut.response_mask.sum(1), whole.response_mask.sum(1))
    for row, length in enumerate(whole.lengths.tolist()):
        assert torch.equal(cut.tokens[row], whole.tokens[row, length - limit : length])


def test_a_space_before_the_response_is_kept_where_decoding_drops_it() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁the": 0, "▁film": 1, "▁ends": 2, "</s>": 3}, unk_token="</s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    policy = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    assert policy.decode([2]) == "ends"
    assert Retokeniser(policy, policy, Originals(), 10)._text([0, 1], [2]) == " ends"


def test_the_newest_batches_and_all_held_out_prompts_are_known() -> None:
    originals = Originals(num_batches=2)
    originals.add([[1], [2]], ["held", CHAT], is_held_out=True)
    for number in range(3, 6):
        originals.add([[number]], [str(number)], is_held_out=False)
    assert [originals.find([n]) for n in (1, 2, 4, 5)] == ["held", CHAT, "4", "5"]
    with pytest.raises(KeyError, match=r"no prompt of 1 tokens \[3\]"):
        originals.find([3])
