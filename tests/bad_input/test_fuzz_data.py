"""Whatever stands in a data file, it is read or refused with a UserError; so is raw text, and what a template
renders."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayrlhf.data import sources
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.chat_templates import SHIPPED, template_text, with_template
from rayrlhf.data.cleaning import raw_files, reading
from rayrlhf.data.formats import recognise
from rayrlhf.data.layouts import LAYOUTS
from rayrlhf.data.lines import Lines
from rayrlhf.data.rows import COLUMNS
from rayrlhf.data.tokenize import encode_batch, encode_row
from tests.bad_input.fuzzing import anything, examples, mutated, refused, texts, torn
from tests.conftest import TEMPLATE, byte_tokenizer

KINDS = sorted(COLUMNS)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FROM = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROWS: list[dict[str, Any]] = [
    {"text": "a"},
    {"prompt": "a", "completion": "b", "label": True, "score": 0.5},
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1},
    {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:], "score_chosen": 2, "score_rejected": 1},
    {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "ranked": ["b", "c"]},
    {"messages": TURNS, "label": 1, "system": "c", "tools": []},
    {"conversations": FROM, "chosen": FROM[1], "rejected": FROM[1]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "demonstrations": [{"output": "f"}]},
    {"input": TURNS[:1], "output": TURNS[1], "reward_model": {"ground_truth": "c"}, "images": None},
]
rows = st.sampled_from(ROWS).flatmap(mutated) | st.sampled_from(ROWS) | anything
layouts = st.sampled_from(["auto", "own", *sorted({one.name for found in LAYOUTS.values() for one in found})])
columns = st.dictionaries(st.sampled_from(["prompt", "text", "completion"]), texts, max_size=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@examples(250)
@given(st.sampled_from(KINDS), st.lists(rows, min_size=1, max_size=3), layouts, columns, st.booleans())
@example("prompt_completion", [{"messages": [{"role": ["user"], "content": "a"}]}], "auto", {}, False)
@example("prompt_completion", [{"messages": [{"role": "user", "content": [{"text": 3}]}, TURNS[1]]}], "auto", {}, False)
@example("prompt_completion", [{"messages": TURNS[1:] + TURNS}], "auto", {}, False)
@example("prompt_completion", [{"instruction": "a", "output": "b", "demonstrations": True}], "auto", {}, False)
@example("prompt_completion", [{"instruction": "a", "output": "b", "history": 3}], "auto", {}, False)
def test_fuzz_rows(tokenizer, kind: str, found: list[Any], layout: str, named: dict[str, str], extras: bool) -> None:
    sample = [(f"row {number}", row) for number, row in enumerate(found)]
    made = refused(recognise, sample, kind, layout, named, extras and kind == "prompts")
    if isinstance(made, Exception):
        return
    for row in found:
        if not made.wrong(row):  # what is not wrong can be encoded, or the template says why not
            refused(encode_row, made(row), kind, tokenizer)


def _csv(name: str) -> bytes:
    return f"{','.join(COLUMNS[name])}\n{','.join('a' for _ in COLUMNS[name])}\n".encode()


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """(name, content, kind) of a file of rows, mostly torn."""
    kind, extension = (
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "parquet"])),
    )
    given_rows = [row for row in ROWS if draw(st.booleans())] or ROWS
    content = "".join(json.dumps(row) + "\n" for row in given_rows).encode()
    if extension == "json":
        content = json.dumps(given_rows).encode()
    elif extension in ("csv", "tsv"):
        content = _csv(kind).replace(b",", b"\t" if extension == "tsv" else b",")
    elif extension == "parquet":
        content = _parquet(kind, draw(st.sampled_from(["a", 1, None, b"\xff", ["a"], {"a": 1}, TURNS])))
    how = draw(st.sampled_from(["torn", "torn", "random", "whole", "utf-16", "cut"]))
    if how == "torn":
        content = draw(torn(content))
    elif how == "random":
        content = draw(st.binary(max_size=60))
    elif how == "utf-16" and extension != "parquet":
        content = content.decode().encode("utf-16")
    elif how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    return f"mine.{extension}", content, kind


def _parquet(kind: str, value: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table({name: [value] * 3 for name in COLUMNS[kind]}), out)
    return out.getvalue()


@examples(250)
@given(files(), layouts, st.sampled_from([0, 0, 2]))
def test_fuzz_files_of_rows(folder: Path, tokenizer, file: tuple[str, bytes, str], layout: str, limit: int) -> None:
    name, content, kind = file
    path = folder / name
    path.write_bytes(content)
    format = "auto" if not name.endswith("tsv") else "csv"
    checked = refused(sources.check, str(path), format, kind, layout, max_bad_rows=limit)
    if isinstance(checked, Exception):
        return
    # what is checked without Ray is read in Ray's tasks: here are what those call
    found = sources.resolve(str(path), format)
    made = recognise(sources._sample(found, kind), kind, layout)
    tables: Any
    if found.format == "parquet":
        from pyarrow import parquet

        tables = refused(lambda: [sources._checked(parquet.read_table(path), made, name, BadRows(limit))])
    else:
        parse = made if found.format != "text" else lambda line: sources._parse_text(line, made)
        lines = Lines.__new__(Lines)
        lines._read, lines._format, lines._bad = parse, found.format, BadRows(limit)
        tables = refused(lambda: list(lines._read_stream(io.BytesIO(content), name)))
    for table in [] if isinstance(tables, Exception) else tables:
        refused(encode_batch, table, kind, tokenizer, 64, "drop")


ENCODINGS = ["utf-8", "latin-1", "gb18030", "cp1252", "ascii", "shift_jis"]


@examples(150)
@example(("mine.csv", b"text\na,b\n", "text"), "utf-8", False, 100, 10)
@example(("mine.csv", b"\xff\n", "text"), "utf-8", False, 0, 10)
@given(files(), st.sampled_from(ENCODINGS), st.booleans(), st.sampled_from([0, 3, 100]), st.sampled_from([10, 2**20]))
def test_fuzz_raw_text(folder: Path, file: tuple, encoding: str, is_packed: bool, limit: int, longest: int) -> None:
    name, content, _ = file
    is_packed &= not name.endswith("parquet")
    path = folder / (name + ".gz" if is_packed else name)
    path.write_bytes(gzip.compress(content)[: -1 if limit == 3 else None] if is_packed else content)
    named = {"text": "prompt"} if limit == 100 and not name.endswith("txt") else {}
    how = reading.Reading("auto", "utf-8" if name.endswith("parquet") else encoding, longest, named)
    refused(reading.check, str(path), how, limit)
    refused(lambda: list(reading.plain_rows(str(path))))
    refused(reading.columns, str(path), "auto")
    found = refused(raw_files.resolve, str(path), "auto")
    if found.format != "parquet":
        for start in range(0, 0 if is_packed or found.format == "csv" else len(content), 17):  # in parts, as tasks do
            part = reading.raw_rows.part(found, how, str(path), start, start + 17)
            refused(lambda part=part: list(part))


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=6)}),
    min_size=1,
    max_size=5,
)
templates = st.sampled_from([TEMPLATE, *SHIPPED.values()])
pieces = st.sampled_from(
    [
        "{{ bos_token }}",
        "{{ eos_token }}",
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ m['role'] }}",
    ]
    + [
        "{% if m.x %}",
        "{% else %}",
        "{% endif %}",
        "{{ 1 / 0 }}",
        "{{ m.x.y }}",
        "{{ raise_exception('no') }}",
        "messages",
        "{%",
    ]
    + [
        "{{ messages[7] }}",
        "{{ m.content | trim }}",
        "{% set a = [] %}",
        "{{ a.append(1) }}",
        "{% for a in range(3) %}",
    ]
)


@examples(120)
@given(
    messages, templates | templates.flatmap(lambda text: torn(text.encode())).map(lambda b: b.decode(errors="replace"))
)
def test_fuzz_conversations(tokenizer, found: list[dict[str, str]], template: str) -> None:
    made = byte_tokenizer()
    made.chat_template = template
    for turns in ("all", "last"):
        refused(encode_row, {"messages": found, "num_given": 0}, "prompt_completion", made, turns)
    refused(encode_row, {"prompt": found}, "prompts", made)


@examples(100)
@given(st.lists(pieces, max_size=8).map("".join) | templates)
def test_fuzz_templates(folder: Path, template: str) -> None:
    path = folder / "mine.jinja"
    path.write_text(template)
    text = refused(template_text, str(path))
    if isinstance(text, str):
        refused(with_template, byte_tokenizer(), text, "mine.jinja")
