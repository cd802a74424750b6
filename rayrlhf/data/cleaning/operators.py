"""From a step's configuration to the function that does it, and the order in which steps can run together."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter

from rayrlhf.data.cleaning.config import (
    CausalPerplexity,
    Decontaminate,
    Keywords,
    NgramPerplexity,
    QualityClassifier,
    Step,
)
from rayrlhf.data.cleaning.verdict import Operator
from rayrlhf.errors import ConfigError

# kind -> the module of this package whose `build` makes it; loaded when a step asks for it
_ROW_STEPS = {
    "repair": "repair",
    "normalise": "normalise",
    "strip_html": "html",
    "language": "language",
    "length": "length",
    "characters": "characters",
    "repetition": "repetition",
    "stop_words": "stop_words",
    "keywords": "keywords",
    "links": "links",
    "ngram_perplexity": "ngram_model",
    "quality_classifier": "classifier",
    "privacy": "privacy",
    "decontaminate": "decontaminate",
}
MODEL_STEPS = ("causal_perplexity",)
GLOBAL_STEPS = ("exact_duplicates", "unit_duplicates", "near_duplicates")


@dataclass(frozen=True)
class Stage:
    """Steps that one pass over the rows does; then `last`, which needs to see all rows, if it is one."""

    rows: tuple[Step, ...]
    model: Step | None
    last: Step | None


def needs_all_rows(step: Step) -> bool:
    """Whether a step decides after it has seen all rows, as `decontaminate` does where it counts matches."""
    return step.kind in GLOBAL_STEPS or (isinstance(step, Decontaminate) and step.max_matches is not None)


def stages(steps: Sequence[Step]) -> list[Stage]:
    """`steps` in as few passes as their order allows: one ends at a step over all rows, one begins with a model."""
    found: list[Stage] = []
    rows: list[Step] = []
    model: Step | None = None
    for step in steps:
        if needs_all_rows(step):
            found.append(Stage(tuple(rows), model, step))
            rows, model = [], None
        elif step.kind in MODEL_STEPS:
            if rows or model is not None or not found:  # the first pass is over rows as they are read
                found.append(Stage(tuple(rows), model, None))
            rows, model = [], step
        else:
            rows.append(step)
    if rows or model is not None or not found:
        found.append(Stage(tuple(rows), model, None))
    return found


def build(step: Step) -> Operator:
    """The function of a step on single rows."""
    module = importlib.import_module(f"rayrlhf.data.cleaning.{_ROW_STEPS[step.kind]}")
    operator: Operator = module.build(step)
    return operator


@lru_cache(maxsize=64)
def built(step: str) -> Operator:
    """`build` of a step as JSON, once a process: models and word lists stay loaded between tasks."""
    return build(_STEP.validate_json(step))


_STEP: TypeAdapter[Step] = TypeAdapter(Step)


def protector(steps: Sequence[Step]) -> Callable[[str], str] | None:
    """What all `privacy` steps do together, for what is shown of a text; None where there is none."""
    operators = [built(step.model_dump_json()) for step in steps if step.kind == "privacy"]

    def protect(text: str) -> str:
        for operator in operators:
            text = str(operator(text))  # they never drop
        return text

    return protect if operators else None


def check(steps: Sequence[Step]) -> None:
    """What the steps on single rows need is there: lists, models, evaluation sets; a UserError otherwise."""
    for step in steps:
        if step.kind in _ROW_STEPS:
            built(step.model_dump_json())
        elif isinstance(step, CausalPerplexity):
            from rayrlhf.model_folder import model_folder
            from rayrlhf.models.causal_lm import check_folder

            context = check_folder(model_folder(step.model))
            if step.max_tokens > context:
                raise ConfigError(
                    f"{step.kind}: max_tokens={step.max_tokens} is above the model's context of {context}"
                )
            if step.max_tokens > step.microbatch_tokens:
                raise ConfigError(
                    f"{step.kind}: a text of max_tokens={step.max_tokens} does not fit "
                    f"microbatch_tokens={step.microbatch_tokens}: raise it"
                )


def inputs(steps: Sequence[Step]) -> dict[str, str]:
    """What the steps read, by the role it has in a stage's lineage."""
    found = {}
    for name, step in zip(names(steps), steps, strict=True):
        if isinstance(step, NgramPerplexity | CausalPerplexity | QualityClassifier):
            found[name] = step.model
        elif isinstance(step, Keywords) and step.path is not None:
            found[name] = step.path
        elif isinstance(step, Decontaminate):
            found |= {f"{name}_{number}": path for number, path in enumerate(step.against)}
    return found


def names(steps: Sequence[Step]) -> list[str]:
    """A name for each step: its kind, numbered where there are several of one."""
    kinds = [step.kind for step in steps]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: place + 1].count(kind)}"
        for place, kind in enumerate(kinds)
    ]
