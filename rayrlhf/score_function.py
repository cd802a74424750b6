"""A score that a Python function gives, named `module:function` in the config."""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from rayrlhf.errors import ConfigError

ScoreFunction = Callable[..., list[float]]

ALL: tuple[str, ...] = ("*",)  # the columns of a function with **keywords


def columns_of(name: str, key: str = "reward_function") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(columns of the prompts' rows that the function asks for, those of them that it cannot do without): its
    parameters after prompts and responses; ALL and none for `**keywords`.  Raises ConfigError as `load_function`."""
    _check_callable(name, key)
    return parameters_of(find_function(name, key))


def parameters_of(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As `columns_of`, of a function itself."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        asked = ALL
    else:
        asked = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return asked, tuple(p.name for p in named if p.default is p.empty)


def load_function(name: str, key: str = "gold") -> ScoreFunction:
    """The function `f(prompts, responses, **columns) -> one float a response` that `module:function` names in the
    configuration's `key`; `columns` are as `columns_of` says.

    What it returns is checked at each call: ConfigError on another number of scores or on one that
    is not finite.  ConfigError here when the module cannot be imported or has no such function.
    """
    function = find_function(name, key)
    _check_callable(name, key)

    def checked(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        scores = [float(score) for score in function(prompts, responses, **columns)]
        if len(scores) != len(responses):
            raise ConfigError(
                f"{name} returned {len(scores)} scores for {len(responses)} responses; it must give one for each"
            )
        bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
        if bad:
            raise ConfigError(
                f"{name} returned {scores[bad[0]]} for response {bad[0]}, {responses[bad[0]][:80]!r}; "
                "scores must be finite"
            )
        return scores

    return checked


def number(value: Any) -> float | str:
    """`value` as a float where it is a real number: int, float, a numpy scalar, a tensor without dimensions, a bool
    (right or wrong: 1 or 0); the text that shows it where it is none."""
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, numbers.Real):
        return f"{repr(value)[:80]}, which is of type {type(value).__name__}"
    try:
        return float(value)
    except OverflowError:  # an int that no float holds
        return math.inf


def find_function(name: str, key: str) -> Callable[..., Any]:
    """The function itself, whose answers nobody checks; ConfigError as `load_function`."""
    module_name, separator, function_name = name.partition(":")
    if not (module_name and separator and function_name):
        raise ConfigError(f"{key}={name!r} is not of the form module:function, such as rayrlhf.data.demo:gold")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"{key}={name!r}: cannot import {module_name} ({type(error).__name__}: {error}). Install or mend it, or "
            "put its folder on PYTHONPATH."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{key}={name!r}: {module_name} has no function {function_name}")
    return function


def _check_callable(name: str, key: str) -> None:
    """ConfigError where the function cannot be called with prompts and responses."""
    try:
        inspect.signature(find_function(name, key)).bind_partial([], [])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}={name!r} cannot be called with prompts and responses ({error}): write def "
            f"{name.partition(':')[2]}(prompts, responses) -> a score for each response"
        ) from error


def source_file(name: str) -> str:
    """The file of the module in `module:function`; the module's name where Python finds none."""
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    return found.origin if found is not None and found.origin else module
