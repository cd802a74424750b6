"""Cleaning through Ray Data: counts, duplicates over the whole data set, rows that cannot be read."""

import bz2
import gzip
import json
import lzma
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.command import user_error
from rayrlhf.data.cleaning import execute, operators, raw_files, raw_rows, reading, shards
from rayrlhf.data.cleaning.counts import Histogram, StepCount, changed_characters
from rayrlhf.data.cleaning.passes import Pass
from rayrlhf.data.cleaning.verdict import Dropped
from rayrlhf.data.rows import digest
from rayrlhf.errors import DataError
from tests.data.cleaning import planted

ROOT = Path(__file__).parents[3]


def texts_of(cleaned: execute.Cleaned) -> list[str]:
    return [text for path in cleaned.paths for text in shards.read(path)["text"].to_pylist()]


def clean(texts: list[str], given: list[dict], folder: Path, blocks: int = 3, **keys: int) -> execute.Cleaned:
    from ray import data

    ds = data.from_items([{"text": text} for text in texts], override_num_blocks=blocks)
    return execute.clean(ds, planted.steps(given), str(folder), **keys)


# ---- counts ----------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    count = StepCount("x", num_examples=1)
    for before, after in (
        ("abc", "abd"),
        ("same", "same"),
        ("gone", Dropped("why", "so")),
        ("too", Dropped("why", "so")),
    ):
        count.see(before, after)
    found = count.as_dict()
    assert {name: found[name] for name in ("rows_in", "rows_out", "rows_changed", "chars_in", "chars_out")} == {
        "rows_in": 4, "rows_out": 2, "rows_changed": 1, "chars_in": 14, "chars_out": 7,
    }  # fmt: skip
    assert found["chars_changed"] == 1 and found["dropped"] == {"why": 2}
    assert found["changed_examples"] == [{"before": "abc", "after": "abd"}]
    assert len(found["dropped_examples"]) == 1 and found["dropped_examples"][0]["reason"] == "why"
    other = StepCount("x", num_examples=1)
    other.see("too", Dropped("why", "so"))
    kept = {text: StepCount("x", 1) for text in ("gone", "too")}
    for text, one in kept.items():
        one.see(text, Dropped("why", "so"))
    first = min(kept, key=lambda text: kept[text].dropped_examples[0]["hash"])
    kept["gone"].add(kept["too"])
    assert kept["gone"].dropped_examples[0]["text"] == first, "whatever the order of the shards"
    for order in (("gone", "too"), ("too", "gone")):
        one = StepCount("x", 1)
        for text in order:
            one.see(text, Dropped("why", "so"))
        assert one.dropped_examples[0]["text"] == first, "whatever the order of the rows"
    none = StepCount("x", num_examples=0)
    none.see("a", "b")
    assert none.changed_examples == []
    assert changed_characters("kitten", "sitting") == 3 and changed_characters("ab", "ba") == 0


def test_what_privacy_takes_out_is_in_no_example() -> None:
    protect = operators.protector(
        planted.steps([{"kind": "privacy", "phone": None}, {"kind": "privacy", "email": "@"}])
    )
    assert protect is not None and operators.protector(planted.steps([{"kind": "normalise"}])) is None
    secret, filler = "jane.doe@mail.example.org", "some words " * 3000
    for before, after, shown in (
        (f"a {secret}  b", f"a {secret} b", {"before": "a <EMAIL>  b", "after": "a <EMAIL> b"}),
        (f"a {secret} b", "a <EMAIL> b", {"before": "(not kept: personal data)", "after": "a <EMAIL> b"}),
        (f"{filler}{secret} b", f"{filler}<EMAIL> b", {"after": f"{filler}<EMAIL> b"[-49:]}),
        (
            f"{secret} {filler} x  b {secret}",
            f"{secret} {filler} x b {secret}",
            {"after": f"{filler} x b <EMAIL>"[-49:]},
        ),
    ):
        count = StepCount("x", num_examples=1)
        count.see(before, after, protect)
        [found] = count.as_dict()["changed_examples"]
        assert found | shown == found, found
    count.see(f"{'a ' * 140}{secret}", Dropped("why", f"for {secret}"), protect)
    [found] = count.as_dict()["dropped_examples"]
    assert found == {"reason": "why", "detail": "for <EMAIL>", "text": "a " * 140 + "<EMAIL>"}
    work = Pass("", (), None, None, 5, privacy=planted.steps([{"kind": "privacy"}]))
    assert work._shown(f"/data/a@b.org/x, line 3: has text=7. The row: {secret}") == (
        "/data/a@b.org/x, line 3: has text=7. The row: <EMAIL>"
    )


def test_histogram() -> None:
    histogram = Histogram()
    for length in (0, 1, 2, 3, 9):
        histogram.see(length)
    assert histogram.as_list() == [
        {"from": 0, "to": 0, "rows": 1},
        {"from": 1, "to": 1, "rows": 1},
        {"from": 2, "to": 3, "rows": 2},
        {"from": 4, "to": 7, "rows": 0},
        {"from": 8, "to": 15, "rows": 1},
    ]
    assert Histogram().as_list() == []


def test_every_row_is_counted(ray_local: None, tmp_path: Path) -> None:
    from ray import data

    texts = ["one  two", "one two", "x", "y" * 50, "three four", " one two "]
    ds = data.from_items([{"text": t, "rating": float(i)} for i, t in enumerate(texts)], override_num_blocks=3)
    said: list[str] = []
    given = [{"kind": "normalise"}, {"kind": "length", "min_chars": 2, "max_chars": 40}, {"kind": "exact_duplicates"}]
    cleaned = execute.clean(ds, planted.steps(given), str(tmp_path), say=said.append)
    assert cleaned.fates() == {"too_short": 1, "too_long": 1, "duplicate": 2, "kept": 2, "read": 6}
    rows = [row for path in cleaned.paths for row in shards.read(path).to_pylist()]
    assert sorted((row["text"], row["rating"]) for row in rows) == [("one two", 0.0), ("three four", 4.0)]
    normalise, length, exact = cleaned.counts.steps.values()
    assert (normalise.rows_in, normalise.rows_out, normalise.rows_changed, normalise.chars_changed) == (6, 6, 2, 3)
    assert (length.rows_in, length.rows_out) == (6, 4) and (exact.rows_in, exact.rows_out) == (4, 2)
    assert [e["text"] for e in length.dropped_examples if e["reason"] == "too_short"] == ["x"]
    assert any(line.startswith("clean: normalise, length: 4 rows kept") for line in said)
    assert sum(entry["rows"] for entry in cleaned.counts.lengths_in.as_list()) == 6
    assert sum(entry["rows"] for entry in cleaned.counts.lengths_out.as_list()) == 2


def test_what_a_step_leaves_empty_goes(ray_local: None, tmp_path: Path) -> None:
    texts = ["<p> </p>", "\u200b", "  ", "kept", "  kept"]
    cleaned = clean(texts, [{"kind": "strip_html"}, {"kind": "normalise"}, {"kind": "exact_duplicates"}], tmp_path)
    assert texts_of(cleaned) == ["kept"]
    assert [dict(count.dropped) for count in cleaned.counts.steps.values()] == [
        {"empty": 2}, {"empty": 1}, {"duplicate": 1}
    ]  # fmt: skip
    assert sorted(texts_of(clean(["", " ", "a"], [{"kind": "exact_duplicates"}], tmp_path / "g"))) == ["a"]


def test_steps_run_in_their_order_and_nothing_may_be_left(ray_local: None, tmp_path: Path) -> None:
    texts = ["<b>hello</b>", "hello"]
    strip, exact = {"kind": "strip_html"}, {"kind": "exact_duplicates"}
    assert sorted(texts_of(clean(texts, [strip, exact], tmp_path / "a"))) == ["hello"]
    assert sorted(texts_of(clean(texts, [exact, strip], tmp_path / "b"))) == ["hello", "hello"]
    empty = clean(texts, [{"kind": "length", "min_chars": 99}, exact, {"kind": "near_duplicates"}], tmp_path / "c")
    assert empty.paths == [] and empty.fates() == {
        "too_short": 2, "too_long": 0, "duplicate": 0, "near_duplicate": 0, "kept": 0, "read": 2,
    }  # fmt: skip


# ---- duplicates ------------------------------------------------------------------------------------


def test_lines_and_sentences_of_the_whole_data_set(ray_local: None, tmp_path: Path) -> None:
    footer, other = "Subscribe to our newsletter today!", "Click here to read the rest of it."
    texts = [f"Text number {n} says this. {footer}" for n in range(5)] + [f"{footer} {other}", f"短。{footer}", other]
    cleaned = clean(texts, [{"kind": "unit_duplicates"}], tmp_path / "s")
    left = texts_of(cleaned)
    assert sum(footer in text for text in left) == 1 and sum(other in text for text in left) == 1
    assert {f"Text number {n} says this." for n in range(5)} <= {text.removesuffix(f" {footer}") for text in left}
    assert cleaned.counts.steps["unit_duplicates"].dropped.get("all_duplicates", 0) == 8 - len(left) > 0
    by_line = clean(["a\nthe same long line here\n", "b\nthe same long line here\n"], [
        {"kind": "unit_duplicates", "unit": "line", "min_chars": 10}], tmp_path / "l")  # fmt: skip
    assert sorted(map(len, texts_of(by_line))) == [1, 26]
    none = clean(["a\nshort\n", "b\nshort\n"], [{"kind": "unit_duplicates", "unit": "line"}], tmp_path / "n")
    assert sorted(texts_of(none)) == ["a\nshort\n", "b\nshort\n"], "shorter than min_chars"


def test_planted_near_duplicates(ray_local: None, tmp_path: Path) -> None:
    made = planted.corpus()
    draw = random.Random(2)
    menu = " ".join(f"menu{n}" for n in range(120))  # bands that unlike texts share
    pages = [f"{menu} {' '.join(draw.choices([f'w{n}' for n in range(4000)], k=70))}" for _ in range(60)]
    texts = made["unique"] + made["near"] + pages
    found = {}
    for blocks in (2, 7):
        order = texts if blocks == 2 else texts[::-1]
        cleaned = clean(order, [{"kind": "near_duplicates", "threshold": 0.7}], tmp_path / str(blocks), blocks)
        found[blocks] = sorted(texts_of(cleaned))
    assert found[2] == found[7], "what stays does not depend on blocks or their order"
    left = set(found[2])
    caught = sum(not {one, other} <= left for one, other in zip(made["unique"], made["near"], strict=False))
    lost = sum(one not in left and other not in left for one, other in zip(made["unique"], made["near"], strict=False))
    assert caught >= 38, "recall on 40 planted pairs"
    assert lost == 0 and left >= set(made["unique"][40:] + pages), "precision: nothing else went"
    # and no near duplicates are on both sides of a split, for only one of a cluster is left
    strict = clean(
        texts, [{"kind": "near_duplicates", "threshold": 0.99, "ngram": 2, "permutations": 64}], tmp_path / "9"
    )
    assert strict.counts.rows > cleaned.counts.rows + 30


def test_one_node_and_its_rows(ray_local: None, tmp_path: Path) -> None:
    made = planted.write(tmp_path / "source")
    cleaned = execute.clean(
        reading.read(str(tmp_path / "source"), reading.Reading()), planted.steps(planted.STEPS), str(tmp_path / "work")
    )
    left = texts_of(cleaned)
    fates = cleaned.fates()
    assert fates["read"] == sum(map(len, made.values())) and fates["kept"] == len(left) == len(set(left))
    assert fates["too_short"] == 2 and fates["duplicate"] == 30
    assert 38 <= fates["near_duplicate"] <= 40
    assert sum("newsletter" in text for text in left) == 1
    assert os.listdir(tmp_path / "work") == ["pass_3"], "earlier shards are gone"


@pytest.mark.slow
def test_two_nodes_give_the_same_rows(ray_local: None, tmp_path: Path) -> None:
    planted.write(tmp_path / "source", num_files=12)
    one = execute.clean(
        reading.read(str(tmp_path / "source"), reading.Reading()), planted.steps(planted.STEPS), str(tmp_path / "one")
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
    command = [sys.executable, "-m", "tests.data.cleaning.two_nodes", str(tmp_path / "source"), str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout + done.stderr
    seen = json.loads(lines[0].removeprefix("SEEN "))
    assert len(seen["nodes"]) == 2 and seen["worked"] == seen["nodes"], "both nodes read and cleaned rows"
    assert seen["rows"] == sorted(texts_of(one)) and seen["fates"] == one.fates()


def test_stock_phrases_of_an_evaluation_set(ray_local: None, tmp_path: Path) -> None:
    stock, secret = "which of the following statements is correct", "the blue whale weighs about two hundred tonnes"
    stock += " here"
    (tmp_path / "eval.txt").write_text(f"{stock}\n{secret}\n")
    texts = [f"Page {n}: {stock}?" for n in range(6)] + [f"It is known that {secret}, or so."] * 2 + ["clean"]
    given = {"kind": "decontaminate", "against": [str(tmp_path / "eval.txt")]}
    every = clean(texts, [given], tmp_path / "a")
    assert texts_of(every) == ["clean"]
    some = clean(texts, [{"kind": "normalise"}, given | {"max_matches": 5}], tmp_path / "b")
    assert sorted(texts_of(some)) == sorted(texts[:6] + ["clean"]) and some.fates()["contaminated"] == 2
    count = some.counts.steps["decontaminate"].as_dict()
    assert count["notes"] == {"common_ngrams_ignored": 1}
    assert count["dropped_examples"][0]["detail"] == secret


# ---- rows that cannot be read ----------------------------------------------------------------------

BROKEN = [
    (b'{"text": "good one"}', None),
    (b'{"text": ', "line 2: not JSON"),
    (b'{"text": "a", "text": "b"}', "line 3: has text more than once in an object"),
    ('{"text": "caf\u00e9"}'.encode("latin-1"), "line 4: not utf-8 .byte 14 is 0xe9.; set data.encoding"),
    (b'{"text": 7}', r"line 5: has text=7 \(int\), not a string"),
    (b'{"text": null}', "line 6: has text=null"),
    (b'{"body": "x"}', "line 7: has no text"),
    (b'{"text": "' + b"x" * 300 + b'"}', "line 8: longer than data.max_row_bytes=200"),
    (b"   ", None),
    (b'{"text": "good two"}', None),
]


def broken(folder: Path) -> str:
    (folder / "a.jsonl").write_bytes(b"\n".join(line for line, _ in BROKEN))
    return str(folder / "a.jsonl")


READING = reading.Reading(max_row_bytes=200)


def test_rows_that_cannot_be_read_are_counted_and_shown(ray_local: None, tmp_path: Path) -> None:
    path = broken(tmp_path)
    wanted = [message for _, message in BROKEN if message]
    keep = planted.steps([{"kind": "length"}])
    cleaned = execute.clean(reading.read(path, READING), keep, str(tmp_path / "w"), max_bad_rows=7)
    assert sorted(texts_of(cleaned)) == ["good one", "good two"]
    assert cleaned.counts.num_bad == 7 and cleaned.counts.rows_read == 2
    for message, found in zip(wanted, cleaned.counts.bad, strict=True):
        assert re.search(f"a.jsonl, {message}", found), found
    with pytest.raises(DataError, match="(?s)more than data.max_bad_rows=6 rows.*line 2: not JSON.*line 8: longer"):
        execute.clean(reading.read(path, READING), keep, str(tmp_path / "v"), max_bad_rows=6)
    with pytest.raises(Exception) as raised:
        execute.clean(reading.read(path, READING), keep, str(tmp_path / "u"))
    assert "a.jsonl, line 2: not JSON" in str(user_error(raised.value))


def test_the_check_bears_as_many(tmp_path: Path) -> None:
    path = broken(tmp_path)
    reading.check(path, READING, 7)
    with pytest.raises(DataError, match="line 2: not JSON"):
        reading.check(path, READING, 0)
    (tmp_path / "b.txt").write_bytes(b"\xff\n\xfe\n")
    with pytest.raises(DataError, match="without a single row: .*line 1: not utf-8"):
        reading.check(str(tmp_path / "b.txt"), READING, 9)
    (tmp_path / "c.jsonl").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        reading.check(str(tmp_path / "c.jsonl"), READING, 0)


def test_other_encodings_and_formats(ray_local: None, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "a.txt").write_bytes("中文一行\r\n\n第二行".encode("gb18030"))
    found = reading.read(str(tmp_path / "a.txt"), reading.Reading(encoding="gb18030")).take_all()
    assert found == [{"text": "中文一行", "_bad": None}, {"text": "第二行", "_bad": None}]
    reading.check(str(tmp_path / "a.txt"), reading.Reading(encoding="gb18030"), 0)
    (tmp_path / "b.csv").write_bytes('id,text\n1,"two\nlines"\n2\n3,x,y\n4,caf\xe9\n5,last\n'.encode("latin-1"))
    found = reading.read(str(tmp_path / "b.csv"), reading.Reading()).take_all()
    assert [row["text"] for row in found] == ["two\nlines", "", "", "", "last"]
    for row, words in zip(found[1:4], ("has text=null", "more fields than", "not utf-8"), strict=True):
        assert words in row["_bad"] and "b.csv, line" in row["_bad"]
    latin = reading.read(str(tmp_path / "b.csv"), reading.Reading(encoding="latin-1")).take_all()
    assert latin[3] == {"text": "café", "_bad": None}
    parquet.write_table(pa.table({"text": ["ok", None, "x" * 300], "n": [1, 2, 3]}), tmp_path / "c.parquet")
    found = reading.read(str(tmp_path / "c.parquet"), READING).take_all()
    assert [row["text"] for row in found] == ["ok", "", ""] and "text=null" in found[1]["_bad"]
    assert "longer than data.max_row_bytes=200" in found[2]["_bad"]
    with pytest.raises(DataError, match="has no effect on Parquet"):
        reading.check(str(tmp_path / "c.parquet"), reading.Reading(encoding="latin-1"), 0)
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="has no text"):
        reading.check(str(tmp_path / "d.parquet"), READING, 0)


def rows_of(path: Path, **keys: Any) -> list[tuple[str, str | None]]:
    """What reading makes of a file, without Ray; the whole of it in one part after another."""
    given = reading.Reading(**keys)
    reading.check(str(path), given, max_bad_rows=99)
    return list(reading._all_rows(raw_files.resolve(str(path), given.format), given))


def test_json_arrays_tsv_compressed_files_and_other_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"content": f"第{n}行", "meta": {"body": f"row {n}"}, "n": n} for n in range(5)]
    lined = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    array = json.dumps(rows, ensure_ascii=False, indent=1)
    table = "n\tcontent\n" + "".join(f"{row['n']}\t{row['content']}\n" for row in rows)
    for name, text in (("a.jsonl", lined), ("b.json", array), ("c.json", lined), ("d.tsv", table)):
        for ending in ("", ".gz", ".bz2", ".xz", ".zst"):
            data = text.encode()
            if ending == ".zst":
                data = pa.compress(data, "zstd", asbytes=True)
            elif ending:
                data = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(data)
            (tmp_path / f"{name}{ending}").write_bytes(data)
            found = rows_of(tmp_path / f"{name}{ending}", columns={"text": "content"})
            assert found == [(f"第{n}行", None) for n in range(5)], (name, ending)
    assert rows_of(tmp_path / "b.json", columns={"text": "meta.body"})[3] == ("row 3", None)
    assert reading.columns(str(tmp_path / "b.json.zst"), "auto") == ["content", "meta", "n"]
    (tmp_path / "e.json").write_bytes(array.encode("gb18030"))
    assert rows_of(tmp_path / "e.json", columns={"text": "content"}, encoding="gb18030")[1] == ("第1行", None)
    with pytest.raises(DataError, match="b.json, row 1: has no column body, which data.columns names for text"):
        rows_of(tmp_path / "b.json", columns={"text": "body"})
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    for column, wanted in (("content", "第2行"), ("meta.body", "row 2")):
        given = reading.Reading(columns={"text": column})
        assert rows_of(tmp_path / "f.parquet", columns={"text": column})[2] == (wanted, None)
        marked = reading._marked(parquet.read_table(tmp_path / "f.parquet"), "f", given)
        assert marked["text"].to_pylist()[2] == wanted and marked["_bad"].null_count == 5
    with pytest.raises(DataError, match="has no effect on text files"):
        (tmp_path / "g.txt").write_text("x")
        rows_of(tmp_path / "g.txt", columns={"text": "content"})


def test_files_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9)[:-20])
    with pytest.raises(DataError, match="a.jsonl.gz cannot be read to its end as gzip"):
        rows_of(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.json").write_text('[{"text": "good"}, {"text": 3}, {"text": "' + "x" * 99 + '"}, {"text": ')
    with pytest.raises(DataError, match="b.json, after row 3: element 4 of the array is not JSON"):
        rows_of(tmp_path / "b.json", max_row_bytes=50)
    (tmp_path / "b.json").write_text('[{"text": "good"}, {"text": 3}, {"text": "' + "x" * 99 + '"}]')
    found = rows_of(tmp_path / "b.json", max_row_bytes=50)
    assert found[0] == ("good", None) and "row 2: has text=3" in str(found[1]) and "longer than" in str(found[2])
    (tmp_path / "c.zip").write_text("x")
    with pytest.raises(DataError, match="extensions .'.zip'.. Known extensions: .jsonl, .*.tsv"):
        rows_of(tmp_path / "c.zip")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.md").write_text("x")
    with pytest.raises(DataError, match="d holds no data file. Known extensions"):
        rows_of(tmp_path / "d")
    (tmp_path / "d" / "a.txt.bz2").write_bytes(bz2.compress(b"one\ntwo"))
    assert rows_of(tmp_path / "d") == [("one", None), ("two", None)], "what has no known extension is no data"
    (tmp_path / "d" / "a.csv").write_text("text\nx")
    with pytest.raises(DataError, match="cannot tell the format"):
        rows_of(tmp_path / "d")


def test_a_giant_field_of_csv_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    giant = "\n".join(f"line {n} of it" for n in range(40))
    (tmp_path / "a.csv").write_text(f'text,n\nfirst,1\n"{giant}",2\nlast,3\n')
    found = rows_of(tmp_path / "a.csv", max_row_bytes=100)
    assert [text for text, _ in found] == ["first", "", "last"], "its tail is no row"
    assert "a.csv, line 42: longer than data.max_row_bytes=100 (or a quote" in str(found[1])
    monkeypatch.setattr(raw_rows, "_CSV_FIELD", 200)
    with pytest.raises(DataError, match="a field goes on for more than 200 characters"):
        rows_of(tmp_path / "a.csv", max_row_bytes=100)


def test_pieces_of_a_table_are_bounded_by_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.setattr(shards, "BYTES", 100)
    monkeypatch.setattr(shards, "ROWS", 4)
    texts = ["a" * 300, *["b" * 30] * 5, *["c"] * 9, "字" * 40, ""]
    found = [piece["text"].to_pylist() for piece in shards.pieces(pa.table({"text": texts}))]
    assert sum(found, []) == texts and [len(piece) for piece in found] == [1, 3, 4, 4, 3, 1, 1]
    assert list(shards.pieces(pa.table({"text": pa.array([], pa.string())}))) == []


def test_long_rows_make_small_shards(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [str(n) * 2**20 for n in range(10, 40)]  # 2 MiB each
    cleaned = clean(texts, [{"kind": "normalise"}], tmp_path, blocks=2)
    assert texts_of(cleaned) == texts, "in their order"
    sizes = [shards.read(path)["text"].nbytes for path in cleaned.paths]
    assert len(sizes) >= 4 and max(sizes) < 1.1 * shards.BYTES


def test_parts_of_a_file_give_every_line_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = [b"x" * length for length in (0, 3, 9, 1, 1, 40, 2, 0, 5)]
    for end in (b"\n", b"\r\n"):
        path.write_bytes(end.join(content))
        size = path.stat().st_size
        for step in (1, 2, 3, 7, 11, size):
            found = []
            with open(path, "rb") as file:
                for start in range(0, size, step):
                    found += [line for _, line in raw_rows.lines(file, start, min(size, start + step), 30)]
            assert [None if line is None else line.rstrip(b"\r\n") for line in found] == [
                line if len(line) <= 30 else None for line in content
            ], (end, step)


def test_a_file_in_several_parts(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 1000)
    rows = [{"text": f"第{n}行 {digest(str(n))}"} for n in range(200)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "".join(lines) + "broken\n", encoding="utf-8")
    found = reading.read(str(tmp_path / "a.jsonl"), reading.Reading()).take_all()
    assert [row["text"] for row in found] == [row["text"] for row in rows] + [""]
    assert "a.jsonl, line 201: not JSON" in found[-1]["_bad"], "counted over the parts before"
