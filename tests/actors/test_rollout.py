"""The group of rollout actors: rows shared out, answers in order, whatever the number of replicas."""

import asyncio

import pytest
import ray
import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.rollout import RolloutGroup
from rayrlhf.batches import Part, Prompts
from rayrlhf.errors import ModelError
from rayrlhf.roles import Early


class Anywhere:
    """A placement for tests: a name, and no resources."""

    def options(self, role, rank):
        return {"name": f"{role}-{rank}", "num_cpus": 0}


def group(folder, count, max_new_tokens=12):
    config, sampling = RolloutConfig(engine="transformers"), SamplingConfig(max_new_tokens=max_new_tokens)
    return RolloutGroup(folder, config, sampling, Anywhere(), count, deadline_s=60)


def prompts(count):
    tokens = torch.randint(0, 256, (count, 6), generator=torch.Generator().manual_seed(0))
    return Prompts(tokens, torch.arange(count) % 6 + 1, torch.arange(count))


@pytest.mark.slow
def test_the_number_of_replicas_changes_nothing(ray_local, tiny_model):
    async def sample(count, batch):
        rollout = group(tiny_model("llama"), count)
        try:
            await rollout.start(120)
            return await rollout.generate(batch, seed=3), await rollout.everyone("version")
        finally:
            rollout.stop()

    async def all_of_them():
        return [await sample(count, batch) for count, batch in ((1, prompts(7)), (2, prompts(7)), (2, prompts(1)))]

    (one, _), (two, versions), (single, _) = asyncio.run(all_of_them())
    assert versions == [0, 0]
    assert one.prompt_index.tolist() == two.prompt_index.tolist() == list(range(7))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.response_mask, two.response_mask)
    assert torch.allclose(one.sampled_logprobs, two.sampled_logprobs, atol=1e-5)
    length = int(single.lengths[0])  # fewer rows than replicas
    assert torch.equal(single.tokens[0, :length], one.tokens[0, :length])


def test_each_row_comes_early_once_also_where_a_replica_dies(ray_local, tiny_model):
    rollout, given = group(tiny_model("llama"), 2, max_new_tokens=110), []

    def put(rows):
        if not given:
            ray.kill(rollout.handles[int(rows.prompt_index[0]) // 8])
        given.append(rows)

    async def sample():
        await rollout.start(120)
        whole = await rollout.generate(prompts(16), seed=3)
        part = Part(torch.zeros(16, dtype=torch.int64), torch.arange(16) % 8 // 2 * 36 + 2)
        early = await rollout.generate(prompts(16), seed=3, part=part, early=Early(4, put))
        return whole, early

    try:
        whole, early = asyncio.run(sample())
    finally:
        rollout.stop()
    assert len(given) > 4 and sorted(torch.cat([rows.prompt_index for rows in given]).tolist()) == list(range(16))
    assert early.prompt_index.tolist() == list(range(16))
    for rows in given:
        for row, index in enumerate(rows.prompt_index.tolist()):
            end = int(rows.lengths[row])
            assert end == int(early.lengths[index])
            assert torch.equal(rows.tokens[row, :end], whole.tokens[index, :end])
    assert rollout._restarts.count == 1


def test_a_folder_without_an_end_token_is_the_users_error(ray_local, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    model.save_pretrained(tmp_path)
    rollout = group(str(tmp_path), 1)
    try:
        with pytest.raises(ModelError, match="no end token"):
            asyncio.run(rollout.start(120))
    finally:
        rollout.stop()
