"""Several answers to one prompt, with a score each."""

from __future__ import annotations

from typing import Any

from rayrlhf.data.messages import answer_text
from rayrlhf.data.rows import PARSED, Row, shortened

RATED = "prompt, responses (a list of answers), scores (a number each)"
RATED_COLUMNS = ("prompt", "responses", "scores")


def is_rated(row: Row) -> bool:
    """Whether the row has these columns."""
    return "prompt" in row and isinstance(row.get("responses"), list) and isinstance(row.get("scores"), list)


def rated_answers(row: Row) -> list[tuple[float, str]]:
    """(score, answer) of a row's answers, the best first, equal ones in their order; ValueError for fewer than two."""
    answers, scores = row["responses"], row["scores"]
    if len(answers) != len(scores) or len(answers) < 2:
        raise ValueError(
            f"responses {shortened(answers)} and scores {shortened(scores)} are to be as many answers as numbers, two "
            "or more"
        )
    numbers = [finite(score, "scores") for score in scores]
    texts = [answer_text(answer, "responses") for answer in answers]
    return sorted(zip(numbers, texts, strict=True), key=lambda pair: -pair[0])


def ranking(row: Row) -> Row:
    """The answers in the order of their scores.  Equal scores say nothing of an order, so of such answers the first
    stays; a row of nothing but equal ones has one text, and is counted as one of equal texts."""
    best: dict[float, str] = {}
    for score, answer in rated_answers(row):
        best.setdefault(score, answer)
    return {"prompt": row["prompt"], "ranked": list(best.values())}


def finite(value: Any, name: str) -> float:
    """A number of the column `name`; ValueError where it is none."""
    read, wanted = PARSED["score"]
    found = read(value)
    if found is None:
        raise ValueError(f"{name} is {shortened(value)}, not {wanted}")
    return float(found)
