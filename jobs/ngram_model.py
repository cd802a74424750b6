"""Train an n-gram model on good text, for the cleaning step `ngram_perplexity`.

runs/NAME/ngram_model/step_000000/model/ngrams.npz
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.data.config import Format
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan

KIND = "ngram_model"


class NgramModelConfig(Section):
    """A character n-gram model (Witten-Bell) of texts as they should be."""

    run: RunConfig = Field(description="which run this is")
    data: str = Field(min_length=1, description="good text: a file, a folder, a glob or hf://name[[:config]:split]")
    format: Format = Field(default="auto", description="how files are read; auto goes by their extension")
    order: int = Field(default=5, ge=2, le=10, description="characters an n-gram: the predicted one and its history")
    min_count: int = Field(default=1, ge=1, description="n-grams of 3 and more seen less often are left out")
    validation_share: float = Field(
        default=0.05, gt=0, lt=1, description="share of the texts held out, by a hash, to measure the perplexity"
    )


def parents(config: NgramModelConfig) -> dict[str, str]:
    """What this stage is made from."""
    return {"data": config.data}


def check(config: NgramModelConfig) -> None:
    """The texts are there; DataError otherwise."""
    from rayrlhf.data.cleaning import reading

    reading.check(config.data, reading.Reading(config.format), max_bad_rows=0)


def plan(config: NgramModelConfig) -> list[RolePlan]:
    """No actors: Ray Data's own tasks read, this process counts."""
    return []


def run(config: NgramModelConfig) -> str:
    """Write the stage; returns its directory.  Ray is connected."""
    from rayrlhf.checkpoint import StageWriter
    from rayrlhf.data.cleaning import ngram_model, texts
    from rayrlhf.errors import DataError
    from rayrlhf.lineage import claim

    root, made_from = config.run.stage(KIND), parents(config)
    claim(root, config, made_from)
    writer = StageWriter(root, step=0)
    model = ngram_model.train(_part(config, is_held_out=False), config.order, config.min_count)
    total = characters = 0.0
    for batch in _part(config, is_held_out=True):
        total -= sum(float(model.logprobs(text).sum()) for text in batch)
        characters += sum(map(len, batch))
    if not characters or not model.order or not len(model.counts[0][0]):
        raise DataError(f"{config.data} has too few texts for validation_share={config.validation_share}: give more")
    model.save(writer.model_dir)
    metrics = {
        "eval/perplexity": texts.perplexity(total, characters),
        "data/validation_characters": characters,
        **{f"data/ngrams_{n}": float(len(hashes)) for n, (hashes, _) in enumerate(model.counts, start=1)},
    }
    print(f"{KIND}: perplexity {metrics['eval/perplexity']:.1f} a character on held-out text", flush=True)
    return writer.finish(KIND, config.model_dump(mode="json"), made_from, metrics)


def _part(config: NgramModelConfig, is_held_out: bool) -> Iterator[list[str]]:
    """Batches of the texts held out, or of the others."""
    from rayrlhf.data.cleaning import texts
    from rayrlhf.data.demo import split_of

    wanted = "validation" if is_held_out else "train"
    for batch in texts.batches(config.data, config.format):
        yield [text for text in batch if split_of(text, config.validation_share) == wanted]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs import command

    return command.main(KIND, NgramModelConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
