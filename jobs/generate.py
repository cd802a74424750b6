"""`rayrlhf generate STAGE_DIR ["a prompt" ...]`: what a model answers, in this terminal, without a cluster.

Prompts come from the command line, or one a line from standard input.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from jobs import command
from rayrlhf.config import Section
from rayrlhf.model_folder import model_folder, virtual_tokens

if TYPE_CHECKING:
    from cluster.layout import RolePlan

_OPTION = re.compile(r"[A-Za-z_][\w.]*=\S*")


class GenerateConfig(Section):
    """`rayrlhf generate STAGE_DIR ["a prompt" ...] [key=value ...]` answers the prompts, or those that
    standard input gives, one a line.  What follows a `--` is a prompt even if it looks like key=value."""

    model: str = Field(description="a stage directory (runs/NAME/ppo) or a Hugging Face folder; STAGE_DIR sets it")
    max_new_tokens: int = Field(default=64, ge=1, description="longest answer in tokens")
    temperature: float = Field(default=1.0, ge=0, description="divides the logits; 0 takes the likeliest token")
    num_samples: int = Field(default=1, ge=1, description="answers to each prompt")
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end an answer too, besides those of the model's generation_config.json"
    )
    seed: int = Field(default=0, ge=0, description="of the sampling; the same prompts get the same answers")


def check_generates(path: str) -> str:
    """The folder of the language model that `path` means; ModelError where it is none."""
    from rayrlhf.models.causal_lm import check_writes

    folder = model_folder(path, takes_virtual_tokens=True)
    check_writes(folder, path)
    return folder


class Generator:
    """A model and its tokenizer in this process."""

    def __init__(self, config: GenerateConfig) -> None:
        """Raises ModelError when the folder is incomplete."""
        folder = check_generates(config.model)
        import torch

        from actors.engines.base import end_tokens
        from rayrlhf.models.adapters import with_virtual_tokens
        from rayrlhf.models.causal_lm import check_folder, load_causal_lm, load_tokenizer, stop_strings

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # transformers imports DeepSpeed, which otherwise looks for one and says so on standard output
        os.environ.setdefault("DS_ACCELERATOR", self.device)
        self.tokenizer, self.ends = load_tokenizer(folder), end_tokens(folder)
        self.stops = list(dict.fromkeys([*stop_strings(folder), *config.stop_strings]))
        model: Any = load_causal_lm(folder)
        model, num_virtual_tokens = with_virtual_tokens(model, virtual_tokens(config.model))
        self.config, self.context = config, check_folder(folder) - num_virtual_tokens
        self.model = model.to(self.device).eval()
        torch.manual_seed(config.seed)

    def answers(self, prompt: str) -> list[str]:
        """`num_samples` responses without special tokens, each up to the first of the stop strings.

        Raises ConfigError when prompt and response would exceed the context.
        """
        import torch

        from actors.config import check_lengths
        from rayrlhf.data.templates import encode_prompt

        tokens = encode_prompt(self.tokenizer, prompt)
        check_lengths(len(tokens), self.config.max_new_tokens, self.context)
        given = torch.tensor([tokens], device=self.device)
        is_sampled = self.config.temperature > 0
        # transformers would cut the distribution to its 50 likeliest tokens by default
        sampling: dict[str, Any] = {"temperature": self.config.temperature, "top_k": 0, "top_p": 1.0}
        with torch.no_grad():
            found = self.model.generate(
                given.expand(self.config.num_samples, -1),
                attention_mask=torch.ones_like(given).expand(self.config.num_samples, -1),
                max_new_tokens=self.config.max_new_tokens,
                do_sample=is_sampled,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
                stop_strings=self.stops or None,
                tokenizer=self.tokenizer,
                **(sampling if is_sampled else {}),
            )
        texts = self.tokenizer.batch_decode(found[:, len(tokens) :], skip_special_tokens=True)
        return [text[: min((text.find(stop) for stop in self.stops if stop in text), default=None)] for text in texts]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options for the common command line, prompts): STAGE_DIR becomes `model=STAGE_DIR`."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    arguments, after = list(argv[:at]), list(argv[at + 1 :])
    options = [a for a in arguments if _OPTION.fullmatch(a) or a.startswith("-") or a.endswith((".yaml", ".yml"))]
    words = [a for a in arguments if a not in options]
    if words and not any(option.startswith("model=") for option in options):
        options.append(f"model={words.pop(0)}")
    return options, words + after


def typed_prompts() -> Iterator[str]:
    """Lines of standard input; a terminal is asked for them."""
    is_interactive = sys.stdin.isatty()
    while True:
        if is_interactive:
            print("> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def check(config: GenerateConfig) -> None:
    """The folder holds a language model and its tokenizer."""
    check_generates(config.model)


def plan(config: GenerateConfig) -> list[RolePlan]:
    """Nothing is asked of a cluster."""
    return []


def run(config: GenerateConfig, prompts: Iterable[str]) -> None:
    """Print each prompt with its responses, as they are made."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    generator = Generator(config)
    for prompt in prompts:
        for response in generator.answers(prompt):
            console.print(Text(prompt, style="dim"), Text(response), sep="")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options, prompts = split(sys.argv[1:] if argv is None else argv)

    def answer(config: GenerateConfig) -> None:
        run(config, prompts or typed_prompts())

    return command.main("generate", GenerateConfig, check, plan, answer, options, cluster=False)


if __name__ == "__main__":
    sys.exit(main())
