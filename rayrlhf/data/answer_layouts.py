"""Layouts of answers: a question or a conversation and what the assistant says to it.

messages    [{role, content}, ...], ending with an answer
num_given   how many of the first ones are given: answers among them are not learnt
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayrlhf.data.messages import (
    Message,
    answer_text,
    are_turns,
    asked,
    conversation,
    is_turn,
    message,
    up_to_last_answer,
    with_system,
)
from rayrlhf.data.rows import PARSED, Row, shortened


@dataclass(frozen=True)
class Layout:
    """One shape of rows for one kind of training."""

    name: str
    expects: str  # the columns, for a message
    columns: tuple[str, ...]  # what it reads; for prompts, all others are passed on
    fits: Callable[[Row], bool]
    read: Callable[[Row], Row]
    is_clear: Callable[[Row], bool] | None = None  # whether it is meant where nobody says so; None: where it fits

    def is_meant(self, row: Row) -> bool:
        """Whether a row shows that its file has this layout."""
        return (self.is_clear or self.fits)(row)


def text_columns(row: Row, *names: str) -> bool:
    """Whether the row has these columns and none is a list or an object."""
    return all(name in row and not isinstance(row[name], list | dict) for name in names)


def text(row: Row, name: str, default: str | None = None) -> str:
    """A column that is a string; `default` where the row has none (absent or null)."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shortened(value)} ({type(value).__name__}), not a string")
    return value


def parsed_column(row: Row, name: str) -> Any:
    """A label or a number; ValueError where it is none."""
    read, wanted = PARSED[name]
    value = read(row.get(name))
    if value is None:
        raise ValueError(f"{name} is {shortened(row.get(name))}, not {wanted}")
    return value


def _conversational_answer(row: Row) -> Row:
    given = asked(row["prompt"], "prompt")
    return _learnt(given + conversation(row["completion"], "completion"), len(given), "completion")


def _conversation_of(column: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        without_media(row)
        turns = with_system(row, conversation(row[column], column))
        unlearnt = _num_unlearnt(row[column], column)
        return _learnt(turns, unlearnt and unlearnt + len(turns) - len(row[column]), column)

    return read


def _num_unlearnt(turns: list[Any], name: str) -> int:
    """How many turns stand before the first that is learnt: OpenAI's `weight` 0 leaves answers out."""
    answers = [place for place, turn in enumerate(turns) if message(turn, name)["role"] == "assistant"]
    weights = [turns[place].get("weight") for place in answers]
    left_out = [place for place, weight in zip(answers, weights, strict=True) if weight == 0]
    if any(weight not in (None, 0, 1) for weight in weights) or left_out != answers[: len(left_out)]:
        raise ValueError(
            f"{name} has the weights {weights} on its answers: 0 (not learnt) and 1 are taken, the 0s first. "
            f"{shortened(turns)}"
        )
    return left_out[-1] + 1 if left_out else 0


def _alpaca_answer(row: Row) -> Row:
    given, num_given = alpaca_prompt(row)
    return _learnt([*given, _answer(text(row, "output"))], num_given, "output")


def _input_output(row: Row) -> Row:
    if isinstance(row["input"], list) or isinstance(row["output"], list):
        given = asked(row["input"], "input")
        return _learnt([*given, _answer(answer_text(row["output"], "output"))], len(given), "output")
    return {"prompt": text(row, "input"), "completion": text(row, "output")}


def _learnt(turns: list[Message], num_given: int, name: str) -> Row:
    turns = up_to_last_answer(turns, name)
    if len(turns) <= num_given:
        raise ValueError(f"{name} has no turn of the assistant, so nothing to learn: {shortened(turns)}")
    return {"messages": turns, "num_given": num_given}


def _answer(content: str) -> Message:
    return {"role": "assistant", "content": content}


def without_media(row: Row) -> None:
    for name in ("images", "videos", "audios", "image"):
        if row.get(name):
            raise ValueError(
                f"the row has {name} ({shortened(row[name])}): models here read text alone; leave such rows out"
            )
    if row.get("tools") not in (None, "", "[]", []):
        raise ValueError(
            f"the row has tools ({shortened(row['tools'])}): tool calls are not supported; leave such rows out"
        )


def alpaca_prompt(row: Row) -> tuple[list[Message], int]:
    """(system, demonstrations, history, the instruction with its input on the next line; how many messages are
    given): history is learnt, as LLaMA-Factory does, demonstrations are not."""
    without_media(row)
    instruction, more = text(row, "instruction"), text(row, "input", "")
    turns: list[Message] = []
    for shown in _listed(row, "demonstrations"):
        if not (isinstance(shown, dict) and text_columns(shown, "output")):
            raise ValueError(f"demonstrations holds {shortened(shown)}; expected objects with input and output")
        turns += [_instruction(instruction, text(shown, "input", "")), _answer(text(shown, "output"))]
    num_given = len(turns)
    for pair in _listed(row, "history"):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"history holds {shortened(pair)}; expected [instruction, answer] pairs of strings")
        turns += [{"role": "user", "content": pair[0]}, _answer(pair[1])]
    turns = with_system(row, [*turns, _instruction(instruction, more)])
    return turns, num_given + (turns[0]["role"] == "system") if num_given else 0


def _listed(row: Row, name: str) -> list[Any]:
    """A column that is a list, or null, or not there."""
    value = row.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f"{name} is {shortened(value)} ({type(value).__name__}), not a list")
    return value


def _instruction(instruction: str, more: str) -> Message:
    return {"role": "user", "content": f"{instruction}\n{more}" if more else instruction}


ANSWERS = (
    Layout(
        "conversational",
        "prompt (a string or messages) and completion (messages)",
        ("prompt", "completion"),
        lambda row: "prompt" in row and isinstance(row.get("completion"), list),
        _conversational_answer,
    ),
    Layout(
        "messages",
        "messages (a list of {role, content})",
        ("messages", "system"),
        lambda row: are_turns(row.get("messages")) and not is_turn(row.get("chosen")),
        _conversation_of("messages"),
    ),
    Layout(
        "sharegpt",
        "conversations (a list of {from, value})",
        ("conversations", "system"),
        lambda row: are_turns(row.get("conversations")) and not is_turn(row.get("chosen")),
        _conversation_of("conversations"),
    ),
    Layout(
        "alpaca",
        "instruction, output; input, system, history, demonstrations where there are any",
        ("instruction", "input", "output", "system", "history", "demonstrations"),
        lambda row: text_columns(row, "instruction", "output"),
        _alpaca_answer,
    ),
    Layout(
        "input_output",
        "input (a string or messages), output (a string or a message)",
        ("input", "output"),
        lambda row: "input" in row and "output" in row and "instruction" not in row,
        _input_output,
    ),
)  # fmt: skip


def single_answer(layout: Layout, column: str) -> Layout:
    """`layout` for a kind that judges one answer: its last, with the label or number in `column` (a label also in
    LLaMA-Factory's `kto_tag`)."""
    names = (column, "kto_tag") if column == "label" else (column,)

    def read(row: Row) -> Row:
        name = next(name for name in names if name in row)
        found, value = layout.read(row), parsed_column(row | {column: row[name]}, column)
        if "messages" in found:
            *given, last = found["messages"]
            if not given:
                raise ValueError(f"an answer without a question: {shortened(found['messages'])}")
            found = {"prompt": given, "completion": last["content"]}
        return found | {column: value}

    fits = layout.fits
    expects = f"{layout.expects}; and {column}"
    columns = (*layout.columns, *names)
    return Layout(layout.name, expects, columns, lambda row: any(name in row for name in names) and fits(row), read)
