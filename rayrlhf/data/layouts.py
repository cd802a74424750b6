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
from rayrlhf.data.pair_layouts import PAIRS, with_margin
from rayrlhf.data.rows import PARSED, Row, shortened


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
    "preference_margin": tuple(map(with_margin, PAIRS)),
    "ranking": RANKINGS,
    "scored": tuple(single_answer(layout, "score") for layout in ANSWERS),
    "labelled": tuple(single_answer(layout, "label") for layout in ANSWERS),
    "prompts": PROMPTS,
}
