"""The two engines: what they sample, what they say of it, and weights replaced while they run.

vLLM changes the process it lives in (threads, memory, torch.distributed), so each engine is in an
actor, as in production.
"""

import itertools
import os

import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.config import EvaluationSamplingConfig, RolloutConfig, SamplingConfig, check_lengths
from actors.engines.base import end_tokens, row_seed
from actors.engines.transformers import draw
from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.errors import ConfigError, DataError, RoleError
from rayrlhf.models.digest import tensor_digest
from rayrlhf.partial_rollouts import cut_rows, joined, next_parts
from tests.conftest import byte_tokenizer

KINDS = (
    "qwen3",
    pytest.param("gpt2", marks=pytest.mark.slow),
    "llama",
)  # qwen3 ties its embeddings; the tests after need llama
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=48)
TOLERANCE = 1e-4


@ray.remote(num_cpus=0)
class Host:
    def start(self, folder, config):
        from actors.engines.base import build

        self.engine = build(folder, config)

    def generate(self, *args):
        return self.engine.generate(*args)

    def stream(self, *args):
        return list(self.engine.stream(*args))

    def load(self, version, buckets):
        return self.engine.load_weights(version, buckets)

    def threads(self):
        return torch.get_num_threads()


@pytest.fixture(scope="module")
def host(ray_local, tiny_model):
    """`host(engine, kind)`: an actor with that engine; each engine's last one is kept for the next test."""
    running = {}

    def get(engine, kind, **config):
        what, actor = running.get(engine, (None, None))
        if what != (kind, config):
            if actor:
                ray.kill(actor)
            actor = Host.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}}).remote()
            running[engine] = (kind, config), actor
            settings = RolloutConfig(engine=engine, kv_cache_gib=0.25, **config)
            ray.get(actor.start.remote(tiny_model(kind), settings))
        return actor

    yield get
    for _, actor in running.values():
        ray.kill(actor)


def prompts(count, longest=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 256, (count, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    return Prompts(tokens, lengths, torch.arange(100, 100 + count))


def other_model(folder, seed):
    """A model of the same architecture with other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()


def largest_gap(model, rollouts, temperature):
    """max |log-probability the engine gave while sampling - the model's|, one plain forward a row."""
    gaps = []
    for row in range(len(rollouts)):
        tokens = rollouts.tokens[row, : rollouts.lengths[row]]
        with torch.no_grad():
            logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits / temperature, -1)
        mask = rollouts.response_mask[row, : len(tokens)]
        expected = torch.stack([logprobs[t - 1, tokens[t]] for t in mask.nonzero()[:, 0].tolist()])
        gaps.append((expected - rollouts.sampled_logprobs[row, : len(tokens)][mask]).abs().max())
    return max(gaps).item()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_rows_that_end_first_come_first_and_are_those_of_the_whole(host, engine):
    actor, part = host(engine, "llama"), Part(torch.zeros(24, dtype=torch.int64), torch.arange(24) % 6 * 8 + 2)
    whole = ray.get(actor.generate.remote(prompts(24), SAMPLING, 1, part))
    found = ray.get(actor.stream.remote(prompts(24), SAMPLING, 1, part, 3))
    assert 2 <= len(found) <= 3 and all(len(some) >= 8 for some in found[:-1])
    lengths = [some.response_mask.sum(1) for some in found]
    assert all(before.max() <= after.min() for before, after in itertools.pairwise(lengths))
    assert all(some.prompt_index.diff().gt(0).all() for some in found), "in row order"
    joined = Rollouts.concat(found)
    joined = joined.rows(joined.prompt_index.argsort())
    for name in Rollouts.SHAPES:
        if name == "sampled_logprobs":
            assert torch.allclose(joined.sampled_logprobs, whole.sampled_logprobs, atol=1e-5)
        else:
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_sampled_logprobs_follow_the_weights(host, tiny_model, engine, kind):
    actor, old = host(engine, kind), AutoModelForCausalLM.from_pretrained(tiny_model(kind)).eval()
    before = ray.get(actor.generate.remote(prompts(24), SAMPLING, 1))
    assert largest_gap(old, before, 0.7) < TOLERANCE
    assert before.policy_version.tolist() == [0] * 24

    new = other_model(tiny_model(kind), seed=5)
    # a missed publish: the engine samples from the old weights, and it must show
    assert largest_gap(new, before, 0.7) > 0.1
    weights = {name: tensor.detach() for name, tensor in new.named_parameters()}
    names = list(weights)
    half = len(names) // 2
    buckets = [{n: weights[n] for n in names[:half]}, {n: weights[n] for n in names[half:]}]
    for version, sent in ((7, buckets), (8, buckets[::-1])):  # a second reload goes over what the first one left
        digests = ray.get(actor.load.remote(version, sent))
        assert digests == {name: tensor_digest(tensor) for name, tensor in weights.items()}
        after = ray.get(actor.generate.remote(prompts(24), SAMPLING, version))
        assert largest_gap(new, after, 0.7) < TOLERANCE
        assert after.policy_version.tolist() == [version] * 24

    back = {name: tensor.detach() for name, tensor in old.named_parameters()}
    ray.get(actor.load.remote(9, [back]))
    again = ray.get(actor.generate.remote(prompts(24), SAMPLING, 1))
    assert torch.equal(again.tokens, before.tokens)  # same weights, same seed, same responses


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_parts_of_a_response_are_its_whole(host, engine):
    """The most probable tokens, with other limits row by row; sampled, each part has randomness of its own."""
    actor, asked = host(engine, "llama"), prompts(8)
    greedy = EvaluationSamplingConfig(max_new_tokens=9, greedy=True)
    whole = ray.get(actor.generate.remote(asked, greedy, 1))
    limit = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    first = ray.get(actor.generate.remote(asked, greedy, 1, Part(torch.zeros_like(limit), limit)))
    assert all(first.response_mask.sum(1) <= limit)
    rows = cut_rows(first, 9)
    assert len(rows) > 4, "most go on"
    both = joined(first, rows, ray.get(actor.generate.remote(*again(first, rows, 9, greedy))))
    assert torch.equal(both.tokens, whole.tokens) and torch.equal(both.response_mask, whole.response_mask)
    assert torch.equal(both.finished, whole.finished)
    assert (both.sampled_logprobs - whole.sampled_logprobs).abs().max() < TOLERANCE

    free = SamplingConfig(max_new_tokens=9)
    begun = ray.get(actor.generate.remote(asked, free, 1, Part.of_all(8, 4)))
    rows = cut_rows(begun, 9)
    later = [ray.get(actor.generate.remote(*again(begun, rows, 9, free))) for _ in range(2)]
    assert torch.equal(later[0].tokens, later[1].tokens), "the seed and what is there fix them"
    rest = next_parts(begun, rows, 9, 9)[0]
    as_new = ray.get(actor.generate.remote(rest, free, 1, Part.of_all(len(rows), 5)))
    assert not torch.equal(later[0].tokens, as_new.tokens), "other randomness than the first part's"


def again(begun, rows, longest, sampling):
    """Arguments of `generate` for the rest of those rows."""
    rest, part = next_parts(begun, rows, longest, longest)
    return rest, sampling, 1, part


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(host, engine):
    """One token a byte: where the two letters first stand in the free response is where the stopped one ends."""
    actor = host(engine, "llama")
    free = ray.get(actor.generate.remote(prompts(24), SAMPLING, 1))
    starts = (free.lengths - free.response_mask.sum(1)).tolist()
    rows = [free.tokens[row, start : free.lengths[row]].tolist() for row, start in enumerate(starts)]
    letters = byte_tokenizer().convert_ids_to_tokens(range(256))
    plain = {token for token, letter in enumerate(letters) if letter.isascii() and letter.isalnum()}
    pairs = [pair for row in rows for pair in zip(row[4:-4], row[5:-4], strict=False) if plain.issuperset(pair)]
    pair = max(pairs, key=lambda pair: sum(pair in zip(row, row[1:], strict=False) for row in rows))
    stop = "".join(letters[token] for token in pair)
    sampling = SAMPLING.model_copy(update={"stop_strings": (stop, "no model writes this")})
    cut = ray.get(actor.generate.remote(prompts(24), sampling, 1))
    num_cut = 0
    for row, tokens in enumerate(rows):
        at = [place for place in range(1, len(tokens)) if (tokens[place - 1], tokens[place]) == pair]
        expected = tokens[: at[0] + 1] if at else tokens
        assert cut.tokens[row, starts[row] : cut.lengths[row]].tolist() == expected
        assert bool(cut.finished[row]) == (bool(at) or bool(free.finished[row]))
        assert cut.sampled_logprobs[row, starts[row] : cut.lengths[row]].count_nonzero() == len(expected)
        num_cut += bool(at)
    assert 0 < num_cut < len(rows)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_greedy_takes_the_most_probable_token(host, tiny_model, engine):
    actor, model = host(engine, "llama"), AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    greedy = EvaluationSamplingConfig(greedy=True, max_new_tokens=6)
    rollouts = ray.get(actor.generate.remote(prompts(4), greedy, 1))
    for row in range(4):
        tokens = rollouts.tokens[row, : rollouts.lengths[row]]
        with torch.no_grad():
            best = model(input_ids=tokens[None]).logits[0].argmax(-1)
        for t in rollouts.response_mask[row].nonzero()[:, 0].tolist():
            assert int(tokens[t]) == int(best[t - 1])


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_row_is_sampled_alike_in_any_company(host, engine):
    actor, batch = host(engine, "llama"), prompts(16)
    whole = ray.get(actor.generate.remote(batch, SAMPLING, 3))
    part = ray.get(actor.generate.remote(batch.rows(torch.tensor([12, 5])), SAMPLING, 3))
    for row, same in ((12, 0), (5, 1)):
        length = int(part.lengths[same])
        assert length == int(whole.lengths[row])
        assert torch.equal(whole.tokens[row, :length], part.tokens[same, :length])
    other = ray.get(actor.generate.remote(batch, SAMPLING, 4))
    assert not torch.equal(other.tokens[:, :12], whole.tokens[:, :12])


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_more_prompts_than_one_step_of_vllm_reads(host, engine):
    """4,480 tokens of prompts where a step reads 4,096: the 59th would be read in two steps."""
    generator = torch.Generator().manual_seed(0)
    tokens, lengths = torch.randint(0, 256, (64, 70), generator=generator), torch.full((64,), 70)
    batch, sampling = Prompts(tokens, lengths, torch.arange(64)), SamplingConfig(max_new_tokens=6)
    actor = host(engine, "llama")
    whole = ray.get(actor.generate.remote(batch, sampling, 3))
    last = ray.get(actor.generate.remote(batch.rows(torch.arange(56, 64)), sampling, 3))
    width = last.tokens.shape[1]
    assert torch.equal(last.lengths, whole.lengths[56:]) and torch.equal(last.tokens, whole.tokens[56:, :width])


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_responses_end_with_their_end_token_or_at_the_limit(host, tiny_model, engine):
    (end,) = end_tokens(tiny_model("llama"))
    batch = prompts(96)
    rollouts = ray.get(host(engine, "llama").generate.remote(batch, SAMPLING, 0))
    assert 0 < rollouts.finished.sum() < 96  # random weights: some end, most do not
    assert rollouts.tokens.shape[1] == rollouts.lengths.max()
    for row in range(96):
        start, length = int(batch.lengths[row]), int(rollouts.lengths[row])
        response = rollouts.tokens[row, start:length].tolist()
        assert rollouts.tokens[row, :start].tolist() == batch.tokens[row, :start].tolist()
        assert rollouts.response_mask[row].nonzero()[:, 0].tolist() == list(range(start, length))
        assert rollouts.sampled_logprobs[row, ~rollouts.response_mask[row]].eq(0).all()
        assert end not in response[:-1]
        if rollouts.finished[row]:
            assert response[-1] == end
        else:
            assert response[-1] != end
            assert len(response) == SAMPLING.max_new_tokens


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_tokens_are_drawn_with_the_probabilities_of_the_temperature(host, tiny_model, engine):
    count, temperature = 4000, 0.5
    one = Prompts(torch.full((count, 1), 65), torch.ones(count, dtype=torch.int64), torch.arange(count))
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=1)
    weights = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    ray.get(host(engine, "llama").load.remote(1, [{n: p.detach() for n, p in weights.named_parameters()}]))
    tokens = ray.get(host(engine, "llama").generate.remote(one, sampling, 11)).tokens[:, 1]
    with torch.no_grad():
        expected = torch.softmax(weights(torch.tensor([[65]])).logits[0, 0] / temperature, -1)
    found = torch.bincount(tokens, minlength=len(expected)) / count
    error = (found - expected).abs()
    assert (error < 5 * (expected * (1 - expected) / count).sqrt() + 1 / count).all()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_weights_that_lack_a_parameter_are_refused_by_name(host, tiny_model, engine):
    weights = dict(other_model(tiny_model("llama"), 1).named_parameters())
    weights = {name: tensor.detach() for name, tensor in weights.items() if name != "model.norm.weight"}
    with pytest.raises(RoleError, match=r"first model\.norm\.weight"):
        ray.get(host(engine, "llama").load.remote(2, [weights]))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_threads_are_the_layouts(host, engine):
    assert ray.get(host(engine, "llama").threads.remote()) == 2


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_lengths_are_checked_before_sampling(host, engine):
    actor = host(engine, "llama", max_model_len=16)
    with pytest.raises(ConfigError, match="context is 16"):
        ray.get(actor.generate.remote(prompts(4), SAMPLING, 0))
    nothing = Prompts(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]), torch.tensor([42]))
    with pytest.raises(DataError, match="prompt 42 has no tokens"):
        ray.get(actor.generate.remote(nothing, SAMPLING, 0))
    fitting = SamplingConfig(max_new_tokens=8)
    assert ray.get(actor.generate.remote(prompts(4), fitting, 0)).tokens.shape[1] <= 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tensor_parallel_engine_takes_the_same_weights(host, tiny_model, kind):
    """Two workers, each with its part of every matrix."""
    actor = host("vllm", kind, tensor_parallel=2)
    new = other_model(tiny_model(kind), seed=5)
    weights = {name: tensor.detach() for name, tensor in new.named_parameters()}
    assert set(ray.get(actor.load.remote(1, [weights]))) == set(weights)
    assert largest_gap(new, ray.get(actor.generate.remote(prompts(24), SAMPLING, 2)), 0.7) < TOLERANCE


def test_draw_inverts_the_cumulative_distribution():
    distribution = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25]]).log().repeat(6, 1)
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(distribution, uniform).tolist() == [1, 1, 3, 3, 4, 4]


def test_row_seed_depends_on_both_numbers_and_fits_63_bits():
    seeds = {row_seed(seed, index) for seed in range(30) for index in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(1, 23) != row_seed(12, 3)


def test_check_lengths_names_the_way_out():
    check_lengths(80, 48, 128)
    with pytest.raises(ConfigError, match="prompt of 81 tokens.*make 129.*context is 128.*at most 47"):
        check_lengths(81, 48, 128)
    with pytest.raises(ConfigError, match="at most 47, shorten the prompts to 80 tokens, or take"):
        check_lengths(81, 48, 128)
    with pytest.raises(ConfigError, match="context is 128; set x.max to at most 80, or take"):
        check_lengths(130, 48, 128, "x.max")


def test_nothing_that_changes_the_distribution_can_be_set():
    assert set(SamplingConfig.model_fields) == {"temperature", "max_new_tokens", "stop_strings"}
    with pytest.raises(ValueError, match="top_p"):
        SamplingConfig.model_validate({"top_p": 0.9})
    with pytest.raises(ValueError, match="temperature"):
        SamplingConfig(temperature=0)


def test_end_tokens_are_the_tokenizers_and_the_generation_configs(tiny_model, tmp_path):
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (own,) = end_tokens(str(folder))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, own]}))
    assert end_tokens(str(folder)) == sorted([7, own])
    os.remove(folder / "generation_config.json")
    assert end_tokens(str(folder)) == [own]


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_responses_end_where_the_chat_template_ends_an_answer(engine, tiny_model, tmp_path, request):
    """Its token, here "!", is not the tokenizer's end token."""
    import shutil

    from transformers import AutoTokenizer

    from actors.engines.base import build

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "!")
    tokenizer.save_pretrained(folder)
    mark, batch = tokenizer.convert_tokens_to_ids("!"), prompts(96)
    config = RolloutConfig(engine=engine, kv_cache_gib=0.25)
    if engine == "vllm":
        request.getfixturevalue("ray_local")
        host = Host.remote()
        ray.get(host.start.remote(str(folder), config))
        rollouts = ray.get(host.generate.remote(batch, SAMPLING, 0))
        ray.kill(host)
    else:
        rollouts = build(str(folder), config).generate(batch, SAMPLING, 0)
    ends = []
    for row in range(96):
        response = rollouts.tokens[row, int(batch.lengths[row]) : int(rollouts.lengths[row])].tolist()
        assert mark not in response[:-1]
        assert bool(rollouts.finished[row]) == (response[-1] in (mark, tokenizer.eos_token_id))
        ends.append(response[-1])
    assert ends.count(mark) >= 3
