"""Conversations and chat templates through the jobs: checked, trained, saved for what comes after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.engines.base import end_tokens
from jobs import dpo, ppo, sft
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.data.chat_templates import CHATML, ROLES, with_template
from rayrlhf.data.config import DataConfig
from rayrlhf.data.conversation import encode_conversation
from rayrlhf.data.templates import encode_prompt
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.models.causal_lm import stop_strings
from rayrlhf.training.config import TrainConfig
from rayrlhf.training.launcher import _rows
from tests.conftest import byte_tokenizer

TRAIN = ["train.minibatch=4", "train.microbatch_tokens=256", "data.max_tokens=100"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def shared(n: int) -> list[dict[str, str]]:
    turns = [("human", f"Hi {n}"), ("gpt", "Hello"), ("human", "再见"), ("gpt", "好的。" if n % 2 else "Bye.")]
    return [{"from": who, "value": value} for who, value in turns]


def given(root: Path, model: str, train: str, *more: str) -> list[str]:
    return ["run.name=chat", f"run.root={root}", f"model={model}", f"data.train={train}", *TRAIN, *more]


@pytest.mark.usefixtures("ray_local")
def test_sft_learns_conversations_and_saves_its_template(tiny_model, tmp_path, capfd) -> None:
    rows = [{"conversations": shared(n)} for n in range(16)]
    rows[3]["conversations"][-1]["value"] = " "
    rows[5]["conversations"][0]["value"] = "long " * 30
    config = load(
        sft.SFTConfig,
        None,
        given(
            tmp_path,
            tiny_model("llama"),
            write(tmp_path / "a.jsonl", rows),
            "chat_template=roles",
            'stop_strings=["###"]',
        ),
    )
    sft.check(config)
    stage = find_stage(sft.run(config))
    assert stop_strings(stage.model_dir) == ["###"]
    assert (
        "a.jsonl: of 16 rows 1 dropped (longer than max_tokens), 1 dropped (without an answer)"
        in capfd.readouterr().out
    )
    metrics = stage.manifest["metrics"]
    assert (metrics["data/rows_read"], metrics["data/rows_kept"], metrics["data/rows_dropped_empty"]) == (16, 14, 1)
    lines = [json.loads(line) for line in (tmp_path / "chat" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["data/rows_dropped_too_long"] == 1 and "data/rows_read" not in lines[1]
    tokenizer = with_template(byte_tokenizer(), ROLES)
    lengths = []
    for n, row in enumerate(rows):
        if n not in (3, 5):
            roles = ["user", "assistant", "user", "assistant"]
            chat = [{"role": r, "content": turn["value"]} for r, turn in zip(roles, row["conversations"], strict=True)]
            lengths.append(len(encode_conversation(tokenizer, chat)[0]))
    assert len(lines) == 3 and max(lengths) - min(lengths) <= 6
    assert lines[-1]["data/tokens"] == pytest.approx(12 * sum(lengths) / 14, rel=0.05), "the template's tokens count"
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(stage.model_dir)
    assert saved.chat_template == ROLES
    prompt = [{"role": "user", "content": "Hi"}]
    assert saved.decode(encode_prompt(saved, prompt)) == "<s>### User:\nHi\n\n### Assistant:\n"


@pytest.mark.usefixtures("ray_local")
def test_every_key_of_the_data_reaches_the_rows(tmp_path) -> None:
    """`row_format`, `columns`, `turns`, `too_long` and the limit on what is dropped."""
    rows = [{"talk": shared(n), "instruction": f"Ask {n}", "output": "an answer"} for n in range(6)]
    config = DataConfig(
        train=write(tmp_path / "a.jsonl", rows),
        validation=str(tmp_path / "a.jsonl"),
        row_format="sharegpt",
        columns={"conversations": "talk"},
        turns="last",
    )
    tokenizer = with_template(byte_tokenizer(), ROLES)

    def made(**more: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
        data = config.model_copy(update=more)
        found, counts, _ = _rows("prompt_completion", data, TrainConfig(minibatch=1), tokenizer, 0, lambda ds: ds)
        return found["train"].take_all(), counts

    last, counts = made()
    assert {tokenizer.decode(row["input_ids"][sum(not m for m in row["loss_mask"]) :]) for row in last} == {
        "Bye.</s>", "好的。</s>",
    }  # fmt: skip
    assert counts["data/rows_read"] == counts["data/validation_rows_kept"] == 6
    both, _ = made(turns="all")
    assert all(sum(row["loss_mask"]) > len("Bye.") + 2 for row in both)
    alpaca, _ = made(row_format="alpaca", columns={}, turns="all")
    assert {sum(row["loss_mask"]) for row in alpaca} == {len("an answer") + 1}
    with pytest.raises(Exception, match="more than max_tokens=30: raise it"):
        made(max_tokens=30, too_long="error")
    with pytest.raises(DataError, match="of 6 rows 6 dropped .* more than data.max_dropped_share=0.9"):
        made(max_tokens=30, max_dropped_share=0.9)


def test_what_a_template_cannot_render_is_refused_before_anything_starts(tiny_model, tmp_path) -> None:
    chats = write(tmp_path / "a.jsonl", [{"conversations": shared(n)} for n in range(9)])
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}] * 9)
    plain = write(tmp_path / "c.jsonl", [{"prompt": "Q", "completion": "a"}] * 9)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model("llama"), bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    one_turn = tmp_path / "one.jinja"
    one_turn.write_text(
        "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    )
    for job, cls, model, train, more, error, words in (
        (sft, sft.SFTConfig, str(bare), chats, [], ConfigError, "has no chat template, .*chat_template=roles"),
        (sft, sft.SFTConfig, tiny_model("llama"), chats, [f"chat_template={one_turn}"], DataError, "one turn only"),
        (sft, sft.SFTConfig, tiny_model("llama"), chats, ["chat_template=chatml"], ConfigError, "10 tokens"),
        (sft, sft.SFTConfig, tiny_model("llama"), plain, ["chat_template=nosuch"], ConfigError, "neither a file"),
        (sft, sft.SFTConfig, tiny_model("llama"), plain, ["data.turns=last"], ConfigError, "has no conversations"),
        (dpo, dpo.DPOConfig, tiny_model("llama"), pairs, ["data.turns=last"], ConfigError, "no effect on preference"),
        (sft, sft.SFTConfig, tiny_model("llama"), chats, ["data.row_format=alpaca"], DataError, "layout alpaca"),
    ):
        with pytest.raises(error, match=words):
            job.check(load(cls, None, given(tmp_path, model, train, *more)))
    sft.check(load(sft.SFTConfig, None, given(tmp_path, str(bare), chats, "chat_template=roles")))
    sft.check(load(sft.SFTConfig, None, given(tmp_path, tiny_model("llama"), chats, "data.turns=last")))


def test_a_reward_function_is_refused_a_column_that_no_row_has(tiny_model, tmp_path) -> None:
    rows = write(tmp_path / "a.jsonl", [{"question": "number 1 ", "answer": "1"}] * 4)
    keys = {
        "run.name": "r", "run.root": tmp_path, "policy_model": tiny_model("llama"), "prompts.train": rows,
        "prompts.validation": rows, "prompts.max_tokens": 32, "prompts.columns": "{prompt: question}",
        "reward_function": "tests.jobs.rewards:known", "sampling.max_new_tokens": 8,
        "policy.minibatch": 4, "critic.minibatch": 4, "loop.rollout_batch": 4, "loop.evaluation_prompts": 4,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"needs reference beside .*there are answer.*prompts.columns.reference="):
        ppo.check(load(ppo.PPOConfig, None, [f"{key}={value}" for key, value in keys.items()]))
    keys["prompts.columns"] = "{prompt: question, reference: answer}"
    ppo.check(load(ppo.PPOConfig, None, [f"{key}={value}" for key, value in keys.items()]))


def test_a_template_ends_sampling_and_serving(tiny_model, tmp_path) -> None:
    """A template whose answers end with another token than the tokenizer's: engines stop there, and a stage saves it
    for vLLM's server, which reads generation_config.json."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer, save, set_end

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    tokenizer = load_tokenizer(str(folder))
    own = tokenizer.eos_token_id
    assert end_tokens(str(folder)) == [own]
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "!")
    tokenizer.save_pretrained(folder)
    (mark,) = tokenizer("!", add_special_tokens=False)["input_ids"]
    assert end_tokens(str(folder)) == sorted([own, mark])
    model = load_causal_lm(str(folder))
    set_end(model, tokenizer)
    save(model, tokenizer, str(tmp_path / "saved"))
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [mark, own]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id == [mark, own]

    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    with_template(tokenizer, CHATML).save_pretrained(tmp_path / "chatml")
    back = AutoTokenizer.from_pretrained(tmp_path / "chatml")
    assert (
        back.eos_token == "<|im_end|>"
        and back.decode(back("a<|im_end|>")["input_ids"], skip_special_tokens=True) == "a"
    )

    stops = tmp_path / "stops"
    set_end(model, tokenizer, ["\n\nUser:"])
    set_end(model, tokenizer, ["\n\nUser:", "###"])  # by the stage after it
    save(model, tokenizer, str(stops))
    assert stop_strings(str(stops)) == ["\n\nUser:", "###"] and stop_strings(str(folder)) == []
    (stops / "generation_config.json").unlink()
    assert stop_strings(str(stops)) == []

    unchanged = load_causal_lm(tiny_model("llama"))
    before = unchanged.generation_config.to_dict()
    set_end(unchanged, load_tokenizer(tiny_model("llama")))
    assert unchanged.generation_config.to_dict() == before
