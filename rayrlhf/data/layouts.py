"""The shapes in which data sets write instructions, preferences and prompts, and how each becomes rows of a kind.

A layout knows its rows by columns and by the shape of their values (`fits`), and reads one (`read`, ValueError where
it is wrong).  What it reads is a row of the kind as `rows.COLUMNS` has it, or, for SFT, a conversation (see
answer_layouts.py).

Sources of the shapes: TRL's "Dataset formats and types", OpenRLHF's data sets, verl's RL parquet files,
LLaMA-Factory's data/README, Stanford Alpaca.
"""

from __future__ import annotations

from collections.abc import Callable

from rayrlhf.data.answer_layouts import ANSWERS, Layout, alpaca_prompt, single_answer, text_columns, without_media
from rayrlhf.data.messages import are_turns, before_answer, conversation, with_system
from rayrlhf.data.pair_layouts import MARGINS, PAIRS
from rayrlhf.data.ratings import RATED, RATED_COLUMNS, is_rated, ranking
from rayrlhf.data.rows import Row

RANKINGS = (
    Layout("rated", f"{RATED}, of equal ones the first stays", RATED_COLUMNS, is_rated, ranking),
)  # fmt: skip


def _prompt_of(column: str) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        without_media(row)
        return {"prompt": before_answer(with_system(row, conversation(row[column], column)))}

    return read


def _alpaca_only(row: Row) -> Row:
    return {"prompt": alpaca_prompt(row)[0]}


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
        _alpaca_only,
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
    "preference_margin": MARGINS,
    "ranking": RANKINGS,
    "scored": tuple(single_answer(layout, "score") for layout in ANSWERS),
    "labelled": tuple(single_answer(layout, "label") for layout in ANSWERS),
    "prompts": PROMPTS,
}
