"""TRL's side: `python -m benchmarks.peers.trl_side ROW TASK OUT STEPS DTYPE`, in a process of its own.

TRL's defaults, but: no gradient checkpointing (it would compute everything twice, and memory is no matter here),
no checkpoints, no trackers.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.rewards import trl_vowels
from benchmarks.peers.steps import Steps
from benchmarks.peers.task import MAX_NEW_TOKENS, MAX_TOKENS, PPO_EPOCHS


def clock(tokens_of: Any) -> Any:
    """A callback that writes down every step's seconds and, by `tokens_of(inputs)`, its real tokens."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.steps, self.began, self.now = Steps([], []), time.perf_counter(), 0

        def seen(self, inputs: dict[str, Any]) -> None:
            self.now += tokens_of(inputs)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            end = time.perf_counter()
            self.steps.seconds.append(end - self.began)
            self.steps.tokens.append(self.now)
            self.began, self.now = end, 0

    return Clock()


def common(out: str, steps: int, dtype: str, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": f"{out}.trainer",
        "use_cpu": True,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "bf16": dtype == "bf16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        **more,
    }


def mask_tokens(inputs: dict[str, Any]) -> int:
    return int(inputs["attention_mask"].sum())


def rows(task: Path, name: str) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(task / f"{name}.jsonl"), split="train")


def sft(task: Path, arguments: dict[str, Any], peft: Any) -> tuple[Any, Any]:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, per_device_train_batch_size=32, max_length=MAX_TOKENS)
    return SFTTrainer(str(task / "model"), args=config, train_dataset=rows(task, "sft"), peft_config=peft), mask_tokens


def reward_model(task: Path, arguments: dict[str, Any], peft: Any) -> tuple[Any, Any]:
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**arguments, per_device_train_batch_size=32, max_length=MAX_TOKENS)
    pairs = rows(task, "pairs").remove_columns("prompt")  # it joins no empty prompt
    return RewardTrainer(str(task / "scorer"), args=config, train_dataset=pairs, peft_config=peft), mask_tokens


def dpo(task: Path, arguments: dict[str, Any], peft: Any) -> tuple[Any, Any]:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**arguments, per_device_train_batch_size=32, max_length=MAX_TOKENS)
    return DPOTrainer(str(task / "model"), args=config, train_dataset=rows(task, "dpo"), peft_config=peft), mask_tokens


def grpo(task: Path, arguments: dict[str, Any], peft: Any, batch: int = 64, group: int = 8) -> tuple[Any, Any]:
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        **arguments,
        per_device_train_batch_size=batch,
        num_generations=group,
        max_completion_length=MAX_NEW_TOKENS,
        beta=0.05,
        loss_type="grpo",
    )
    trainer = GRPOTrainer(
        str(task / "model"),
        reward_funcs=trl_vowels,
        args=config,
        train_dataset=rows(task, "prompts"),
        peft_config=peft,
    )
    return trainer, lambda inputs: int(inputs["completion_mask"].sum())


def ppo(task: Path, arguments: dict[str, Any], peft: Any, batch: int = 64) -> tuple[Any, Any]:
    """Of TRL 1.10, the last with it: four epochs of one minibatch, as our side has."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from rayrlhf.models.pretrained import model_of, tokenizer_of

    tokenizer = tokenizer_of(str(task / "model"))
    tokenizer.padding_side = "left"
    steps = arguments.pop("max_steps")
    config = PPOConfig(
        **arguments,
        per_device_train_batch_size=batch,
        total_episodes=batch * steps,
        num_ppo_epochs=PPO_EPOCHS,
        response_length=MAX_NEW_TOKENS,
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
    )
    prompts = rows(task, "prompts").map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"][:32]})
    prompts = prompts.remove_columns("prompt")
    scorers = [model_of(AutoModelForSequenceClassification, str(task / "scorer"), num_labels=1) for _ in range(2)]
    trainer = PPOTrainer(
        config,
        tokenizer,
        model_of(AutoModelForCausalLM, str(task / "model")),
        None,
        scorers[0],
        prompts,
        scorers[1],
        eval_dataset=prompts,
        peft_config=peft,
    )
    whole = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, responses: Any) -> Any:
        cut = whole(stop, pad, responses)
        trainer.seen(int((cut != pad).sum()))
        return cut

    ppo_trainer.truncate_response = counted
    return trainer, int


MAKERS = {"sft": sft, "reward_model": reward_model, "dpo": dpo, "grpo": grpo, "ppo": ppo}


def main(row: str, task: str, out: str, steps: int, dtype: str, lora: int = 0) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    peft = None
    if lora:
        from peft import LoraConfig

        peft = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer, tokens_of = MAKERS[row](Path(task), common(out, steps, dtype), peft)
    watch = clock(tokens_of)
    trainer.add_callback(watch)
    if row == "ppo":  # its loop is one of its own
        trainer.seen = watch.seen
    whole = getattr(trainer, "training_step", None)

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if row != "grpo":  # there `inputs` are prompts
            watch.seen(inputs)
        return whole(model, inputs, *args, **kwargs)

    trainer.training_step = counted
    if row == "grpo":
        generate = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = partial(_counting, generate, watch)
    watch.began = time.perf_counter()
    trainer.train()
    watch.steps.write(out)


def _counting(generate: Any, watch: Any, *args: Any) -> Any:
    batch = generate(*args)
    watch.seen(batch)
    return batch


if __name__ == "__main__":
    row, task, out, steps, dtype, *more = sys.argv[1:]
    main(row, task, out, int(steps), dtype, *map(int, more))
