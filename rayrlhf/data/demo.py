"""The embedded task: movie-review snippets with human ratings (see `fetch` for where they come from).

    text               every snippet
    prompt_completion  its first words, and the rest with the space before it
    labelled           the same of a snippet rated clearly good or bad
    preference         two snippets of one split that people rated differently, and by how much (`margin`); the
                       prompt is empty
    prompts            first words, each once

`gold` judges responses with VADER's lexicon.  Nothing that trains may use it.
"""

from __future__ import annotations

import html
import re
from functools import partial
from typing import TYPE_CHECKING

from rayrlhf.data.buckets import NUM_BUCKETS, grouped
from rayrlhf.data.cleaning.normalise import normalise
from rayrlhf.data.config import SnippetsConfig
from rayrlhf.data.context import settle
from rayrlhf.data.order import by_content
from rayrlhf.data.rows import Row, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset
    from ray.data.grouped_data import GroupedData

_BUCKET = "_bucket"

Rated = tuple[str, float]  # a text and its mean human rating


def parse(line: str) -> Row:
    """One line of the raw file: id, mean rating (-4..4), text."""
    fields = line.split("\t")
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} fields instead of id, rating and text")
    return {"rating": float(fields[1]), "text": fields[2]}


def plain(snippet: str) -> str:
    """The snippet with plain quotes, and with the dashes that the corpus has lost as runs of spaces."""
    text = html.unescape(snippet).replace("''", '"').replace("`", "'")
    text = text.replace("\u2019", "'").replace("\u2013", " - ")
    return re.sub(r"(?<=\S) {2,}(?=\S)", " - ", text)


def normal_form(snippet: str) -> str:
    """The snippet as the stages see it by default."""
    return normalise(plain(snippet))


def _parse_plain(line: str) -> Row:
    row = parse(line)
    return row | {"text": plain(row["text"])}


def snippets(path: str) -> Dataset:
    """Rows {"rating", "text"} of the raw file at `path`, the texts `plain`."""
    from ray import data

    from rayrlhf.data.lines import Lines

    settle()
    return data.read_datasource(Lines([path], _parse_plain))


def split_of(text: str, validation_share: float = 0.1) -> str:
    """ "train" or "validation", by a hash of the text alone: no text is ever on both sides."""
    return "validation" if int(digest("split", text)[:12], 16) < validation_share * 16**12 else "train"


def prompt_completion(text: str, config: SnippetsConfig) -> Row | None:
    """`text` cut after some first words, their number chosen by its hash; None when too little is left."""
    spread = config.max_prompt_words - config.min_prompt_words + 1
    num_words = config.min_prompt_words + int(digest("prompt", text)[:12], 16) % spread
    pieces = text.split(" ")
    if len(pieces) < num_words + config.min_completion_words:
        return None
    return {"prompt": " ".join(pieces[:num_words]), "completion": " " + " ".join(pieces[num_words:])}


def text_rows(ds: Dataset) -> Dataset:
    """{"text"} of each row."""
    return by_content(ds.select_columns(["text"]))


def prompt_completion_rows(ds: Dataset, config: SnippetsConfig) -> Dataset:
    """{"prompt", "completion"} of each row long enough."""
    return by_content(ds.map_batches(partial(_cut, config=config), batch_format="pyarrow"))


def labelled_rows(ds: Dataset, config: SnippetsConfig) -> Dataset:
    """{"prompt", "completion", "label"} of each row long enough, rated above `label_rating` or below its negative."""
    return by_content(ds.map_batches(partial(_labelled, config=config), batch_format="pyarrow"))


def prompt_rows(ds: Dataset, split: str, validation_share: float, config: SnippetsConfig) -> Dataset:
    """{"prompt"} of each row of `split` long enough, each once; `ds` has both splits.

    First words that some training text begins with too are no validation prompt.
    """
    cut = partial(_cut_with_split, validation_share=validation_share, config=config)
    buckets = _by_bucket(ds.map_batches(cut, batch_format="pyarrow"), "prompt")
    return by_content(buckets.map_groups(partial(_unique_prompts, split=split), batch_format="pyarrow"))


def preference_rows(ds: Dataset, split: str, validation_share: float, config: SnippetsConfig) -> Dataset:
    """{"prompt": "", "chosen", "rejected", "margin"} of `split`: each text with the next few unlike it in its bucket.

    Texts fall into buckets and stand in them by hash, so pairs are random, yet always the same, and no
    process holds more than a bucket.  No pair appears twice.  The margin follows from the texts, so it does
    not count for the order.
    """
    pair = partial(_pair, split=split, validation_share=validation_share, config=config)
    return by_content(_by_bucket(ds, "text").map_groups(pair, batch_format="pyarrow"), ignored=("margin",))


def pairs(rated: list[Rated], min_difference: float, pairs_per_text: int) -> list[tuple[str, str]]:
    """(better, worse) of (text, mean rating)s in their order: each with the next unlike ones, round the end.

    Two are unlike when their ratings differ by more than `min_difference`.
    """
    found: dict[frozenset[str], tuple[str, str]] = {}
    for here, (text, rating) in enumerate(rated):
        others = rated[here + 1 :] + rated[:here]
        unlike = [other for other in others if abs(other[1] - rating) > min_difference]
        for other, other_rating in unlike[:pairs_per_text]:
            pair = (text, other) if rating > other_rating else (other, text)
            found.setdefault(frozenset(pair), pair)
    return list(found.values())


def gold(prompts: list[str], responses: list[str]) -> list[float]:
    """VADER's compound score (-1..1) of each response; the prompt does not count.  For evaluation only."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts, but {len(responses)} responses")
    analyzer = SentimentIntensityAnalyzer()
    return [float(analyzer.polarity_scores(response)["compound"]) for response in responses]


def _cut(batch: pa.Table, config: SnippetsConfig) -> pa.Table:
    import pyarrow as pa

    rows = [row for row in (prompt_completion(text, config) for text in batch["text"].to_pylist()) if row]
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def _labelled(batch: pa.Table, config: SnippetsConfig) -> pa.Table:
    import pyarrow as pa

    rows = []
    for row in batch.to_pylist():
        parts = prompt_completion(row["text"], config) if abs(row["rating"]) > config.label_rating else None
        if parts is not None:
            rows.append(parts | {"label": row["rating"] > 0})
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string()), ("label", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=schema)


def _cut_with_split(batch: pa.Table, validation_share: float, config: SnippetsConfig) -> pa.Table:
    import pyarrow as pa

    cut = [(text, prompt_completion(text, config)) for text in batch["text"].to_pylist()]
    rows = [{"prompt": row["prompt"], "split": split_of(text, validation_share)} for text, row in cut if row]
    return pa.Table.from_pylist(rows, schema=pa.schema([("prompt", pa.string()), ("split", pa.string())]))


def _by_bucket(ds: Dataset, column: str) -> GroupedData:
    return grouped(ds.map_batches(partial(_bucketed, column=column), batch_format="pyarrow"), _BUCKET)


def _bucketed(batch: pa.Table, column: str) -> pa.Table:
    import pyarrow as pa

    buckets = [int(digest("bucket", value)[:8], 16) % NUM_BUCKETS for value in batch[column].to_pylist()]
    return batch.append_column(_BUCKET, pa.array(buckets, pa.int64()))


def _unique_prompts(group: pa.Table, split: str) -> pa.Table:
    import pyarrow as pa

    rows = group.to_pylist()
    training = {row["prompt"] for row in rows if row["split"] == "train"}
    prompts = training if split == "train" else {row["prompt"] for row in rows} - training
    return pa.table({"prompt": pa.array(sorted(prompts), pa.string())})


def _pair(group: pa.Table, split: str, validation_share: float, config: SnippetsConfig) -> pa.Table:
    import pyarrow as pa

    rated: list[Rated] = [
        (row["text"], row["rating"]) for row in group.to_pylist() if split_of(row["text"], validation_share) == split
    ]
    rated.sort(key=lambda row: digest("pair", row[0]))
    pairs_per_text = config.pairs_per_text if split == "train" else 1
    made = pairs(rated, config.min_rating_difference, pairs_per_text)
    ratings = dict(rated)
    rows: list[Row] = [
        {"prompt": "", "chosen": better, "rejected": worse, "margin": ratings[better] - ratings[worse]}
        for better, worse in made
    ]
    fields = [(name, pa.string()) for name in ("prompt", "chosen", "rejected")]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("margin", pa.float64())]))
