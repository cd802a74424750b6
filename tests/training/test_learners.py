"""The learners in this process (one rank) against plain torch, written out slowly."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayrlhf.batches import CriticBatch
from rayrlhf.data.config import DataConfig
from rayrlhf.errors import DivergenceError, ModelError
from rayrlhf.models import precision
from rayrlhf.models.causal_lm import stop_strings
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig, GuardConfig
from rayrlhf.training.critic_learner import CriticLearner, explained_variance
from rayrlhf.training.learner import OptimizerStep
from rayrlhf.training.passes import minibatches
from rayrlhf.training.policy_learner import PolicyLearner
from rayrlhf.training.ppo_config import CriticUpdateConfig, PolicyUpdateConfig, PretrainingMixConfig
from tests.training.experience import TEXTS, critic_batch, free_port, policy_batch, random_rollouts

TEMPERATURE = 0.7
SGD = EngineConfig(optimizer="sgd", lr=0.1, min_lr_ratio=1.0, grad_clip=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_rank():
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())


def make_policy(folder, normaliser="tokens", normaliser_constant=None, **config):
    config = PolicyUpdateConfig(**{"engine": SGD, "minibatch": 4, "epochs": 2, **config})
    return PolicyLearner(
        folder,
        config,
        TEMPERATURE,
        total_steps=10,
        seed=3,
        normaliser=normaliser,
        normaliser_constant=normaliser_constant,
    )


def make_critic(folder, **config):
    config = CriticUpdateConfig(**{"engine": SGD, "minibatch": 4, "epochs": 2, **config})
    return CriticLearner(folder, config, total_steps=10, seed=3)


def weights(learner):
    return {name: p.detach().clone() for name, p in learner.engine.module.named_parameters()}


def numbers(metrics):
    """Without what a clock measured."""
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


def slow_logprobs(model, rollouts):
    """One row at a time, without padding; token t from the logits at t - 1."""
    out = torch.zeros(rollouts.tokens.shape)
    for row, length in enumerate(rollouts.lengths.tolist()):
        tokens = rollouts.tokens[row, :length]
        table = (model(input_ids=tokens[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        for t in range(1, length):
            if rollouts.response_mask[row, t]:
                out[row, t] = table[t - 1, tokens[t]]
    return out


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_logprobs_equal_a_row_by_row_loop(tiny_model, kind):
    rollouts = random_rollouts()
    learner = make_policy(tiny_model(kind), forward_tokens=40)  # several passes
    with torch.no_grad():
        expected = slow_logprobs(AutoModelForCausalLM.from_pretrained(tiny_model(kind)).eval(), rollouts)
    got = learner.logprobs(rollouts)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not got[~rollouts.response_mask].any()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_first_ratio_is_one_though_the_passes_are_split_otherwise(tiny_model, kind):
    rollouts = random_rollouts()
    learner = make_policy(tiny_model(kind), forward_tokens=200, microbatch_tokens=40)
    old = learner.logprobs(rollouts)
    metrics = learner.update(policy_batch(rollouts, old), step=1)
    assert metrics["policy/first_ratio_max_dev"] < 1e-5
    assert metrics["policy/approxkl_avg"] > 0  # later minibatches did move
    wrong = torch.where(rollouts.response_mask, learner.logprobs(rollouts) - 0.1, 0.0)
    metrics = learner.update(policy_batch(rollouts, wrong), step=2)
    assert metrics["policy/first_ratio_max_dev"] == pytest.approx(0.10517, abs=1e-4)  # exp(0.1) - 1


def test_one_policy_step_equals_plain_sgd_on_the_whole_minibatch(tiny_model):
    folder, rollouts = tiny_model("llama"), random_rollouts()
    learner = make_policy(
        folder,
        epochs=1,
        minibatch=7,
        microbatch_tokens=40,
        entropy={"coefficient": 0.05},
        clip_low=0.1,
        clip_high=0.3,
    )
    old = learner.logprobs(rollouts)
    shift = 0.4 * torch.sin(torch.arange(old.numel())).view_as(old)  # ratios on both sides of both clips
    old = torch.where(rollouts.response_mask, old + shift, 0.0)
    batch = policy_batch(rollouts, old)
    metrics = learner.update(batch, step=1)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    mask, total = rollouts.response_mask, rollouts.response_mask.sum()
    ratio = (slow_logprobs(model, rollouts) - old)[mask].exp()
    advantages = batch.advantages[mask]
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.9, 1.3)).sum() / total
    entropy = torch.zeros(())
    for row, length in enumerate(rollouts.lengths.tolist()):
        logits = model(input_ids=rollouts.tokens[row : row + 1, :length]).logits[0] / TEMPERATURE
        for t in range(1, length):
            if mask[row, t]:
                entropy = entropy + torch.distributions.Categorical(logits=logits[t - 1]).entropy() / total
    (loss - 0.05 * entropy).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}

    assert largest_difference(weights(learner), expected) < 1e-6
    assert metrics["loss/policy_avg"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["objective/entropy"] == pytest.approx(entropy.item(), abs=1e-4)
    assert metrics["val/ratio"] == pytest.approx(ratio.mean().item(), abs=1e-4)
    assert metrics["policy/approxkl_avg"] == pytest.approx((0.5 * ratio.log() ** 2).mean().item(), abs=1e-4)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert metrics["optim/policy_grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["optim/policy_lr"] == 0.1


def test_every_term_of_the_loss_equals_plain_sgd(tiny_model):
    """Sequence means, truncated importance weights, dual clip, a KL in the loss and PPO-ptx, all at once."""
    folder, rollouts = tiny_model("llama"), random_rollouts()
    mask, lengths = rollouts.response_mask, rollouts.response_mask.sum(1)
    data = DataConfig(train="unused.jsonl")
    learner = make_policy(
        folder,
        epochs=1,
        minibatch=7,
        microbatch_tokens=40,
        importance_cap=1.3,
        dual_clip=1.5,
        pretraining=PretrainingMixConfig(data=data, coefficient=0.5),
        normaliser="sequence_mean",
    )
    now = learner.logprobs(rollouts)
    wave = torch.sin(torch.arange(now.numel())).view_as(now)
    old = torch.where(mask, now + 0.6 * wave, 0.0)
    batch = replace(
        policy_batch(rollouts, old),
        ref_logprobs=torch.where(mask, now - 0.3 * wave, 0.0),
        sampled_logprobs=torch.where(mask, old + 0.4 * wave.flip(0), 0.0),
    )
    metrics = learner.update(batch, step=1, kl_coefficient=0.2, texts=TEXTS)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    logprobs = slow_logprobs(model, rollouts)
    total = torch.zeros(())
    for row in range(len(rollouts)):
        for t in mask[row].nonzero().flatten().tolist():
            ratio, advantage = (logprobs[row, t] - old[row, t]).exp(), batch.advantages[row, t]
            term = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            if advantage < 0:
                term = torch.minimum(term, -1.5 * advantage)
            term = term * min(float((old[row, t] - batch.sampled_logprobs[row, t]).exp()), 1.3)
            k1 = logprobs[row, t] - batch.ref_logprobs[row, t]
            term = term + 0.2 * ((-k1).exp() - 1 + k1)
            total = total + term / (len(rollouts) * lengths[row])
    nll = []
    for row, length in enumerate(TEXTS.lengths.tolist()):
        table = model(input_ids=TEXTS.tokens[row : row + 1, :length]).logits[0].log_softmax(-1)
        nll += [-table[t - 1, TEXTS.tokens[row, t]] for t in range(1, length)]
    text_loss = torch.stack(nll).mean()
    (total + 0.5 * text_loss).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    assert largest_difference(weights(learner), expected) < 1e-6
    assert metrics["loss/pretraining_avg"] == pytest.approx(text_loss.item(), abs=1e-5)
    assert 0 < metrics["policy/importance_capped_share"] < 1


def test_a_long_answer_weighs_by_the_normaliser(tiny_model):
    """The constant of Dr. GRPO: the mean over sequences of sums, over 48 tokens."""
    rollouts, losses = random_rollouts(), {}
    for normaliser, constant in (("tokens", None), ("sequence_mean", None), ("constant", 48.0)):
        learner = make_policy(
            tiny_model("llama"), epochs=1, minibatch=7, normaliser=normaliser, normaliser_constant=constant
        )
        batch = policy_batch(rollouts, learner.logprobs(rollouts))
        losses[normaliser] = learner.update(batch, step=1)["loss/policy_avg"]
    per_row = -torch.where(rollouts.response_mask, batch.advantages, 0.0)  # the ratio is 1
    lengths = rollouts.response_mask.sum(1)
    assert losses["tokens"] == pytest.approx(float(per_row.sum() / lengths.sum()), abs=1e-5)
    assert losses["sequence_mean"] == pytest.approx(float((per_row.sum(1) / lengths).mean()), abs=1e-5)
    assert losses["constant"] == pytest.approx(float((per_row.sum(1) / 48).mean()), abs=1e-5)


def test_the_update_ends_where_the_policy_went_too_far(tiny_model):
    rollouts = random_rollouts()
    learner = make_policy(tiny_model("llama"), epochs=50, max_approx_kl=1e-4)
    metrics = learner.update(policy_batch(rollouts, learner.logprobs(rollouts)), step=1)
    assert 1 < metrics["policy/optimizer_steps"] < 100, "not after the first, where the ratio is 1"
    free = make_policy(tiny_model("llama"), epochs=50)
    free_metrics = free.update(policy_batch(rollouts, free.logprobs(rollouts)), step=1)
    assert free_metrics["policy/optimizer_steps"] == 100
    assert free_metrics["policy/approxkl_avg"] > metrics["policy/approxkl_avg"]


def test_stop_strings_of_the_sampling_are_saved_with_the_model(tiny_model, tmp_path):
    config = PolicyUpdateConfig(engine=SGD, minibatch=4)
    learner = PolicyLearner(tiny_model("llama"), config, TEMPERATURE, total_steps=1, seed=3, stop_strings=("###",))
    learner.save(str(tmp_path / "model"), str(tmp_path / "state"))
    assert stop_strings(str(tmp_path / "model")) == ["###"]


def test_the_saved_model_is_the_moving_average(tiny_model, tmp_path):
    folder, rollouts = tiny_model("llama"), random_rollouts()
    learner = make_policy(folder, ema_decay=0.75)
    seen = [weights(learner)]
    for step in (1, 2):
        learner.update(policy_batch(rollouts, learner.logprobs(rollouts)), step)
        seen.append(weights(learner))
    learner.save(str(tmp_path / "model"), str(tmp_path))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = {name: 0.5625 * seen[0][name] + 0.1875 * seen[1][name] + 0.25 * seen[2][name] for name in seen[0]}
    assert largest_difference(dict(saved.named_parameters()), expected) < 1e-6
    assert largest_difference(seen[2], expected) > 1e-4

    resumed = make_policy(folder, ema_decay=0.75)
    resumed.load(str(tmp_path))
    assert largest_difference(weights(resumed), seen[2]) == 0, "training goes on from the weights themselves"
    assert all(torch.equal(resumed.average.weights[name], learner.average.weights[name]) for name in expected)


def test_unclipped_with_one_minibatch_it_is_advantage_actor_critic(tiny_model):
    """A2C as a special case of PPO (Huang et al. 2022): the gradient is that of -A log pi."""
    folder, rollouts = tiny_model("llama"), random_rollouts()
    learner = make_policy(folder, epochs=1, minibatch=7, clip_low=1.0, clip_high=float("inf"))
    batch = policy_batch(rollouts, learner.logprobs(rollouts))
    learner.update(batch, step=1)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    mask = rollouts.response_mask
    (-(batch.advantages * slow_logprobs(model, rollouts))[mask].sum() / mask.sum()).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    assert largest_difference(weights(learner), expected) < 1e-6


def test_the_split_into_microbatches_changes_nothing(tiny_model):
    rollouts, results = random_rollouts(), []
    for budget in (20, 4096):
        learner = make_policy(tiny_model("llama"), microbatch_tokens=budget)
        learner.update(policy_batch(rollouts, learner.logprobs(rollouts)), step=1)
        results.append(weights(learner))
    assert largest_difference(*results) < 1e-6


def test_metrics_are_weighted_by_tokens(tiny_model):
    learner = make_policy(tiny_model("llama"))
    steps = [
        OptimizerStep(tokens, stats | {"optim/skipped_steps": 1.0}, is_skipped, [])
        for tokens, stats, is_skipped in (
            (10, {"loss/policy": 1.0, "optim/grad_norm": 2.0, "optim/lr": 0.2}, False),
            (90, {"loss/policy": math.nan, "optim/grad_norm": math.inf, "optim/lr": 0.2}, True),
            (30, {"loss/policy": 5.0, "optim/grad_norm": 6.0, "optim/lr": 0.1}, False),
        )
    ]
    assert learner.averages(steps, {"loss/policy": "loss/policy_avg"}) == {
        "loss/policy_avg": 4.0,
        "optim/policy_grad_norm": 5.0,
        "optim/policy_lr": 0.1,
        "optim/policy_skipped_steps": 1.0,
    }


def planted(learner, rollouts, rows):
    """A batch whose advantages are NaN in `rows`."""
    batch = policy_batch(rollouts, learner.logprobs(rollouts))
    batch.advantages[rows] = torch.where(rollouts.response_mask[rows], math.nan, 0.0)
    return batch


def test_a_minibatch_that_is_not_finite_is_skipped_and_counted(tiny_model):
    """One bad row: of the two minibatches of each epoch one is skipped, and the other alone is learnt from."""
    rollouts = random_rollouts()
    learner = make_policy(tiny_model("llama"))
    batch = planted(learner, rollouts, [2])
    metrics = learner.update(batch, step=1)
    assert metrics["optim/policy_skipped_steps"] == metrics["policy/optimizer_steps"] == 2
    assert all(math.isfinite(value) for name, value in metrics.items())

    plain = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    for epoch in range(2):
        for part in (batch.rows(rows) for rows in minibatches(7, 4, 3, 1, epoch) if 2 not in rows):
            ratio = (slow_logprobs(plain, part) - part.logprobs)[part.response_mask].exp()
            advantages = part.advantages[part.response_mask]
            torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean().backward()
            with torch.no_grad():
                for parameter in plain.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    assert largest_difference(weights(learner), dict(plain.named_parameters())) < 1e-6


def test_nothing_but_skipped_steps_leaves_the_policy_and_then_stops(tiny_model):
    """4 skipped steps an RL step, and the sixth in a row is the last: its report tells of both."""
    rollouts, guard = random_rollouts(), GuardConfig(max_skips=6)
    entropy = {"coefficient": 0.05, "target": 9.0, "rate": 0.01}
    learner = make_policy(tiny_model("llama"), engine=SGD.model_copy(update={"guard": guard}), entropy=entropy)
    before, batch = weights(learner), planted(learner, rollouts, list(range(7)))
    metrics = learner.update(batch, step=1)
    assert metrics["optim/policy_skipped_steps"] == 4 and metrics["policy/optimizer_steps"] == 0
    assert math.isnan(metrics["loss/policy_avg"]) and metrics["policy/entropy_coefficient"] == 0.05
    with pytest.raises(DivergenceError) as told:
        learner.update(batch, step=2)
    assert largest_difference(weights(learner), before) == 0
    for words in (
        "6 optimizer steps in a row were skipped (6 in the whole run)",
        "RL step 1, epoch 1, minibatch 1: loss nan, gradient norm nan, lr 0.1; skipped, as the loss is nan",
        "RL step 2, epoch 1, minibatch 2: loss nan",
        "policy.engine.lr (now 0.1)",
    ):
        assert words in str(told.value)
    assert "minibatch 3" not in str(told.value)


def test_a_critic_skips_and_counts_by_itself(tiny_model):
    learner, rollouts = make_critic(tiny_model("llama")), random_rollouts()
    batch = critic_batch(rollouts, learner.values(rollouts))
    batch.returns[2] = math.inf
    metrics = learner.update(batch, step=1)
    assert metrics["optim/critic_skipped_steps"] == 2 and math.isfinite(metrics["loss/value_avg"])


def test_minibatches_cover_all_rows_and_depend_on_seed_step_and_epoch():
    first = list(minibatches(10, 4, seed=1, step=5, epoch=0))
    assert [len(rows) for rows in first] == [4, 4, 2]
    assert torch.cat(first).sort().values.tolist() == list(range(10))
    orders = {
        tuple(torch.cat(list(minibatches(10, 4, *key))).tolist())
        for key in [(1, 5, 0), (1, 5, 0), (2, 5, 0), (1, 6, 0), (1, 5, 1)]
    }
    assert len(orders) == 4


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_value_is_the_head_on_the_tokens_before(tiny_model, kind, tmp_path):
    learner, rollouts = make_critic(tiny_model(kind), forward_tokens=40), random_rollouts()
    got = learner.values(rollouts)
    learner.save(str(tmp_path / "model"), str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert not got.values[~rollouts.response_mask].any()
    for row, length in enumerate(rollouts.lengths.tolist()):
        tokens = rollouts.tokens[row : row + 1]
        with torch.no_grad():
            scores = [model(input_ids=tokens[:, :t]).logits.item() for t in range(1, length + 1)]
        for t in range(1, length):
            if rollouts.response_mask[row, t]:
                assert float(got.values[row, t]) == pytest.approx(scores[t - 1], abs=1e-5)
        assert float(got.bootstrap[row]) == pytest.approx(scores[-1], abs=1e-5)


def test_one_critic_step_equals_plain_sgd(tiny_model, tmp_path):
    rollouts = random_rollouts()
    learner = make_critic(tiny_model("llama"), epochs=1, minibatch=7, microbatch_tokens=40)
    learner.save(str(tmp_path / "model"), str(tmp_path))
    values = learner.values(rollouts)
    batch = critic_batch(rollouts, values)
    metrics = learner.update(batch, step=1)

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    loss = torch.zeros(())
    for row, length in enumerate(rollouts.lengths.tolist()):
        hidden = model.model(input_ids=rollouts.tokens[row : row + 1, :length]).last_hidden_state[0]
        for t in range(1, length):
            if rollouts.response_mask[row, t]:
                loss = loss + 0.5 * (model.score(hidden[t - 1]) - batch.returns[row, t]).square().sum()
    loss = loss / rollouts.response_mask.sum()
    loss.backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    assert largest_difference(weights(learner), expected) < 1e-6
    assert metrics["loss/value_avg"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["val/clipfrac_avg"] == 0.0


def test_explained_variance_by_hand():
    def batch(values, returns):
        mask = torch.tensor([[False, True, True, True]])
        rows = [torch.tensor([[9.0, *x]]) for x in (values, returns)]
        return CriticBatch(torch.ones(1, 4, dtype=torch.int64), torch.tensor([4]), mask, *rows)

    assert explained_variance(batch([1, 2, 3], [1, 2, 3])) == 1.0
    # returns' variance 8/3; errors 1, 0, -1 with variance 2/3
    assert explained_variance(batch([0, 3, 6], [1, 3, 5])) == pytest.approx(0.75)
    assert explained_variance(batch([0, 3, 6], [2, 2, 2])) == 0.0


def test_a_saved_learner_goes_on_as_if_never_stopped(tiny_model, tmp_path):
    rollouts = random_rollouts()
    adam = EngineConfig(optimizer="adamw", lr=1e-2)
    learner = make_policy(tiny_model("llama"), engine=adam)
    batch = policy_batch(rollouts, learner.logprobs(rollouts))
    learner.update(batch, step=1)
    learner.save(str(tmp_path / "model"), str(tmp_path / "state"))
    saved = weights(learner)
    metrics = learner.update(batch, step=2)

    other = make_policy(tiny_model("llama"), engine=adam)
    other.load(str(tmp_path / "state"))
    assert largest_difference(weights(other), saved) == 0
    assert numbers(other.update(batch, step=2)) == numbers(metrics)
    assert largest_difference(weights(other), weights(learner)) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert largest_difference(dict(exported.named_parameters()), saved) == 0


def test_the_learning_rate_spans_the_run():
    config = PolicyUpdateConfig(epochs=2, minibatch=32)
    assert config.optimizer_steps(rl_steps=10, rollout_batch=64) == 40
    assert config.optimizer_steps(rl_steps=10, rollout_batch=65) == 60


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        make_policy(str(tmp_path))


def test_an_entropy_target_moves_the_bonus_and_is_resumed(tiny_model, tmp_path):
    folder, rollouts = tiny_model("llama"), random_rollouts()
    entropy = {"coefficient": 0.05, "target": 9.0, "rate": 0.01}
    learner = make_policy(folder, entropy=entropy)
    batch = policy_batch(rollouts, learner.logprobs(rollouts))
    first, second = (learner.update(batch, step) for step in (1, 2))
    assert first["policy/entropy_coefficient"] == 0.05
    expected = 0.05 + 0.01 * (9.0 - first["objective/entropy"])
    assert second["policy/entropy_coefficient"] == pytest.approx(expected) != 0.05
    learner.save(str(tmp_path / "model"), str(tmp_path))

    resumed = make_policy(folder, entropy=entropy)
    resumed.load(str(tmp_path))
    old = resumed.logprobs(rollouts)
    third = [each.update(policy_batch(rollouts, old), 3) for each in (learner, resumed)]
    assert numbers(third[0]) == numbers(third[1]) and third[0]["policy/entropy_coefficient"] > expected


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_optimizer_states_on_the_host_between_updates_change_nothing(stage, tiny_model, tmp_path):
    config = PolicyUpdateConfig(engine=EngineConfig(lr=0.01, zero_stage=stage), minibatch=4, epochs=1)
    rollouts, found, seen = random_rollouts(), {}, []
    batch = policy_batch(rollouts, torch.where(rollouts.response_mask, -5.0, 0.0))
    for offload in (False, True):
        learner = PolicyLearner(tiny_model("llama"), config, TEMPERATURE, total_steps=10, seed=3, offload=offload)
        states, piece_loss = learner.engine._engine.optimizer.offloaded_states, learner._piece_loss
        learner._piece_loss = lambda *args, own=piece_loss, away=states, **more: (
            seen.append(set(away)),
            own(*args, **more),
        )[1]
        assert len(states) == 2 * offload
        first = learner.update(batch, 1)
        learner.save(str(tmp_path / f"model{offload}"), str(tmp_path / f"state{offload}"))
        learner.update(batch, 2)
        learner.load(str(tmp_path / f"state{offload}"))
        assert len(states) == 2 * offload
        found[offload] = first, learner.update(batch, 2), weights(learner)
    assert [*map(numbers, found[True][:2])] == [*map(numbers, found[False][:2])]
    assert largest_difference(found[True][2], found[False][2]) == 0
    assert seen and not any(seen), "while it learns they are there"


@pytest.mark.parametrize(("role", "make"), [("policy", make_policy), ("critic", make_critic)])
def test_a_slow_precision_is_said_with_the_roles_own_key(tiny_model, monkeypatch, capsys, role, make):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    make(tiny_model("llama"), engine=EngineConfig(precision="bf16"))
    assert f"warning: {role}: {role}.engine.precision=bf16" in capsys.readouterr().out
    make(tiny_model("llama"))
    assert "warning" not in capsys.readouterr().out
