"""Cleans and deduplicates synthetic-but-realistic text on 2 cores in bounded memory, and counts what it caught.

    python benchmarks/data_cleaning.py FOLDER [MEGABYTES=1024] [SAMPLE_MEGABYTES=32]

The text is what this machine has: documentation and docstrings of Python and the installed packages, the demo's movie
reviews and, where FOLDER/chinese holds text files of a sentence a line, those.  Sentences stay as they are and are
recombined in runs, so that documents read like prose but are not alike.  Known flaws are planted.  Writes
benchmarks/results/data-cleaning-DATE.json: throughput of Ray Data and of plain single-process datasets.map, the peak
memory, and precision and recall by kind of flaw.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORES = 2
OBJECT_STORE_BYTES = 2**30
SHARES = {"exact": 0.03, "near": 0.03, "privacy": 0.03, "decoy": 0.02, "noise": 0.03, "contaminated": 0.01}
STEPS: list[dict[str, Any]] = [
    {"kind": "repair"},
    {"kind": "strip_html"},
    {"kind": "normalise", "full_width": "letters"},
    {"kind": "length", "min_chars": 100},
    {"kind": "characters", "min_letter_words": 0.6, "max_ellipsis_lines": 0.7},
    {"kind": "repetition"},
    {"kind": "stop_words"},
    {"kind": "links"},
    {"kind": "exact_duplicates"},
    {"kind": "near_duplicates", "threshold": 0.8},
    {"kind": "decontaminate", "against": []},
    {"kind": "privacy"},
]
PRIVATE = {
    "email": ("jane.doe{n}@mail.example.org", "<EMAIL>"),
    "phone": ("+1 650 253 {n:04d}", "<PHONE>"),
    "ip": ("10.20.{m}.{k}", "<IP>"),
    "card": ("4111 1111 1111 1111", "<CARD>"),
    "iban": ("DE89 3704 0044 0532 0130 00", "<IBAN>"),
    "resident": ("11010519491231002X", "<ID>"),
    "ssn": ("123-45-{n:04d}", "<ID>"),
}
DECOYS = (
    "4111 1111 1111 1112",
    "version 1.2.3.4.5",
    "DE88 3704 0044 0532 0130 00",
    "000-12-3456",
    "30.12.2024",
    "@user",
)
_MARK = re.compile(r"Entry (\d+) of this collection")


@dataclass
class Planted:
    """What was written: the kind of every entry, and the secrets by entry."""

    kinds: dict[int, str] = field(default_factory=dict)
    secrets: dict[int, str] = field(default_factory=dict)
    num_rows: int = 0
    num_bytes: int = 0


def sentences_here(most_bytes: int, chinese: Path | None = None) -> list[str]:
    """Different sentences of this machine's text, at most about `most_bytes` of them."""
    from rayrlhf.data.cleaning.words import sentences

    found: dict[str, None] = {}
    size = 0
    for text in _texts_here(chinese):
        for sentence in sentences(re.sub(r"\s+", " ", text)):
            sentence = sentence.strip()
            letters = sum(char.isalpha() for char in sentence)
            if 30 <= len(sentence.encode()) <= 400 and letters > 0.7 * len(sentence) and sentence not in found:
                found[sentence] = None
                size += len(sentence.encode())
        if size > most_bytes:
            break
    return list(found)


def _texts_here(chinese: Path | None) -> Iterator[str]:
    from pydoc_data import topics

    from rayrlhf.data import demo, fetch

    yield from topics.topics.values()
    if fetch.snippets_path().is_file():
        lines = fetch.snippets_path().read_text(encoding="utf-8-sig", errors="replace").splitlines()
        yield from (demo.parse(line)["text"] for line in lines)
    for path in sorted(chinese.glob("*.txt")) if chinese is not None else []:
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
    for folder in (os.path.dirname(ast.__file__), *(p for p in sys.path if p.endswith("site-packages"))):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            except (SyntaxError, ValueError, RecursionError, OSError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def build(folder: Path, num_bytes: int, pool: list[str], seed: int = 0) -> Planted:
    """Write JSONL files of about `num_bytes` under folder/text and the evaluation set folder/eval.jsonl."""
    draw = random.Random(seed)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    pool, held_out = pool[:-300], pool[-300:]  # no document has a question by chance
    questions = [" ".join(held_out[3 * n : 3 * n + 3]) for n in range(100)]
    (folder / "eval.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    planted, waiting, number = Planted(), list[str](), 0
    kinds, weights = ["clean", *SHARES], [1 - sum(SHARES.values()), *SHARES.values()]
    while planted.num_bytes < num_bytes:
        with open(folder / "text" / f"{number // 20_000:05d}.jsonl", "a", encoding="utf-8") as file:
            for _ in range(20_000):
                # each kind at least once, however little is built
                kind = kinds[number] if number < len(kinds) else draw.choices(kinds, weights)[0]
                text = _entry(draw, pool, number, kind, questions, planted)
                rows = [text] + ([_copy(draw, text, kind)] if kind in ("exact", "near") else [])
                waiting += rows[1:]
                if waiting and draw.random() < 0.05:  # far from the one it is a copy of
                    rows[1:] = [waiting.pop(draw.randrange(len(waiting)))]
                else:
                    rows = rows[:1]
                number += 1
                _write(file, rows, planted)
                if planted.num_bytes >= num_bytes:
                    break
            if planted.num_bytes >= num_bytes:
                _write(file, waiting, planted)
    return planted


def _write(file: Any, rows: list[str], planted: Planted) -> None:
    for row in rows:
        line = json.dumps({"text": row}, ensure_ascii=False) + "\n"
        planted.num_rows += 1
        planted.num_bytes += len(line.encode())
        file.write(line)


def _entry(draw: random.Random, pool: list[str], number: int, kind: str, questions: list[str], planted: Planted) -> str:
    """One document: a few runs of neighbouring sentences, and what its kind adds."""
    planted.kinds[number] = kind
    parts = [f"Entry {number} of this collection."]
    for _ in range(draw.randint(3, 6)):
        start = draw.randrange(len(pool))
        parts.append(" ".join(pool[start : start + draw.randint(4, 10)]))
    place = draw.randrange(1, len(parts))
    if kind == "contaminated":
        parts.insert(place, draw.choice(questions))
    elif kind == "privacy":
        form, _ = PRIVATE[draw.choice(list(PRIVATE))]
        n = draw.randint(100, 199)
        secret = form.format(n=n, m=n, k=n - 99)
        planted.secrets[number] = secret
        parts.insert(place, f"Reach us at {secret} please.")
    elif kind == "decoy":
        decoy = draw.choice(DECOYS)
        planted.secrets[number] = decoy
        parts.insert(place, f"See also {decoy} please.")
    elif kind == "noise":
        return parts[0] + "\n" + _noise(draw, parts)
    return "\n".join(parts)


def _noise(draw: random.Random, parts: list[str]) -> str:
    """One of four kinds of bad text."""
    which = draw.randrange(4)
    if which == 0:
        return "\n".join([parts[1]] * 12)
    if which == 1:
        return "".join(draw.choices("@#$%^&*(){}[]<>|~ ", k=800))
    if which == 2:
        return " ".join(f"http://site{draw.randrange(999)}.example.com/page{n}" for n in range(40))
    return " ".join(draw.choices(("cheap", "watches", "replica", "pills", "casino", "bonus"), k=150))


def _copy(draw: random.Random, text: str, kind: str) -> str:
    """The same text, or the same but for one word in a hundred (all in one place: about 0.95 alike)."""
    if kind == "exact":
        return text
    words = text.split(" ")
    start = draw.randrange(len(words) // 2, len(words))
    return " ".join([*words[:start], "rewritten", *words[start + max(1, len(words) // 100) :]])


def score(texts: Iterator[str], planted: Planted) -> dict[str, Any]:
    """Recall and precision by kind, from the texts that were left."""
    left: Counter[int] = Counter()
    bare: Counter[str] = Counter()
    for text in texts:
        found = _MARK.search(text)
        if found is None:
            continue
        number = int(found[1])
        left[number] += 1
        kind = planted.kinds[number]
        if kind in ("privacy", "decoy") and planted.secrets[number] in text:
            bare[kind] += 1
    total = Counter(planted.kinds.values())
    kept = Counter(kind for number, kind in planted.kinds.items() if left[number])
    dropped = {kind: total[kind] - kept[kind] for kind in total}
    twice = Counter(planted.kinds[number] for number, count in left.items() if count > 1)
    wrongly = sum(dropped.get(kind, 0) for kind in ("clean", "privacy", "decoy", "exact", "near"))
    dropped_rightly = dropped.get("noise", 0) + dropped.get("contaminated", 0)
    copies = total["exact"] + total["near"]
    caught = copies - twice["exact"] - twice["near"]
    return {
        "recall": {
            "exact": 1 - twice["exact"] / max(1, total["exact"]),
            "near": 1 - twice["near"] / max(1, total["near"]),
            "noise": dropped.get("noise", 0) / max(1, total["noise"]),
            "contaminated": dropped.get("contaminated", 0) / max(1, total["contaminated"]),
            "privacy": 1 - bare["privacy"] / max(1, kept["privacy"]),
        },
        "precision": {
            "rows dropped": (dropped_rightly + caught) / max(1, dropped_rightly + caught + wrongly),
            "decoys left alone": bare["decoy"] / max(1, kept["decoy"]),
        },
        "clean entries dropped": wrongly,
        "entries": dict(total),
    }


def steps(folder: Path) -> Any:
    """The steps, compared with the evaluation set in `folder`."""
    from pydantic import TypeAdapter

    from rayrlhf.data.cleaning.config import Step

    given = [s | {"against": [str(folder / "eval.jsonl")]} if s["kind"] == "decontaminate" else s for s in STEPS]
    return TypeAdapter(tuple[Step, ...]).validate_python(given)


def clean(folder: Path) -> Any:
    """What is left of folder/text, as shards under folder/work; Ray is connected."""
    from rayrlhf.data.cleaning import execute, reading

    return execute.clean(reading.read(str(folder / "text"), reading.Reading()), steps(folder), str(folder / "work"))


def texts_left(cleaned: Any) -> Iterator[str]:
    """The texts of the shards."""
    from rayrlhf.data.cleaning import shards

    for path in cleaned.paths:
        yield from shards.read(path)["text"].to_pylist()


def plain(folder: Path, num_bytes: int) -> float:
    """MB/s of the same steps on single rows, and the signatures of near_duplicates, by datasets.map in one process."""
    import datasets
    import pyarrow as pa

    from rayrlhf.data.cleaning import minhash, operators
    from rayrlhf.data.cleaning.config import NearDuplicates

    rows, size = list[str](), 0
    for path in sorted((folder / "text").glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if size > num_bytes:
                    break
                size += len(line.encode())
                rows.append(json.loads(line)["text"])
    row_steps = [operators.build(step) for step in steps(folder) if step.kind not in operators.GLOBAL_STEPS]
    near = next(step for step in steps(folder) if isinstance(step, NearDuplicates))
    for operator in row_steps:
        operator(rows[0])  # what it loads is not counted

    def apply(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        left = []
        for text in batch["text"]:
            found: Any = text
            for operator in row_steps:
                found = operator(found)
                if not isinstance(found, str):
                    break
            else:
                left.append(found)
        keys = minhash.keys(pa.table({"text": pa.array(left, pa.string())}), near)
        return {"text": left, "signature": list(keys["signature"])}

    made = datasets.Dataset.from_dict({"text": rows})
    start = time.perf_counter()
    made.map(apply, batched=True, batch_size=1000, remove_columns=["text"], load_from_cache_file=False)
    return size / 1e6 / (time.perf_counter() - start)


class Watch(threading.Thread):
    """The peak memory of this process's children and itself: private bytes, and the store's shared ones."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.private = self.driver = 0
        self.done = threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self.done.wait(1.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except psutil.Error:
                    continue
            self.private = max(self.private, total)
            self.driver = max(self.driver, me.memory_info().rss)


def main(folder: Path, megabytes: float, sample_megabytes: float) -> None:
    import ray

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    pool = sentences_here(60_000_000, folder / "chinese")
    planted = build(folder, int(megabytes * 1e6), pool)
    print(f"built {planted.num_bytes / 1e6:.0f} MB of {len(pool):,} sentences in {time.perf_counter() - start:.0f} s")
    plain_rate = plain(folder, int(sample_megabytes * 1e6))
    print(f"plain datasets.map: {plain_rate:.2f} MB/s on one core, {sample_megabytes:g} MB")
    watch = Watch()
    watch.start()
    ray.init(num_cpus=CORES, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, logging_level="warning")
    start = time.perf_counter()
    cleaned = clean(folder)
    seconds = time.perf_counter() - start
    watch.done.set()
    ray.shutdown()
    rate = planted.num_bytes / 1e6 / seconds / CORES
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/data_cleaning.py " + " ".join(sys.argv[1:]),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "megabytes": planted.num_bytes / 1e6,
        "rows": planted.num_rows,
        "object_store_bytes": OBJECT_STORE_BYTES,
        "seconds": seconds,
        "mb_per_second_and_core": rate,
        "plain_map": {"megabytes": sample_megabytes, "mb_per_second": plain_rate},
        "peak_private_bytes": watch.private,
        "peak_driver_bytes": watch.driver,
        "fates": cleaned.fates(),
        **score(texts_left(cleaned), planted),
    }
    path = Path(__file__).parent / "results" / f"data-cleaning-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    numbers = [float(argument) for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), *(numbers + [1024.0, 32.0][len(numbers) :]))
