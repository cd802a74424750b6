"""Reward functions, named in configurations as tests.jobs.rewards:vowels."""

import itertools
import math
import time

_CALLS = itertools.count(1)


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """How many vowels a response has."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


def spoilt(prompts: list[str], responses: list[str]) -> list[float]:
    """`vowels`, but of a size no loss can take in the fourth call of a process."""
    size = 3e38 if next(_CALLS) == 4 else 1.0
    return [size * (-1) ** n * score for n, score in enumerate(vowels(prompts, responses))]


def unsteady(prompts: list[str], responses: list[str]) -> list[float]:
    """How long a response is, but it hangs, raises or gives NaN on some of the prompts "number N ..."."""
    scores = [float(len(response)) for response in responses]
    for row, prompt in enumerate(prompts):
        match int(prompt.split()[1]) % 8:
            case 0:
                time.sleep(1000)
            case 1:
                raise ZeroDivisionError(prompt)
            case 2:
                scores[row] = math.nan
    return scores


def known(
    prompts: list[str], responses: list[str], reference: list[str], data_source: list[str] | None = None
) -> list[float]:
    """The same, for prompts "... number N ..." whose reference is N; ValueError where one has another's."""
    for row, (prompt, number) in enumerate(zip(prompts, reference, strict=True)):
        if prompt.split("number ")[1].split()[0] != number or (
            data_source is not None and data_source[row] != f"source {number}"
        ):
            raise ValueError(f"{prompt!r} came with the reference {number!r} of {data_source and data_source[row]!r}")
    return vowels(prompts, responses)
