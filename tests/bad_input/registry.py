"""A mistake, how it is made, and what its message must say; the areas in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bad_input.workshop import Answer, Workshop

AREAS = ("command line", "config", "data", "models", "checkpoints", "cluster", "server")


@dataclass(frozen=True)
class Case:
    """`wrong`: as a user would say it; `says`: the values and the remedy, in these words; `code`: exit code, or HTTP
    status of a request."""

    wrong: str
    provoke: Callable[[Workshop], Answer]
    says: tuple[str, ...]
    code: int = 2


SFT = ("sft", "run.name=mine", "model=llama", "data.train=sft.jsonl", "data.max_tokens=64")
REWARD = ("reward_model", "run.name=mine", "model=llama", "data.train=pairs.jsonl", "data.max_tokens=64")
DPO = ("dpo", *REWARD[1:])
PRETRAIN = ("pretrain", "run.name=mine", "model.tokenizer=llama", "data.train=texts.jsonl", "data.max_tokens=64")
PPO = (
    *("ppo", "run.name=mine", "policy_model=llama", "reward_model=judge", "prompts.train=prompts.jsonl"),
    *("prompts.validation=prompts.jsonl", "prompts.max_tokens=64", "loop.evaluation_prompts=50"),
)
EVALUATE = (
    *("evaluate", "run.name=mine", "policy=llama", "baseline=llama", "base=llama", "reward_model=judge"),
    *("prompts=prompts.jsonl", "max_prompt_tokens=64", "num_prompts=50"),
)
GOOD = (SFT, REWARD, DPO, PRETRAIN, PPO, EVALUATE)  # nothing is wrong with these: they get as far as a cluster


def given(*argv: str, **environment: str) -> Callable[[Workshop], Answer]:
    """A command line that is wrong by itself."""
    return lambda here: here.run(*argv, **environment)


def without(argv: tuple[str, ...], *keys: str) -> tuple[str, ...]:
    """`argv` without the settings of these keys."""
    return tuple(one for one in argv if one.partition("=")[0] not in keys)


def file(name: str, content: str | bytes | list, *argv: str) -> Callable[[Workshop], Answer]:  # type: ignore[type-arg]
    """A file is wrong, and the command line names it."""

    def provoke(here: Workshop) -> Answer:
        here.write(name, content)
        return here.run(*argv)

    return provoke
