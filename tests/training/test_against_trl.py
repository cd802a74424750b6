"""The same rows through TRL's trainers and through ours: the same tokens, losses, gradients and steps.

TRL is the second implementation that its own issues know best; where it means another thing by a name, the
comparison says what makes the two alike.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor

from rayrlhf import estimators
from rayrlhf.batches import Experience, PolicyBatch, Rollouts, Scores, Values
from rayrlhf.data.tokenize import encode_row
from rayrlhf.models import causal_lm, scalar
from rayrlhf.ppo_config import AlgorithmConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.losses import LOSSES, DirectPreferenceLoss, KTOLoss, completion_logprobs
from rayrlhf.training.passes import response_logprobs
from rayrlhf.training.policy_learner import PolicyLearner
from rayrlhf.training.ppo_config import EntropyConfig, PolicyUpdateConfig
from tests.training.experience import free_port, random_rollouts

CPU = torch.device("cpu")
BETA, TEMPERATURE = 0.3, 0.7
SGD = EngineConfig(optimizer="sgd", lr=0.03, min_lr_ratio=1.0, grad_clip=0.0)
PAIRS = [  # completions differ from their first token on
    {"prompt": "the film is ", "chosen": "good", "rejected": "a bad mess"},
    {"prompt": "once more", "chosen": " with feeling", "rejected": ", not"},
    {"prompt": "we ", "chosen": "laughed", "rejected": "yawned"},
]
ALIKE = [  # completions of the same number of tokens
    {"prompt": "the film is ", "chosen": "good", "rejected": "dull"},
    {"prompt": "once ", "chosen": "more", "rejected": "less"},
]


@pytest.fixture(autouse=True, scope="module")
def one_rank() -> None:
    """The process group of our learner."""
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Arguments of a TRL trainer: float32 on the CPU, one batch of all rows, nothing written.  What it sets in this
    process (variables, torch's seed) is set back."""
    with mock.patch.dict(os.environ, TRL_EXPERIMENTAL_SILENCE="1"), torch.random.fork_rng():
        yield {
            "output_dir": str(tmp_path / "trl"),
            "per_device_train_batch_size": 8,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }


def conversation(row: dict[str, str]) -> dict[str, Any]:
    """A row of ours as TRL's conversations, which get their end token by the chat template as ours do."""
    return {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()
    }


def moved(model: Any, by: float = 0.02) -> Any:
    """A copy with other weights, so that it is no longer its own reference."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    return other


def assert_same_gradients(ours: Any, theirs: Any) -> None:
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text
        )


@torch.no_grad()
def judge(reference: Any, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Give the rows the reference's log-probs, as a stage does."""
    for ids, name in columns.items():
        found = completion_logprobs(reference, [row[ids] for row in rows], [row["prompt_length"] for row in rows], CPU)
        for row, value in zip(rows, found.tolist(), strict=True):
            row[name] = value


def batch_of(trainer: Any) -> dict[str, Tensor]:
    """What TRL's own collator makes of all its rows."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


@pytest.mark.parametrize("form", ["dpo", "ipo"])
def test_direct_preference(form: Any, tiny_model: Callable[[str], str], offline: dict[str, Any]) -> None:
    """TRL's IPO divides each log-ratio by its completion's length, ours sums (Azar et al. 2023, eq. 17).  Where all
    have n tokens, (h / n - 1 / (2 beta))^2 is ours with beta / n, over n^2."""
    from trl import DPOConfig, DPOTrainer

    texts = PAIRS if form == "dpo" else ALIKE
    folder = tiny_model("llama")
    tokenizer, reference = causal_lm.load_tokenizer(folder), causal_lm.load_causal_lm(folder).eval()
    policy = moved(reference)
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(beta=BETA, loss_type="sigmoid" if form == "dpo" else "ipo", **offline),
        train_dataset=Dataset.from_list([conversation(row) for row in texts]),
        processing_class=tokenizer,
    )
    rows = [encode_row(row, "preference", tokenizer) for row in texts]
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        assert row["chosen_ids"] == theirs["prompt_ids"] + theirs["chosen_ids"]
        assert row["rejected_ids"] == theirs["prompt_ids"] + theirs["rejected_ids"]
        assert row["prompt_length"] == len(theirs["prompt_ids"])
    expected = trainer.compute_loss(trainer.model, batch_of(trainer))
    expected.backward()

    judge(reference, rows, DirectPreferenceLoss.reference_columns)
    num_tokens = 1 if form == "dpo" else len(rows[0]["chosen_ids"]) - rows[0]["prompt_length"]
    loss = DirectPreferenceLoss(form, BETA / num_tokens).shares(policy, rows, len(rows), CPU)["loss"] / num_tokens**2
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_same_gradients(policy, trainer.model)


def test_reward_model(tiny_model: Callable[[str], str], offline: dict[str, Any]) -> None:
    from trl import RewardConfig, RewardTrainer

    folder = tiny_model("llama")
    tokenizer, model = causal_lm.load_tokenizer(folder), moved(scalar.load_scalar(folder).eval())
    trainer = RewardTrainer(
        model=copy.deepcopy(model),
        args=RewardConfig(**offline),
        train_dataset=Dataset.from_list([conversation(row) for row in PAIRS]),
        processing_class=tokenizer,
    )
    rows = [encode_row(row, "preference", tokenizer) for row in PAIRS]
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        assert (row["chosen_ids"], row["rejected_ids"]) == (theirs["chosen_ids"], theirs["rejected_ids"])
    expected = trainer.compute_loss(trainer.model, batch_of(trainer))
    expected.backward()

    loss = LOSSES["preference"].shares(model, rows, len(rows), CPU)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_same_gradients(model, trainer.model)


@pytest.mark.parametrize("exchanged", [False, True])
def test_kto(exchanged: bool, tiny_model: Callable[[str], str], offline: dict[str, Any]) -> None:
    """With policy and reference exchanged the estimate of the KL changes its sign: one is clamped to 0."""
    from trl import KTOConfig, KTOTrainer

    folder = tiny_model("llama")
    tokenizer, reference = causal_lm.load_tokenizer(folder), causal_lm.load_causal_lm(folder).eval()
    policy = moved(reference)
    if exchanged:
        policy, reference = reference, policy
    rows = [conversation({"prompt": row["prompt"], "completion": row["chosen"]}) | {"label": True} for row in PAIRS]
    rows += [
        conversation({"prompt": row["prompt"], "completion": row["rejected"]}) | {"label": False} for row in PAIRS[1:]
    ]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    trainer = KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=KTOConfig(beta=BETA, **weights, **offline),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    expected = trainer.compute_loss(trainer.model, batch_of(trainer))
    expected.backward()

    ours = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "kl_ids": row["prompt_ids"] + row["KL_completion_ids"],  # another row's completion, of TRL's choice
            "prompt_length": len(row["prompt_ids"]),
            "label": row["label"],
        }
        for row in trainer.train_dataset
    ]
    kto = KTOLoss(BETA, **weights)
    judge(reference, ours, kto.reference_columns)
    with torch.no_grad():
        summed = kto.prepared(ours, lambda shares: {n: float(v) for n, v in shares(policy, ours, CPU).items()})
    assert (summed.kl > 0) == exchanged
    loss = summed.shares(policy, ours, len(ours), CPU)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_same_gradients(policy, trainer.model)


def train_by_trl(
    policy: Any, tokenizer: Any, rollouts: Rollouts, sampled: Tensor, scores: Tensor, config: dict[str, Any]
) -> Any:
    """TRL's trainer of GRPO after training a copy of `policy` on `rollouts` and their `scores`, `sampled` being the
    log-probs of whoever sampled them.  The reference is what the folder holds that `policy` was loaded from."""
    with mock.patch("trl.import_utils.is_vllm_available", return_value=False):  # its import takes 10 s
        from trl.trainer.grpo_trainer import GRPOConfig, GRPOTrainer

    mask = rollouts.response_mask

    def responses(x: Tensor) -> list[list[Any]]:
        return [row[inside].tolist() for row, inside in zip(x, mask, strict=True)]

    def sample(prompts: list[Any], trainer: Any) -> dict[str, list[list[Any]]]:
        starts = mask.int().argmax(1)
        prompt_ids = [row[:start].tolist() for row, start in zip(rollouts.tokens, starts, strict=True)]
        return {"prompt_ids": prompt_ids, "completion_ids": responses(rollouts.tokens), "logprobs": responses(sampled)}

    trainer = GRPOTrainer(
        model=copy.deepcopy(policy),
        reward_funcs=lambda completions, **_: scores.tolist(),
        args=GRPOConfig(**config),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),  # `sample` has the prompts
        processing_class=tokenizer,
        rollout_func=sample,
    )
    trainer.use_vllm, trainer._last_loaded_step = True, 0  # for its importance weights; `sample` is the engine
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("loss_type", "estimator", "normaliser"),
    [("grpo", "grpo", "sequence_mean"), ("bnpo", "grpo", "tokens"), ("dr_grpo", "dr_grpo", "constant")],
)
def test_two_steps_of_grpo(
    loss_type: str,
    estimator: Any,
    normaliser: Any,
    tiny_model: Callable[[str], str],
    offline: dict[str, Any],
    tmp_path: Path,
) -> None:
    """From sampled tokens and their scores to the weights after two optimizer steps on the one batch, with every
    term that both have: the clips, truncated importance weights, the KL in the loss (k3), an entropy bonus."""
    folder, rollouts = tiny_model("llama"), random_rollouts(rows=8)
    tokenizer, reference = causal_lm.load_tokenizer(folder), causal_lm.load_causal_lm(folder).eval()
    policy, mask, generator = moved(reference), rollouts.response_mask, torch.Generator().manual_seed(4)
    with torch.no_grad():
        ref_logprobs, sampled = (response_logprobs(model, rollouts, TEMPERATURE) for model in (reference, policy))
    sampled = torch.where(mask, sampled + 0.3 * torch.randn(mask.shape, generator=generator), 0.0)
    scores = torch.randn(8, generator=generator)
    theirs = offline | {
        "loss_type": loss_type,
        "scale_rewards": "none" if estimator == "dr_grpo" else "group",
        "num_generations": 4,
        "num_iterations": 2,
        "max_steps": 2,
        "max_completion_length": 16,
        "temperature": TEMPERATURE,
        "epsilon": 0.1,
        "epsilon_high": 0.2,
        "delta": 1.5,  # our dual_clip: above 1 + epsilon_high it binds only where the advantage is negative
        "beta": 0.2,
        "use_bias_correction_kl": False,  # on by default: KL times ratio (DeepSeek-V3.2), not GRPO's eq. 4
        "entropy_coef": 0.05,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.3,
        "optim": "sgd",
        "learning_rate": SGD.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
    }
    trainer = train_by_trl(policy, tokenizer, rollouts, sampled, scores, theirs)

    ours = PolicyUpdateConfig(
        engine=SGD,
        epochs=2,
        minibatch=8,
        microbatch_tokens=40,
        clip_low=0.1,
        clip_high=0.2,
        dual_clip=1.5,
        importance_cap=1.3,
        entropy=EntropyConfig(coefficient=0.05),
    )
    causal_lm.save(policy, tokenizer, str(tmp_path / "policy"))
    learner = PolicyLearner(str(tmp_path / "policy"), ours, TEMPERATURE, 2, 3, normaliser, normaliser_constant=16.0)
    logprobs, values = learner.logprobs(rollouts), Values(torch.zeros(mask.shape), torch.zeros(8))
    experience = Experience(rollouts, logprobs, ref_logprobs, Scores(scores, scores[:, None], ("x",)), values)
    estimate = estimators.build(AlgorithmConfig(estimator=estimator, group_size=4))(experience, scores, 0.0)
    batch = PolicyBatch(rollouts.tokens, rollouts.lengths, mask, logprobs, ref_logprobs, sampled, estimate.advantages)
    metrics = learner.update(batch, step=1, kl_coefficient=0.2)

    loss = metrics["loss/policy_avg"] + 0.2 * metrics["loss/kl_avg"] - 0.05 * metrics["objective/entropy"]
    assert loss == pytest.approx(sum(log["loss"] for log in trainer.state.log_history[:2]) / 2, abs=1e-5)
    assert metrics["policy/clipfrac_avg"] > 0.1 and 0.1 < metrics["policy/importance_capped_share"] < 0.9
    expected = dict(trainer.model.named_parameters())
    for name, p in learner.engine.module.named_parameters():
        torch.testing.assert_close(p, expected[name], atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text)
