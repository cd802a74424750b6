"""Rows as they stand in files of lines, arrays and CSV; what cannot be read keeps its place."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.command import user_error
from rayrlhf.data import row_files, sources
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.row_files import file_rows
from rayrlhf.data.tally import BAD, KEPT, READ, Tally
from rayrlhf.errors import DataError


def found(content: bytes, format: str, name: str = "a") -> list[tuple[str, object]]:
    rows = file_rows(io.BufferedReader(io.BytesIO(content)), name, format)
    return [(where, f"{row}!" if isinstance(row, ValueError) else row) for where, row in rows]


def test_lines_that_cannot_be_read_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 40)
    deep = b"[" * 100_000
    half = b'{"a": "\\ud83d"}'  # of a pair, as text that was cut by bytes has it
    whole = b'{"a": "\\ud83d\\ude00"}'
    lines = [b'{"a": 1}', b"", b'{"a": ', b'{"a": "\xcd"}', b'{"a": "' + b"x" * 50 + b'"}', half, whole, b'{"a": 2}']
    (one, broken, coded, giant, cut, smile, two) = found(b"\n".join(lines), "jsonl")
    assert (one, two) == (("a, line 1", {"a": 1}), ("a, line 8", {"a": 2}))
    assert broken[0] == "a, line 3" and str(broken[1]).startswith("not JSON")
    assert coded[0] == "a, line 4" and "not UTF-8 (byte 8 is 0xcd): convert the file" in str(coded[1])
    assert giant == ("a, line 5", "longer than 40 bytes!")
    assert cut[0] == "a, line 6" and r"half a character, \ud83d" in str(cut[1])
    assert smile == ("a, line 7", {"a": "😀"})
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 10**6)
    assert found(deep, "jsonl") == [("a, line 1", "nested too deeply for a row!")]


def test_csv_rows_of_another_length_or_encoding_keep_their_place() -> None:
    content = 'q,a\n1,"x\ny"\n1,2,3\n,\nä,b\n'.encode().replace("ä".encode(), "ä".encode("latin-1"))
    one, longer, blank, coded = found(content, "csv")
    assert one == ("a, line 3", {"q": "1", "a": "x\ny"}) and blank == ("a, line 5", {"q": "", "a": ""})
    assert longer == ("a, line 4", "has 3 fields, the first line 2!")
    assert coded[0] == "a, line 6" and "not UTF-8: convert" in str(coded[1])
    (big,) = found(b"q\n" + b"x" * 200_000 + b"\n", "csv")  # Python's csv stops at 131,072 by itself
    assert len(big[1]["q"]) == 200_000  # type: ignore[index]
    with pytest.raises(DataError, match="a names q more than once in its first line"):
        found(b"q,a,q\n1,2,3\n", "csv")


def test_after_quotes_without_an_end_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 100)
    with pytest.raises(DataError, match=r"a, line \d+: not CSV \(field larger than field limit"):
        found(b'q\n1\n"' + b"line\n" * 100 + b'"\n2\n', "csv")


def bad_files(folder: Path) -> dict[str, str]:
    """A file of each format, each with 12 rows of which 2 cannot be read."""
    good = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(10)]
    lines = [json.dumps(row) for row in good]
    lines[3:3] = ["{", '{"prompt": "p", "completion": null}']
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "a.csv").write_text(
        "prompt,completion\n" + "".join(f"p{n},c{n}\n" for n in range(10)) + "p,c,more\np\n", encoding="utf-8"
    )
    parquet.write_table(
        pa.Table.from_pylist([*good, *({"prompt": "p", "completion": None},) * 2]), folder / "a.parquet"
    )
    return {format: str(folder / f"a.{format}") for format in ("jsonl", "csv", "parquet")}


def test_bad_rows_are_left_out_counted_and_shown_up_to_a_limit(ray_local, tmp_path, capsys) -> None:
    from rayrlhf.data.config import DataConfig
    from rayrlhf.data.tally import report
    from rayrlhf.data.token_rows import token_rows
    from tests.conftest import byte_tokenizer

    for format, path in bad_files(tmp_path).items():
        sources.check(path, "auto", "prompt_completion", max_bad_rows=2)
        with pytest.raises(DataError, match="more than data.max_bad_rows=1 rows cannot be read"):
            sources.check(path, "auto", "prompt_completion", max_bad_rows=1)
        data, tally = DataConfig(train=path, max_bad_rows=2), Tally()
        rows = token_rows(data.sources[0], "prompt_completion", data, byte_tokenizer(), tally)
        assert rows.count() == 10 and rows.count() == 10, "read twice, the bad ones count once"
        counts = tally.counts()
        assert counts[BAD] == 2 and counts[READ] - counts[KEPT] == 2, format
        report(path, tally, None)
        said = capsys.readouterr().out
        assert "2 dropped (that cannot be read)" in said and ("completion" in said or "1 field" in said)
        one = BadRows(1, Tally())
        with pytest.raises(Exception) as raised:
            sources.read(path, "auto", "prompt_completion", bad=one).count()
            sources.read(path, "auto", "prompt_completion", bad=one).materialize()
        assert "more than data.max_bad_rows=1 rows cannot be read" in str(user_error(raised.value)), format
