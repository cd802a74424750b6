"""The data card of a prepare stage: where rows come from, what each step did to them, what they look like now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayrlhf.data.cleaning.counts import SHOWN

if TYPE_CHECKING:
    import pyarrow as pa

    from rayrlhf.data.cleaning.execute import Cleaned

FILE = "data_card.json"
_CHUNK = 2**20
_SAMPLES = 5
_LOOKED_AT = 20_000


def card(
    source: str,
    licence: str | None,
    files: list[dict[str, Any]],
    cleaned: Cleaned | None,
    tables: dict[str, int],
    samples: dict[str, list[str]],
) -> dict[str, Any]:
    """The card as JSON; `tables` has the rows of each table."""
    found: dict[str, Any] = {"source": source, "licence": licence, "files": files}
    if cleaned is not None:
        counts = cleaned.counts
        found |= {
            "rows_read": counts.rows_read,
            "rows_kept": counts.rows,
            "bad_rows": {"count": counts.num_bad, "examples": counts.bad},
            "steps": [
                {"config": step.model_dump(mode="json"), **count.as_dict()}
                for step, count in zip(cleaned.steps, counts.steps.values(), strict=True)
            ],
            "characters_read": counts.lengths_in.as_list(),
            "characters_kept": counts.lengths_out.as_list(),
        }
    return found | {"tables": tables, "samples": samples}


def write(path: str, found: dict[str, Any]) -> None:
    """Write a card."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, ensure_ascii=False)


def hashes(files: Any) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of each file, hashed by Ray Data's tasks."""
    from ray import data

    listed = data.from_items([{"path": path} for path in files.paths])

    def hashed(row: dict[str, Any]) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with files.filesystem.open(row["path"], "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return {"path": row["path"], "bytes": size, "sha256": digest.hexdigest()}

    return list(listed.map(hashed).take_all())


def first_texts(folder: str, protect: Callable[[str], str] | None = None) -> list[str]:
    """The first texts of a table, shortened, after `protect`."""
    from pyarrow import dataset

    table: pa.Table = dataset.dataset(folder, format="parquet").head(_SAMPLES, columns=["text"])
    texts = [text[:_LOOKED_AT] for text in table["text"].to_pylist()]
    return [(text if protect is None else protect(text))[:SHOWN] for text in texts]
