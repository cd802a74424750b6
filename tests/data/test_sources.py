"""sources: what is refused before anything starts, and what each format gives through Ray."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.command import user_error
from rayrlhf.data import sources
from rayrlhf.errors import DataError

PAIRS = [{"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"prompt": "", "chosen": "00", "rejected": "1"}]


def _jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.jsonl", "", "text", "a.jsonl is empty: 1 jsonl file"),
        ("a.jsonl", "\n\n", "text", "is empty"),
        ("a.txt", "", "text", "is empty"),
        ("a.csv", "text\n", "text", "is empty"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "text", "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"text": 7}\n', "text", r"line 1: has text=7 \(int\), not a string"),
        ("a.jsonl", "[1]\n", "text", "line 1: is list"),
        ("a.jsonl", '{"in": "a", "out": "b"}\n', "prompt_completion", "no prompt and no completion.*'in', 'out'"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}\n', "prompts", "messages"),
        ("a.csv", "prompt,chosen\na,b\n", "preference", "line 2: has no rejected: found .*'chosen', 'prompt'"),
        ("a.txt", "a\n", "preference", "plain text has no columns"),
        ("a.csv", "prompt,completion,label\na,b,good\n", "labelled", "label=good .*, not true or false"),
        ("a.jsonl", '{"prompt": "a", "completion": "b", "label": 2}\n', "labelled", "line 1: has label=2 .int.*1 or 0"),
        ("a.csv", "prompt,chosen,rejected,margin\na,b,c,nan\n", "preference_margin", "margin=nan .*finite"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "preference_margin", "line 1: has no margin"),
        ("a.jsonl", '{"prompt": "a", "completion": "b", "score": true}\n', "scored", "score=true .*a finite number"),
        ("a.jsonl", '{"prompt": "a", "ranked": ["b"]}\n', "ranking", "ranked=.*not a list of two texts or more"),
        ("a.dat", "a\n", "text", "cannot tell the format"),
        ("a.parquet", "PAR1", "text", "not a Parquet file"),
    ],
)  # fmt: skip
def test_check_refuses(tmp_path: Path, name: str, content: str, kind: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        sources.check(str(tmp_path / name), "auto", kind)


def test_check_refuses_a_missing_path_an_empty_folder_and_a_nameless_hub_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        sources.check(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="holds no data file"):
        sources.check(str(tmp_path))
    with pytest.raises(DataError, match="names no data set"):
        sources.check("hf://")


def test_check_accepts_each_kind(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", PAIRS)
    sources.check(path, "auto", "preference")
    sources.check(path, "auto", "prompts")  # further columns do no harm
    messages = [{"prompt": [{"role": "user", "content": "Q"}], "completion": "A"}]
    sources.check(_jsonl(tmp_path / "m.jsonl", messages), "auto", "prompt_completion")


def test_check_reads_the_first_rows_only(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * sources.SAMPLE_ROWS + "broken\n")
    sources.check(str(tmp_path / "a.jsonl"))


def test_every_format_gives_the_same_rows(ray_local: None, tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", [row | {"note": 1} for row in PAIRS])
    parquet.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(PAIRS)
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        assert sources.read(str(tmp_path / name), "auto", "preference").take_all() == PAIRS, name


def test_labels_are_read_from_every_format(ray_local: None, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": str(n), "label": label} for n, label in enumerate([True, False, 1, 0.0])]
    _jsonl(tmp_path / "a.jsonl", rows)
    parquet.write_table(
        pa.Table.from_pylist([row | {"label": float(row["label"])} for row in rows]), tmp_path / "a.parquet"
    )
    (tmp_path / "a.csv").write_text("prompt,completion,label\nQ,0,true\nQ,1,False\nQ,2,1\nQ,3,0\n")
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        sources.check(str(tmp_path / name), "auto", "labelled")
        found = sources.read(str(tmp_path / name), "auto", "labelled").take_all()
        assert [(row["completion"], row["label"]) for row in found] == [
            ("0", True), ("1", False), ("2", True), ("3", False),
        ], name  # fmt: skip


def test_numbers_and_rankings_are_read_from_every_format(ray_local: None, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "a", "score": 2}, {"prompt": "Q", "completion": "b", "score": -0.5}]
    _jsonl(tmp_path / "a.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("prompt,completion,score\nQ,a,2\nQ,b,-.5\n")
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        assert sources.read(str(tmp_path / name), "auto", "scored").take_all() == rows, name
    ranked = [{"prompt": "Q", "ranked": ["a", "b"]}, {"prompt": "", "ranked": ["c", "d", "e"]}]
    _jsonl(tmp_path / "r.jsonl", ranked)
    parquet.write_table(pa.Table.from_pylist(ranked), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.parquet"):
        sources.check(str(tmp_path / name), "auto", "ranking")
        assert sources.read(str(tmp_path / name), "auto", "ranking").take_all() == ranked, name


def test_folders_and_globs_are_read_in_order(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("\ufeffthree\n\nfour", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one\r\ntwo\r\n")
    (tmp_path / "sub" / "c.txt").write_text("five\n")
    (tmp_path / "README.md").write_text("not data")
    whole = [row["text"] for row in sources.read(str(tmp_path)).take_all()]
    assert whole == ["one", "two", "three", "four", "five"]
    globbed = [row["text"] for row in sources.read(f"{tmp_path}/[ab].txt").take_all()]
    assert globbed == ["one", "two", "three", "four"]


def test_a_hub_set_goes_the_same_way(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "set").mkdir()
    _jsonl(tmp_path / "set" / "train.jsonl", PAIRS)  # load_dataset takes a folder as well as a hub's name
    for _ in range(2):
        assert sources.read(f"hf://{tmp_path}/set:train", "auto", "preference").take_all() == PAIRS
    with pytest.raises(DataError, match="cannot load hf://.*:nosuch"):
        sources.read(f"hf://{tmp_path}/set:nosuch", "auto", "preference")


def test_a_small_machine_gets_one_process_for_parquet_footers(ray_local: None, tmp_path: Path) -> None:
    from ray.data._internal.datasource_v2.formats.parquet.footer_file_indexer import FooterFileIndexer

    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert sources.read(str(tmp_path)).count() == 1
    index = FooterFileIndexer(ignore_missing_paths=False)
    assert index._num_actors == 1, "Ray's own default is 32"
    assert index._footer_batch_size == index._io_concurrency == 128, "as many files as threads"


def test_messages_survive(ray_local: None, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "completion": "c"}]
    assert sources.read(_jsonl(tmp_path / "a.jsonl", rows), "auto", "prompt_completion").take_all() == rows


def test_a_broken_line_deep_in_a_file_is_named(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5000 + '{"text": \n')
    with pytest.raises(Exception) as raised:
        sources.read(str(tmp_path / "a.jsonl")).take_all()
    assert "a.jsonl, line 5001: not JSON" in str(user_error(raised.value))


def test_a_wrong_parquet_row_is_shown(ray_local: None, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(Exception) as raised:
        sources.read(str(tmp_path / "a.parquet")).take_all()
    assert "has text=null (NoneType), not a string" in str(user_error(raised.value))
