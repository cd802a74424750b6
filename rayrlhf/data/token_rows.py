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
    from rayrlhf.data.bad_rows import BadRows
    from rayrlhf.data.packing import packed
    from rayrlhf.data.tally import Tally
    from rayrlhf.data.tokenize import encoded

    tally = tally or (Tally() if data.max_bad_rows else None)
    bad = BadRows(data.max_bad_rows, tally)
    rows = sources.read(source.path, *data.reading(source, kind), with_extras=extras, bad=bad)
    if data.packing is None:
        return encoded(rows, kind, tokenizer, data.max_tokens, data.too_long, data.turns, tally)
    return packed(encoded(rows, kind, tokenizer, sys.maxsize, tally=tally), data.max_tokens, data.packing)
