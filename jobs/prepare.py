"""Prepare data: clean, split, make rows of every kind, train the tokenizer.

    runs/NAME/prepare/step_000000/model/                       the tokenizer with its chat template
                                 /state/KIND/{train,validation}/   Parquet
                                 /state/data_card.json         what each step of cleaning did, samples, lengths

The demo's snippets give the kinds text, prompt_completion, preference, labelled and prompts, its sums text,
prompt_completion and prompts; a user's texts give text.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.data.cleaning.config import CleanConfig, Step, default_steps
from rayrlhf.data.config import ARITHMETIC, DEMO, SnippetsConfig, SourceConfig, TokenizerConfig
from rayrlhf.errors import DataError
from rayrlhf.run import RunConfig

if TYPE_CHECKING:
    from ray.data import Dataset

    from cluster.layout import RolePlan
    from rayrlhf.data.cleaning.execute import Cleaned

KIND = "prepare"
SPLITS = ("train", "validation")
ROWS_PER_FILE = 50_000
_READING = ("encoding", "max_row_bytes", "max_bad_rows", "columns")  # of files, which the demo's tasks do not read


class RawTextConfig(SourceConfig):
    """Where raw text comes from; of its columns the text alone is kept."""

    columns: dict[str, str] = Field(
        default={}, description="{text: its name in the files} (a.b: of b in the object a), where that is not text"
    )

    @model_validator(mode="after")
    def _text_alone(self) -> RawTextConfig:
        if self.columns and set(self.columns) != {"text"}:
            raise ValueError(f"columns={self.columns}: prepare reads one column, name it as {{text: ITS_NAME}}")
        return self


class PrepareConfig(Section):
    """Raw text to training rows and a tokenizer."""

    run: RunConfig = Field(description="which run this is")
    data: RawTextConfig = Field(default=RawTextConfig(), description="where text comes from, its split")
    clean: CleanConfig = Field(default=CleanConfig(), description="the steps of cleaning")
    snippets: SnippetsConfig = Field(default=SnippetsConfig(), description="the demo's prompts and pairs")
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="the tokenizer to train")

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> PrepareConfig:
        source, default = self.data.source, RawTextConfig()
        if source != DEMO and self.snippets != SnippetsConfig():
            raise ValueError(f"snippets.* cuts the demo's snippets; it has no effect with data.source={source}")
        limits = (self.data.min_chars, self.data.max_chars) != (default.min_chars, default.max_chars)
        if source == ARITHMETIC and limits:
            raise ValueError(f"data.min_chars and max_chars have no effect with data.source={source}: leave them out")
        if source == ARITHMETIC and self.clean != CleanConfig():
            raise ValueError(f"clean.* has no effect with data.source={source}: leave it out")
        if self.clean.steps is not None and limits:
            raise ValueError(
                "data.min_chars and max_chars belong to the default steps: with clean.steps write a step "
                "{kind: length, min_chars: ..., max_chars: ...} there instead"
            )
        given = [name for name in _READING if getattr(self.data, name) != getattr(default, name)]
        if source in (DEMO, ARITHMETIC) and given:
            raise ValueError(f"data.{given[0]} has no effect with data.source={source}: leave it out")
        return self

    @property
    def steps(self) -> tuple[Step, ...]:
        """What cleans the rows."""
        if self.clean.steps is not None:
            return self.clean.steps
        return default_steps(self.data.min_chars, self.data.max_chars)


def parents(config: PrepareConfig) -> dict[str, str]:
    """What this stage is made from: a user's files, what cleaning compares with, a tokenizer that is taken; the demo's
    are fixed by their hash."""
    from rayrlhf.data.cleaning.operators import inputs

    source, taken = config.data.source, config.tokenizer.from_folder
    found = ({} if source in (DEMO, ARITHMETIC) else {"source": source}) | inputs(config.steps)
    return found | ({"tokenizer": taken} if taken else {})


def check(config: PrepareConfig) -> None:
    """The source is there and of the right form, and what the steps of cleaning need; a UserError otherwise."""
    from rayrlhf.data import fetch
    from rayrlhf.data.cleaning import operators, reading
    from rayrlhf.models.causal_lm import check_tokenizer

    if config.tokenizer.from_folder:
        check_tokenizer(tokenizer_folder(config.tokenizer.from_folder))
    if config.data.source == DEMO:
        fetch.require()
    elif config.data.source != ARITHMETIC:
        reading.check(config.data.source, _reading(config.data), config.data.max_bad_rows)
    operators.check(config.steps)


def plan(config: PrepareConfig) -> list[RolePlan]:
    """No actors: Ray Data's own tasks take what CPUs there are."""
    return []


def run(config: PrepareConfig) -> str:
    """Write the stage; returns its directory.  Ray is connected."""
    from rayrlhf.checkpoint import StageWriter
    from rayrlhf.lineage import claim

    root, describe, made_from = config.run.stage(KIND), config.model_dump(mode="json"), parents(config)
    claim(root, config, made_from)
    writer = StageWriter(root, step=0)
    metrics = _write(config, writer.model_dir, writer.state_dir)
    return writer.finish(KIND, describe, made_from, metrics)


def _write(config: PrepareConfig, model_dir: str, state_dir: str) -> dict[str, float]:
    """Tables, tokenizer and data card; returns rows in, dropped and out."""
    work = os.path.join(os.path.dirname(state_dir), "work")  # on the stage's own disk, which every node sees
    try:
        tables, cleaned = _sources(config, work)
        counts = {} if cleaned is None else cleaned.fates()
        metrics = {f"data/clean_{fate}": float(count) for fate, count in counts.items()}
        for split in SPLITS:
            for kind, rows in tables(split).items():
                count = _write_table(rows, os.path.join(state_dir, kind, split))
                if not count:
                    raise _no_rows(config, kind, split, counts)
                metrics[f"data/{kind}_{split}_rows"] = float(count)
                print(f"prepare: {kind}/{split} {count:,} rows", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _write_card(config, cleaned, metrics, state_dir)
    is_own = config.data.source not in (DEMO, ARITHMETIC)
    return metrics | _tokenizer(config.tokenizer, os.path.join(state_dir, "text"), model_dir, is_own)


def _tokenizer(config: TokenizerConfig, tables: str, model_dir: str, is_own: bool) -> dict[str, float]:
    """Train or take the tokenizer and write it; returns what it makes of held-out texts.  A trained one of a user's own
    texts (`is_own`) has no chat template: what answers look like is not known here."""
    from rayrlhf.data import tokenizer
    from rayrlhf.data.fertility import fertility
    from rayrlhf.models.causal_lm import load_tokenizer

    if config.from_folder is None:
        made = tokenizer.train(partial(_texts, os.path.join(tables, "train")), config)
        made.chat_template = None if is_own else made.chat_template
    else:
        made = load_tokenizer(tokenizer_folder(config.from_folder))
    made.save_pretrained(model_dir)
    held_out = (text for batch in _texts(os.path.join(tables, "validation")) for text in batch)
    found = fertility(made, islice(held_out, config.fertility_texts))
    told = ", ".join(f"{name.removeprefix('tokenizer_')} {value:.3g}" for name, value in found.items())
    print(f"prepare: tokenizer of {len(made):,} tokens; on held-out texts {told}", flush=True)
    return {"data/vocab_size": float(len(made))} | {f"data/{name}": value for name, value in found.items()}


def tokenizer_folder(path: str) -> str:
    """The folder with the tokenizer that `path`, a stage or a Hugging Face folder, means."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import has_tokenizer

    return path if has_tokenizer(path) else model_folder(path)


def _no_rows(config: PrepareConfig, kind: str, split: str, counts: dict[str, int]) -> DataError:
    return DataError(
        f"no {kind} row for {split} in {config.data.source}: {counts}. Give more text, or change "
        "data.validation_share, the limits on length or the steps of cleaning."
    )


def _reading(data: RawTextConfig) -> Any:
    from rayrlhf.data.cleaning.reading import Reading

    return Reading(data.format, data.encoding, data.max_row_bytes, data.columns)


def _sources(config: PrepareConfig, work: str) -> tuple[Callable[[str], dict[str, Dataset]], Cleaned | None]:
    """(the tables of a split, by kind; what cleaning did, whose shards lie in the folder `work`)."""
    from ray import data

    from rayrlhf.data import arithmetic, demo, fetch
    from rayrlhf.data.cleaning import execute, reading

    given = config.data
    if given.source == ARITHMETIC:
        return partial(arithmetic.tables, validation_share=given.validation_share), None
    is_demo = given.source == DEMO
    raw = demo.snippets(str(fetch.require())) if is_demo else reading.read(given.source, _reading(given))
    say = partial(print, "prepare:", flush=True)
    cleaned = execute.clean(raw, config.steps, work, config.clean.examples, given.max_bad_rows, say)
    if not cleaned.paths:
        raise _no_rows(config, "text", "train", cleaned.fates())
    kept = data.read_parquet(cleaned.paths)
    return partial(_tables, kept, config=config, is_demo=is_demo), cleaned


def _write_card(config: PrepareConfig, cleaned: Cleaned | None, metrics: dict[str, float], state_dir: str) -> None:
    """What happened to the data, in numbers and examples."""
    from rayrlhf.data import fetch, sources
    from rayrlhf.data.cleaning import card, operators, raw_files, reading
    from rayrlhf.redaction import redacted, redacted_text

    source = config.data.source
    if source == ARITHMETIC:
        files = []
    elif source.startswith(sources.HUB):
        files = card.hashes(sources.resolve(sources.hub_file(source), "parquet"))
    elif source == DEMO:
        path = fetch.require()
        files = [{"path": str(path), "bytes": path.stat().st_size, "sha256": fetch.SNIPPETS_SHA256}]
    else:
        files = card.hashes(raw_files.resolve(source, config.data.format))
    rows = {key[len("data/") : -len("_rows")]: int(n) for key, n in metrics.items() if key.endswith("_rows")}
    protect = operators.protector(config.steps)
    samples = {split: card.first_texts(os.path.join(state_dir, "text", split), protect) for split in SPLITS}
    made = card.card(redacted_text(source), config.data.licence, redacted(files), cleaned, rows, samples)
    if source not in (DEMO, ARITHMETIC):
        text = config.data.columns.get("text", "text")
        others = [name for name in reading.columns(source, config.data.format) if name != text.partition(".")[0]]
        made |= {"text_column": text, "columns_left_out": others}
    card.write(os.path.join(state_dir, card.FILE), made)


def _tables(kept: Dataset, split: str, *, config: PrepareConfig, is_demo: bool) -> dict[str, Dataset]:
    """The tables of one split, by kind."""
    from rayrlhf.data import demo

    share, snippets = config.data.validation_share, config.snippets
    part = kept.map_batches(partial(_of_split, split=split, share=share), batch_format="pyarrow")
    tables = {"text": demo.text_rows(part)}
    if is_demo:
        tables["prompt_completion"] = demo.prompt_completion_rows(part, snippets)
        tables["labelled"] = demo.labelled_rows(part, snippets)
        tables["preference"] = demo.preference_rows(kept, split, share, snippets)
        tables["prompts"] = demo.prompt_rows(kept, split, share, snippets)
    return tables


def _write_table(rows: Dataset, folder: str) -> int:
    """Write `rows` as Parquet under `folder`; returns how many there are."""
    from pyarrow import dataset

    os.makedirs(folder)
    files = rows.repartition(target_num_rows_per_block=ROWS_PER_FILE, strict=True)
    files.map_batches(_in_one_piece, batch_size=None, batch_format="pyarrow").write_parquet(folder)
    return int(dataset.dataset(folder, format="parquet").count_rows())


def _in_one_piece(batch: Any) -> Any:
    """One chunk for one file: pyarrow's threads write several in any order."""
    return batch.combine_chunks()


def _texts(folder: str) -> Iterator[list[str]]:
    """The texts of a table, batch by batch."""
    from rayrlhf.data import sources

    batch: Any  # a pyarrow.Table
    for batch in sources.read(folder, "parquet", "text").iter_batches(batch_size=1024, batch_format="pyarrow"):
        yield batch["text"].to_pylist()


def _of_split(batch: Any, split: str, share: float) -> Any:
    import pyarrow as pa

    from rayrlhf.data.demo import split_of

    belongs = [split_of(text, share) == split for text in batch["text"].to_pylist()]
    return batch.filter(pa.array(belongs, pa.bool_()))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs import command

    return command.main(KIND, PrepareConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
