"""The supervised loop with an adapter, one worker in this process: reward model, DPO and a tuned prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from jobs import generate
from rayrlhf.checkpoint import find_stage
from rayrlhf.data.templates import encode_prompt
from rayrlhf.errors import ModelError
from rayrlhf.metrics import MetricsLog
from rayrlhf.model_folder import model_folder
from rayrlhf.models.adapters import with_adapter, with_virtual_tokens
from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer
from rayrlhf.models.forward import causal_logits
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.run import RunConfig
from rayrlhf.training import distributed
from rayrlhf.training.config import EngineConfig, TrainConfig
from rayrlhf.training.engine import Engine
from rayrlhf.training.losses import CausalLoss, DirectPreferenceLoss, Loss, PreferenceLoss, Row, completion_logprobs
from rayrlhf.training.supervised import Stage, Supervised
from tests.adapter_stage import check_saved
from tests.training.experience import free_port


@pytest.fixture(autouse=True, scope="module")
def one_rank() -> None:
    if not dist.is_initialized():
        distributed.init(0, 1, "127.0.0.1", free_port())


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    monkeypatch.setattr(MetricsLog, "log", lambda self, step, metrics: found.append(dict(metrics)))
    return found


def run(name: str, loss: Loss, folder: str, root: Path, peft: PeftConfig, rows: list[Row], **engine: Any) -> str:
    """Twelve steps on the same rows; returns the stage directory."""
    train = TrainConfig(minibatch=len(rows), microbatch_tokens=128, engine=EngineConfig(**{"lr": 0.02, **engine}))
    stage = Stage(
        name=name,
        loss=loss,
        run=RunConfig(name="run", root=str(root)),
        train=train,
        folder=folder,
        new=None,
        total_steps=12,
        config={"peft": peft.model_dump(mode="json")},
        parents={"model": folder},
        resume_from=None,
        started=time.time(),
        is_terminal=False,
        peft=peft,
    )
    return Supervised(stage).fit(repeat(rows, 12), [])


def pairs(folder: str, reference: bool = False) -> list[Row]:
    encode = load_tokenizer(folder).encode
    rows: list[Row] = [
        {"chosen_ids": encode(f"row {n} good"), "rejected_ids": encode(f"row {n} bad!"), "prompt_length": 5}
        for n in range(6)
    ]
    if reference:
        model, starts = AutoModelForCausalLM.from_pretrained(folder), [row["prompt_length"] for row in rows]
        for ids, name in DirectPreferenceLoss.reference_columns.items():
            with torch.no_grad():
                sums = completion_logprobs(model, [row[ids] for row in rows], starts, torch.device("cpu"))
            for row, value in zip(rows, sums.tolist(), strict=True):
                row[name] = value
    return rows


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_reward_model_with_an_adapter(
    precision: str, tiny_model: Callable[[str], str], tmp_path: Path, logged: list[dict[str, float]]
) -> None:
    folder = tiny_model("gpt2")
    peft = PeftConfig(kind="ia3")
    stage = run("reward_model", PreferenceLoss(), folder, tmp_path, peft, pairs(folder), precision=precision)
    assert logged[-1]["loss/train"] < logged[0]["loss/train"] - 0.1
    check_saved(stage, folder, scores=True)


def test_dpo_with_an_adapter_starts_at_its_reference(
    tiny_model: Callable[[str], str], tmp_path: Path, logged: list[dict[str, float]]
) -> None:
    folder, loss = tiny_model("qwen3"), DirectPreferenceLoss("dpo", beta=0.5)
    rows = pairs(folder, reference=True)
    stage = run("dpo", loss, folder, tmp_path, PeftConfig(rank=4), rows, zero_stage=3, grad_clip=0.5)
    assert logged[0]["loss/train"] == pytest.approx(math.log(2), abs=1e-5)
    assert logged[-1]["rewards/accuracies"] == 1 and logged[-1]["loss/train"] < 0.5
    check_saved(stage, folder)


def test_a_tuned_prompt_answers_and_is_no_model_for_later_stages(
    tiny_model: Callable[[str], str], tmp_path: Path, logged: list[dict[str, float]]
) -> None:
    folder, tokenizer = tiny_model("llama"), load_tokenizer(tiny_model("llama"))
    prompt = tokenizer.encode("<s>row")
    ids = prompt + tokenizer.encode(" is red</s>")
    rows: list[Row] = [{"input_ids": ids, "loss_mask": [0] * len(prompt) + [1] * (len(ids) - len(prompt))}]
    peft = PeftConfig(kind="prompt_tuning", num_virtual_tokens=8)
    stage = run("sft", CausalLoss(), folder, tmp_path, peft, rows, lr=0.3)
    assert logged[-1]["loss/train"] < logged[0]["loss/train"]
    before = AutoModelForCausalLM.from_pretrained(folder)
    after: Any = AutoModelForCausalLM.from_pretrained(find_stage(stage).model_dir)
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in after.named_parameters())

    def answer(model: str, context: int) -> list[str]:
        generator = generate.Generator(generate.GenerateConfig(model=model, temperature=0, max_new_tokens=8))
        assert generator.context == context
        return generator.answers("row")

    whole, _ = with_virtual_tokens(after.eval(), f"{stage}/adapter")
    ids = encode_prompt(tokenizer, "row")
    for _ in range(8):  # greedy, without a cache
        with torch.no_grad():
            logits = causal_logits(whole, torch.tensor([ids]), torch.tensor([len(ids)]))
        ids = [*ids, int(logits[0, -1].argmax())]
    assert answer(stage, 120) == [tokenizer.decode(ids[-8:], skip_special_tokens=True)] != answer(folder, 128)
    for path in (tmp_path / "run" / "sft", stage):
        with pytest.raises(ModelError, match=r"peft.kind=prompt_tuning: its virtual tokens .* peft.kind=lora or ia3"):
            model_folder(str(path))


@pytest.mark.parametrize(("kind", "decayed"), [("lora", 0.95), ("ia3", 1.0)])
def test_weight_decay_leaves_factors_alone(kind: Any, decayed: float, tiny_model: Callable[[str], str]) -> None:
    """With a gradient of 0 AdamW moves only what is decayed, by lr * weight_decay; a factor's neutral value is 1."""
    model = with_adapter(load_causal_lm(tiny_model("llama")), PeftConfig(kind=kind))
    engine = Engine(model, EngineConfig(lr=0.1, weight_decay=0.5, min_lr_ratio=1), 1)
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    tokens = torch.arange(5)[None]
    engine.optimizer_step([0], lambda _: (engine.module(input_ids=tokens).logits.sum() * 0.0, {}))
    assert all(torch.allclose(p, decayed * before[name], atol=1e-7) for name, p in trained.items())
