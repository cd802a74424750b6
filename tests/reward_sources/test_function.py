"""A reward function gets texts, and the columns of the prompts' rows that it asks for."""

import torch
from transformers import AutoTokenizer

from rayrlhf.batches import Rollouts
from rayrlhf.reward_sources.function import FunctionReward


def test_columns_reach_the_function_or_its_default(tiny_model, tmp_path, monkeypatch) -> None:
    (tmp_path / "rewardfunctions.py").write_text(
        "def known(prompts, responses, reference, source=('default',)):\n"
        "    return [10 * (r == a) + len(source) for r, a in zip(responses, reference)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("qa", "qb")]
    mask, whole = torch.tensor([[False, True]] * 2), torch.ones(2, dtype=torch.bool)
    lengths, zeros = torch.tensor([2, 2]), torch.zeros(2, 2)
    rollouts = Rollouts(torch.tensor(ids), lengths, mask, zeros, whole, torch.arange(2), whole.long())
    reward = FunctionReward("rewardfunctions:known", tiny_model("llama"))
    for columns, scores in (
        ({"reference": ["a", "x"], "source": [None, None]}, [11, 1]),
        ({"reference": ["a", "b"], "source": ["s", None]}, [12, 12]),
        ({"reference": [None, None]}, [1, 1]),
    ):
        assert reward.scores(rollouts, columns).total.tolist() == scores
