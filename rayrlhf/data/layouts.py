"""The shapes in which data sets write instructions, preferences and prompts, and how each becomes rows of a kind.

A layout knows its rows by columns and by the shape of their values (`fits`), and reads one (`read`, ValueError where
it is wrong).  What it reads is a row of the kind as `rows.COLUMNS` has it, or, for SFT, a conversation:

    messages    [{role, content}, ...], ending with an answer
    num_given   how many of the first ones are given: answers among them are not learnt

Sources of the shapes: TRL's "Dataset formats and types", OpenRLHF's data sets, verl's RL parquet files,
LLaMA-Factory's data/README, Stanford Alpaca.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayrlhf.data.messages import (
    Message,
    are_turns,
    asked,
    before_answer,
    conversation,
    is_turn,
    message,
    up_to_last_answer,
    with_system,
)
from rayrlhf.data.rows import PARSED, Row, shortened

NAMES = ("own", "conversational", "messages", "sharegpt", "alpaca", "input_output", "rated")


@dataclass(frozen=True)
class Layout:
    """One shape of rows for one kind of training."""

    name: str
    expects: str  # the columns, for a message
    columns: tuple[str, ...]  # what it reads; for prompts, all others are passed on
    fits: Callable[[Row], bool]
    read: Callable[[Row], Row]


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


# ------------------------------------------------------------------ conversations that end with an answer


def _conversational_answer(row: Row) -> Row:
    given = asked(row["prompt"], "prompt")
    return _learnt(given + conversation(row["completion"], "completion"), len(given), "completion")


def _conversation_of(column: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        _without_media(row)
        turns = with_system(row, conversation(row[column], column))
        return _learnt(turns, 0, column)

    return read


def _alpaca_answer(row: Row) -> Row:
    given, num_given = _alpaca_prompt(row)
    return _learnt([*given, _answer(text(row, "output"))], num_given, "output")


def _input_output(row: Row) -> Row:
    if isinstance(row["input"], list):
        given = conversation(row["input"], "input")
        return _learnt([*given, _answer(text(row, "output"))], len(given), "output")
    return {"prompt": text(row, "input"), "completion": text(row, "output")}


def _learnt(turns: list[Message], num_given: int, name: str) -> Row:
    turns = up_to_last_answer(turns, name)
    if len(turns) <= num_given:
        raise ValueError(f"{name} has no turn of the assistant, so nothing to learn: {shortened(turns)}")
    return {"messages": turns, "num_given": num_given}


def _answer(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _without_media(row: Row) -> None:
    for name in ("images", "videos", "audios", "image"):
        if row.get(name):
            raise ValueError(
                f"the row has {name} ({shortened(row[name])}): models here read text alone; leave such rows out"
            )


def _alpaca_prompt(row: Row) -> tuple[list[Message], int]:
    """(system, demonstrations, history, the instruction with its input on the next line; how many messages are
    given): history is learnt, as LLaMA-Factory does, demonstrations are not."""
    _without_media(row)
    instruction, more = text(row, "instruction"), text(row, "input", "")
    turns: list[Message] = []
    for shown in row.get("demonstrations") or []:
        if not (isinstance(shown, dict) and text_columns(shown, "output")):
            raise ValueError(f"demonstrations holds {shortened(shown)}; expected objects with input and output")
        turns += [_instruction(instruction, text(shown, "input", "")), _answer(text(shown, "output"))]
    num_given = len(turns)
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"history holds {shortened(pair)}; expected [instruction, answer] pairs of strings")
        turns += [{"role": "user", "content": pair[0]}, _answer(pair[1])]
    turns = with_system(row, [*turns, _instruction(instruction, more)])
    return turns, num_given + (turns[0]["role"] == "system") if num_given else 0


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
        "input (a string or messages), output",
        ("input", "output"),
        lambda row: "input" in row and text_columns(row, "output") and "instruction" not in row,
        _input_output,
    ),
)  # fmt: skip


def single_answer(layout: Layout, column: str) -> Layout:
    """`layout` for a kind that judges one answer: its last, with the label or number in `column`."""

    def read(row: Row) -> Row:
        found, value = layout.read(row), parsed_column(row, column)
        if "messages" in found:
            *given, last = found["messages"]
            if not given:
                raise ValueError(f"an answer without a question: {shortened(found['messages'])}")
            found = {"prompt": given, "completion": last["content"]}
        return found | {column: value}

    fits = layout.fits
    expects = f"{layout.expects}; and {column}"
    columns = (*layout.columns, column)
    return Layout(layout.name, expects, columns, lambda row: column in row and fits(row), read)


# ------------------------------------------------------------------ pairs


def _conversational_pair(row: Row) -> Row:
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        return implicit_prompt(row["chosen"], row["rejected"])
    given = asked(row["prompt"], "prompt") if row.get("prompt") else []
    sides = []
    for name in ("chosen", "rejected"):
        turns = conversation(row[name], name)
        # UltraFeedback and others give the prompt, and again the whole conversation on each side
        sides.append(turns if _starts_with(turns, given) else given + turns)
    return _pair(*sides)


def _pair_after(column: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        _without_media(row)
        turns = with_system(row, conversation(row[column], column))
        return _pair(*([*turns, message(row[name], name)] for name in ("chosen", "rejected")))

    return read


def _alpaca_pair(row: Row) -> Row:
    prompt, _ = _alpaca_prompt(row)
    return {"prompt": prompt, "chosen": text(row, "chosen"), "rejected": text(row, "rejected")}


def _input_pair(row: Row) -> Row:
    return {"prompt": text(row, "input"), "chosen": text(row, "chosen"), "rejected": text(row, "rejected")}


def _starts_with(turns: list[Message], given: list[Message]) -> bool:
    return len(turns) > len(given) and turns[: len(given)] == given


def _pair(chosen: list[Message], rejected: list[Message]) -> Row:
    """Two conversations that differ in their last answer alone, as prompt and answers."""
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise ValueError(
            "chosen and rejected are to be the same conversation but for one last answer; their turns before it are "
            f"{shortened(chosen[:-1])} and {shortened(rejected[:-1])}"
        )
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise ValueError(
                f"{name} ends with a turn of the {turns[-1]['role']}, not of the assistant: {shortened(turns)}"
            )
    return {"prompt": chosen[:-1], "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}


def implicit_prompt(chosen: str, rejected: str) -> Row:
    """Two texts with a common beginning, which is the prompt.  It ends before a word that only one of them has in
    full, and before the space in front of it, which belongs to the completion."""
    end = 0
    while end < min(len(chosen), len(rejected)) and chosen[end] == rejected[end]:
        end += 1
    while 0 < end < max(len(chosen), len(rejected)) and (_joins(chosen, end) or _joins(rejected, end)):
        end -= 1
    if end and chosen[end - 1] == " ":
        end -= 1
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _joins(whole: str, place: int) -> bool:
    """Whether a word goes on across `place`; scripts without spaces have no words here."""
    return 0 < place < len(whole) and all(
        letter.isalnum() and ord(letter) < 0x2E80 for letter in whole[place - 1 : place + 1]
    )


def _are_whole_sides(row: Row) -> bool:
    """Whether both sides are messages, or are strings and no other column may be their prompt."""
    if isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        return True
    prompts = {"prompt", "instruction", "input", "messages", "conversations"}
    return text_columns(row, "chosen", "rejected") and not prompts & row.keys()


PAIRS = (
    Layout(
        "conversational",
        "chosen and rejected as messages, with or without prompt; or as strings with a common beginning",
        ("prompt", "chosen", "rejected"),
        _are_whole_sides,
        _conversational_pair,
    ),
    Layout(
        "messages",
        "messages, and chosen and rejected as one {role, content} each",
        ("messages", "chosen", "rejected", "system"),
        lambda row: are_turns(row.get("messages")) and is_turn(row.get("chosen")) and is_turn(row.get("rejected")),
        _pair_after("messages"),
    ),
    Layout(
        "sharegpt",
        "conversations, and chosen and rejected as one {from, value} each",
        ("conversations", "chosen", "rejected", "system"),
        lambda row: are_turns(row.get("conversations")) and is_turn(row.get("chosen")) and is_turn(row.get("rejected")),
        _pair_after("conversations"),
    ),
    Layout(
        "alpaca",
        "instruction, chosen, rejected; input, system, history where there are any",
        ("instruction", "input", "chosen", "rejected", "system", "history", "demonstrations"),
        lambda row: text_columns(row, "instruction", "chosen", "rejected"),
        _alpaca_pair,
    ),
    Layout(
        "input_output",
        "input, chosen, rejected as strings",
        ("input", "chosen", "rejected"),
        lambda row: text_columns(row, "input", "chosen", "rejected") and not {"instruction", "prompt"} & row.keys(),
        _input_pair,
    ),
)  # fmt: skip


def with_margin(layout: Layout) -> Layout:
    """`layout` with the number `margin` beside each pair."""

    def read(row: Row) -> Row:
        return layout.read(row) | {"margin": parsed_column(row, "margin")}

    fits, expects = layout.fits, f"{layout.expects}; and margin"
    return Layout(layout.name, expects, (*layout.columns, "margin"), lambda row: "margin" in row and fits(row), read)


# ------------------------------------------------------------------ rankings and prompts


def _rated(row: Row) -> Row:
    """Answers in the order of their scores, the best first.  Equal scores say nothing of an order."""
    answers, scores = row["responses"], row["scores"]
    numbers = [PARSED["score"][0](score) for score in scores]
    if (
        len(answers) != len(numbers)
        or len(answers) < 2
        or None in numbers
        or not all(isinstance(a, str) for a in answers)
    ):
        raise ValueError(
            f"responses {shortened(answers)} and scores {shortened(scores)} are to be as many strings as finite "
            "numbers, two or more"
        )
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"scores {shortened(scores)} has equal numbers, which are no ranking: leave one of such answers out"
        )
    ranked = sorted(zip(numbers, answers, strict=True), key=lambda pair: -pair[0])
    return {"prompt": row["prompt"], "ranked": [answer for _, answer in ranked]}


RANKINGS = (
    Layout(
        "rated",
        "prompt, responses (a list of strings), scores (a number each)",
        ("prompt", "responses", "scores"),
        lambda row: "prompt" in row and isinstance(row.get("responses"), list) and isinstance(row.get("scores"), list),
        _rated,
    ),
)  # fmt: skip


def _prompt_of(column: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        _without_media(row)
        return {"prompt": before_answer(with_system(row, conversation(row[column], column)))}

    return read


def _alpaca_only_prompt(row: Row) -> Row:
    return {"prompt": _alpaca_prompt(row)[0]}


def _input(row: Row) -> Row:
    return {"prompt": row["input"] if isinstance(row["input"], str) else conversation(row["input"], "input")}


PROMPTS = (
    Layout(
        "messages",
        "messages",
        ("messages", "system"),
        lambda row: are_turns(row.get("messages")),
        _prompt_of("messages"),
    ),
    Layout(
        "sharegpt",
        "conversations",
        ("conversations", "system"),
        lambda row: are_turns(row.get("conversations")),
        _prompt_of("conversations"),
    ),
    Layout(
        "alpaca",
        "instruction; input, system, history where there are any",
        ("instruction", "input", "system", "history", "demonstrations"),
        lambda row: text_columns(row, "instruction"),
        _alpaca_only_prompt,
    ),
    Layout(
        "input_output",
        "input (a string or messages)",
        ("input",),
        lambda row: "input" in row and "instruction" not in row,
        _input,
    ),
)  # fmt: skip

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "text": (),
    "prompt_completion": ANSWERS,
    "preference": PAIRS,
    "preference_margin": tuple(map(with_margin, PAIRS)),
    "ranking": RANKINGS,
    "scored": tuple(single_answer(layout, "score") for layout in ANSWERS),
    "labelled": tuple(single_answer(layout, "label") for layout in ANSWERS),
    "prompts": PROMPTS,
}
