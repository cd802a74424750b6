"""The reward of the GRPO rows: the same count of letters for both sides."""

from __future__ import annotations

from typing import Any


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """Share of vowels among each response's characters, 0 for none."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in responses]


def trl_vowels(completions: list[str], **columns: Any) -> list[float]:
    """The same as TRL calls it."""
    return vowels([], completions)
