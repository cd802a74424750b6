"""Layouts of pairs: one conversation with two last answers, of which one is better."""

from __future__ import annotations

from collections.abc import Callable

from rayrlhf.data.answer_layouts import Layout, alpaca_prompt, parsed_column, text, text_columns, without_media
from rayrlhf.data.messages import Message, are_turns, asked, conversation, is_turn, message, with_system
from rayrlhf.data.rows import Row, shortened


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
        without_media(row)
        turns = with_system(row, conversation(row[column], column))
        return _pair(*([*turns, message(row[name], name)] for name in ("chosen", "rejected")))

    return read


def _alpaca_pair(row: Row) -> Row:
    prompt, _ = alpaca_prompt(row)
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
