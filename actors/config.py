"""How responses are sampled, and the engine that samples them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.errors import ConfigError


class SamplingConfig(Section):
    """The sampling distribution: softmax(logits / temperature), whole, until an end token, a stop string or the limit.

    There is no top-p, top-k, penalty or minimum length on purpose: log-probabilities of the
    sampled tokens must equal the trainer's.
    """

    temperature: float = Field(default=1.0, gt=0, description="Divides the logits, in sampling and in training.")
    max_new_tokens: int = Field(default=48, ge=1, description="Longest response, in tokens with its end token.")
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="Texts that end a response too, besides those of the model's generation_config.json; they are "
        "part of it, as the end token is.",
    )

    @property
    def is_greedy(self) -> bool:
        return False


class EvaluationSamplingConfig(SamplingConfig):
    """How responses are sampled where nothing is learnt from them."""

    greedy: bool = Field(
        default=False,
        description="Take the most probable token each time; kl and perplexity are then of these tokens, no estimates.",
    )

    @property
    def is_greedy(self) -> bool:
        return self.greedy


class RolloutConfig(Section):
    """The engine inside each rollout actor."""

    engine: Literal["vllm", "transformers"] = Field(
        default="vllm", description="vllm, or its slow twin transformers (the same protocol, plain PyTorch)."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the engine's weights; on CPUs keep float32."
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Room for prompt plus response, in tokens; null: the model's context."
    )
    kv_cache_gib: float = Field(default=1.0, gt=0, description="Memory of the KV cache in GiB (vllm).")
    tensor_parallel: int = Field(default=1, ge=1, description="Processes that share one engine's weights (vllm).")
    enforce_eager: bool = Field(
        default=True, description="False: compile, and on GPUs capture graphs; samples faster, starts slower (vllm)."
    )

    @model_validator(mode="after")
    def _of_vllm(self) -> RolloutConfig:
        if self.engine == "transformers" and (self.tensor_parallel > 1 or not self.enforce_eager):
            raise ValueError("tensor_parallel and enforce_eager are vLLM's and have no effect with engine=transformers")
        return self


def check_lengths(prompt_max: int, max_new_tokens: int, context: int, prompt_key: str | None = None) -> None:
    """Raises ConfigError unless the longest prompt (which the configuration's `prompt_key` bounds, where one
    does) and the longest response fit the model's context."""
    if prompt_max + max_new_tokens <= context:
        return
    room, longest = context - prompt_max, max(1, context - max_new_tokens)
    shorter = f"set {prompt_key} to at most {longest}" if prompt_key else f"shorten the prompts to {longest} tokens"
    ways_out = [f"set max_new_tokens to at most {room}", shorter] if room > 0 else [shorter]
    raise ConfigError(
        f"a prompt of {prompt_max} tokens and a response of {max_new_tokens} make {prompt_max + max_new_tokens}, but "
        f"the model's context is {context}; {', '.join(ways_out)}, or take a model with a longer context"
    )


def check_one_source(reward_model: str | None, reward_function: str | None) -> None:
    """Raises ValueError unless scores come from exactly one of the two."""
    if (reward_model is None) == (reward_function is None):
        raise ValueError(
            f"scores come from one source: reward_model is {reward_model}, reward_function {reward_function}; set one"
        )
