"""Layouts of pairs: one conversation with two last answers, of which one is better."""

from __future__ import annotations

from collections.abc import Callable

from rayrlhf.data.answer_layouts import Layout, alpaca_prompt, parsed_column, text, text_columns, without_media
from rayrlhf.data.messages import Message, are_turns, asked, conversation, is_turn, message, with_system
from rayrlhf.data.ratings import RATED, RATED_COLUMNS, finite, is_rated, rated_answers
from rayrlhf.data.rows import Row, shortened


def _conversational_pair(row: Row) -> Row:
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


def _implicit_pair(row: Row) -> Row:
    found = implicit_prompt(text(row, "chosen"), text(row, "rejected"))
    if not found["prompt"]:
        raise ValueError(
            f"chosen and rejected have no common beginning, which would be the prompt: {shortened(row['chosen'])} and "
            f"{shortened(row['rejected'])}. Where a column holds it, name it: data.columns.prompt=question"
        )
    return found


def _are_alone(row: Row) -> bool:
    """Whether both sides are strings, and no other column is, which might be their prompt."""
    others = [value for name, value in row.items() if name not in ("chosen", "rejected")]
    return text_columns(row, "chosen", "rejected") and not any(isinstance(value, str | list) for value in others)


def _rated_pair(row: Row) -> Row:
    """The best and the worst answer; of equal ones no pair comes (it is counted as one of equal texts)."""
    rated = rated_answers(row)
    best, worst = rated[0], rated[-1]
    return {"prompt": row["prompt"], "chosen": best[1], "rejected": worst[1] if worst[0] < best[0] else best[1]}


PAIRS = (
    Layout(
        "conversational",
        "chosen and rejected as messages, with or without prompt",
        ("prompt", "chosen", "rejected"),
        lambda row: isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list),
        _conversational_pair,
    ),
    Layout(
        "implicit_prompt",
        "chosen and rejected as strings with a common beginning, the prompt",
        ("chosen", "rejected"),
        lambda row: text_columns(row, "chosen", "rejected") and "prompt" not in row,
        _implicit_pair,
        _are_alone,
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
    Layout("rated", f"{RATED}; the best and the worst make a pair", RATED_COLUMNS, is_rated, _rated_pair),
)  # fmt: skip
_COLUMNS = tuple(dict.fromkeys(name for layout in PAIRS for name in layout.columns))


def with_margin(layout: Layout) -> Layout:
    """`layout` with the number `margin` beside each pair."""

    def read(row: Row) -> Row:
        return layout.read(row) | {"margin": parsed_column(row, "margin")}

    fits, expects = layout.fits, f"{layout.expects}; and margin"
    return Layout(layout.name, expects, (*layout.columns, "margin"), lambda row: "margin" in row and fits(row), read)


_SIDES = ("chosen", "rejected")
_SCORED = ("score_chosen", "score_rejected")


def _scored_pair(row: Row) -> Row:
    chosen, rejected = (finite(row[name], name) for name in _SCORED)
    read = next((layout.read for layout in PAIRS if layout.fits(row)), None)
    found = read(row) if read is not None else {"prompt": row.get("prompt")} | {n: text(row, n) for n in _SIDES}
    return found | {"margin": chosen - rejected}


def _rated_margin(row: Row) -> Row:
    rated = rated_answers(row)
    return _rated_pair(row) | {"margin": rated[0][0] - rated[-1][0]}


MARGINS = (
    *(with_margin(layout) for layout in PAIRS if layout.name != "rated"),
    Layout(
        "scored",
        "chosen and rejected in any of these ways, and score_chosen, score_rejected, whose difference is the margin",
        (*_COLUMNS, *_SCORED),
        lambda row: all(name in row for name in (*_SCORED, *_SIDES)) and "margin" not in row,
        _scored_pair,
    ),
    Layout("rated", RATED, RATED_COLUMNS, is_rated, _rated_margin),
)  # fmt: skip
