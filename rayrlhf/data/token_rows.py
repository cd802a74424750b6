"""From a source of rows to token ids, as a stage's `data` section says: read, recognised, encoded, packed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rayrlhf.data.config import DataConfig, MixedSource

if TYPE_CHECKING:
    from ray.data import Dataset

    from rayrlhf.data.tally import Tally


def token_rows(
    source: MixedSource, kind: str, data: DataConfig, tokenizer: Any, tally: Tally | None = None, extras: bool = False
) -> Dataset:
    """The rows of `kind` of `source` as token ids, packed where `data` asks for it; lazily where it does not.

    `tally` counts what becomes of them; `extras`: prompts keep their rows' other columns.
    """
    from rayrlhf.data import sources
    from rayrlhf.data.packing import packed
    from rayrlhf.data.tokenize import encoded

    rows = sources.read(source.path, *data.reading(source, kind), with_extras=extras)
    if data.packing is None:
        return encoded(rows, kind, tokenizer, data.max_tokens, data.too_long, data.turns, tally)
    return packed(encoded(rows, kind, tokenizer, sys.maxsize, tally=tally), data.max_tokens, data.packing)
