"""Train a classifier of good and bad text, for the cleaning step `quality_classifier`.

runs/NAME/quality_classifier/step_000000/model/classifier.npz
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.data.config import Format
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan

KIND = "quality_classifier"


class QualityClassifierConfig(Section):
    """Logistic regression on hashed n-grams of words and characters: good texts against bad or unfiltered ones."""

    run: RunConfig = Field(description="which run this is")
    good: str = Field(min_length=1, description="good texts: a file, a folder, a glob or hf://name[[:config]:split]")
    bad: str = Field(min_length=1, description="bad texts, or any")
    format: Format = Field(default="auto", description="how files are read; auto goes by their extension")
    word_ngram: int = Field(default=2, ge=1, le=5, description="longest n-gram of words, or Chinese characters")
    char_ngram: int = Field(default=4, ge=1, le=8, description="longest n-gram of characters; below 2: none")
    bits: int = Field(default=18, ge=8, le=26, description="features are hashed into 2**bits weights")
    epochs: int = Field(default=3, ge=1, description="passes over the texts")
    lr: float = Field(default=0.1, gt=0, description="AdaGrad's learning rate")
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="share of the texts held out, by a hash")


def parents(config: QualityClassifierConfig) -> dict[str, str]:
    """What this stage is made from."""
    return {"good": config.good, "bad": config.bad}


def check(config: QualityClassifierConfig) -> None:
    """The texts are there; DataError otherwise."""
    from rayrlhf.data.cleaning import reading

    for path in (config.good, config.bad):
        reading.check(path, reading.Reading(config.format), max_bad_rows=0)


def plan(config: QualityClassifierConfig) -> list[RolePlan]:
    """No actors: Ray Data's own tasks read and shuffle, this process learns."""
    return []


def run(config: QualityClassifierConfig) -> str:
    """Write the stage; returns its directory.  Ray is connected."""
    from rayrlhf.checkpoint import StageWriter
    from rayrlhf.data.cleaning.classifier import Classifier, Features
    from rayrlhf.lineage import claim

    root, made_from = config.run.stage(KIND), parents(config)
    claim(root, config, made_from)
    writer = StageWriter(root, step=0)
    model = Classifier(Features(config.bits, config.word_ngram, config.char_ngram))
    metrics = _learn(config, model)
    model.save(writer.model_dir)
    print(f"{KIND}: area under the curve {metrics['eval/auc']:.3f} on held-out texts", flush=True)
    return writer.finish(KIND, config.model_dump(mode="json"), made_from, metrics)


def _learn(config: QualityClassifierConfig, model: Any) -> dict[str, float]:
    """Train on the texts not held out, shuffled; judge the others."""
    from rayrlhf.data.cleaning import classifier, texts
    from rayrlhf.data.order import in_order
    from rayrlhf.errors import DataError

    parts = texts.labelled(config.good, config.bad, config.format, config.validation_share)
    counts = {split: Counter(is_good for _, is_good in texts.pairs(rows)) for split, rows in parts.items()}
    for split, path, is_good in ((s, p, g) for s in parts for p, g in ((config.good, True), (config.bad, False))):
        if not counts[split][is_good]:
            raise DataError(f"no text of {path} for {split}: give more, or change validation_share")
    good, bad = counts["train"][True], counts["train"][False]
    stream = in_order(parts["train"], config.epochs, config.run.seed)
    classifier.fit(model, texts.pairs(stream), good / (good + bad), config.lr)
    scores, labels = [], []
    for text, is_good in texts.pairs(parts["validation"]):
        scores.append(model.score(text))
        labels.append(is_good)
    right = sum((score >= 0.5) == is_good for score, is_good in zip(scores, labels, strict=True))
    return {
        "data/good_rows": float(good),
        "data/bad_rows": float(bad),
        "data/validation_rows": float(len(labels)),
        "eval/accuracy": right / len(labels),
        "eval/auc": classifier.area(scores, labels),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs import command

    return command.main(KIND, QualityClassifierConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
