"""docs/bad_input.md: every mistake of the registry, made, with the message that it got."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.bad_input.registry import AREAS, Case
from tests.bad_input.workshop import Answer, Workshop

_HEAD = """# Bad input

Made by `python -m tests.bad_input > docs/bad_input.md`, which makes every mistake below and takes down the answer;
a test compares the two, and that nothing was started before it.

What was wrong, and what rayrlhf says, {number} times. On the command line a message goes to stderr, without a
traceback, and the exit code is 2; a request to a server gets the status that stands before the message, and OpenAI's
form of an error. `llama` (a language model with a context of 128 tokens) and `judge` (a reward model) are folders,
`sft.jsonl` and the like are files with 80 rows, `runs/done/sft` is a finished stage, and the machine has 4 CPUs and
20 GiB. Search for the words of a message that do not depend on your values. What can be known only while rows are
read or a model runs is refused in the same form, later."""

_TITLES = {"server": "Requests to a server"}
_MOST = 900  # characters of a message that are shown


def cases() -> list[tuple[str, Case]]:
    """(area, mistake), in the order of the table."""
    found = []
    for area in AREAS:
        module = importlib.import_module(f"tests.bad_input.cases_{area.replace(' ', '_')}")
        found += [(area, case) for case in module.CASES]
    return found


def answers(opened: Callable[[], AbstractContextManager[Workshop]]) -> list[Answer]:
    """What each mistake gets."""
    found = []
    for _, case in cases():
        with opened() as workshop:
            found.append(case.provoke(workshop))
    return found


def document(found: list[Answer]) -> str:
    """The page of these answers."""
    listed = list(zip(cases(), found, strict=True))
    lines = [_HEAD.format(number=len(listed))]
    for area in AREAS:
        title = _TITLES.get(area, area.capitalize())
        lines += ["", f"## {title}", "", "| what was wrong | what rayrlhf says |", "|---|---|"]
        for (of, case), answer in listed:
            if of == area:
                status = f"{answer.code}: " if area == "server" else ""
                lines.append(f"| {case.wrong} | {status}{_cell(answer.message.removeprefix('error: '))} |")
    return "\n".join(lines) + "\n"


def _cell(message: str) -> str:
    """A message in one cell: its lines, its characters as they are."""
    shown = message if len(message) <= _MOST else f"{message[:_MOST]} ..."
    for letter in "&<>":
        shown = shown.replace(letter, {"&": "&amp;", "<": "&lt;", ">": "&gt;"}[letter])
    for letter in "|*":  # no more, so that a message can be searched for
        shown = shown.replace(letter, f"\\{letter}")
    return "<br>".join(line.strip() for line in shown.splitlines() if line.strip())
