"""`python -m tests.own_data PREPARE_STAGE FOLDER`: the files of the README's section on own data, from the demo's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyarrow import dataset

FILES = {
    "sft.jsonl": "prompt_completion/train",
    "pairs.jsonl": "preference/train",
    "labelled.jsonl": "labelled/train",
    "prompts.jsonl": "prompts/train",
    "held_out.jsonl": "prompts/validation",
}
ROWS = 200


def main(stage: str, folder: str) -> None:
    (state,) = Path(stage).glob("step_*/state")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, table in FILES.items():
        rows = dataset.dataset(state / table, format="parquet").head(ROWS).to_pylist()
        (Path(folder) / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
