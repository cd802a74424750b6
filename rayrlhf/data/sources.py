"""Users' rows from files and from the hub, as a Ray Data stream of checked rows."""

from __future__ import annotations

import csv
import io
import itertools
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec

from rayrlhf.data.context import settle
from rayrlhf.data.fetch import cache_dir
from rayrlhf.data.formats import AUTO, OWN, Reading, others, recognise
from rayrlhf.data.json_array import is_array
from rayrlhf.data.rows import COLUMNS, PARSED, Row, digest, from_json, parsed_elements, parsed_lines
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

HUB = "hf://"
SAMPLE_ROWS = 100
EXTENSIONS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


@dataclass(frozen=True)
class Files:
    """What a path means: files of one format on one file system."""

    filesystem: Any
    paths: list[str]
    format: str


def read(
    path: str,
    format: str = "auto",
    kind: str = "text",
    layout: str = AUTO,
    columns: Mapping[str, str] | None = None,
    with_extras: bool = False,
) -> Dataset:
    """The rows at `path` as a lazy dataset with just the columns of `kind`, in the files' order.

    `path` is a file, a folder (searched through), a glob, each also as an fsspec URI, or
    `hf://name[:split]`.  Text files give a row a line, blank lines left out.  `layout`, `columns` and `with_extras`
    are `formats.recognise`'s, which looks at the first rows.  DataError at once for a missing path, an unknown
    extension or columns of no layout; a wrong row raises it when it is reached.
    """
    from ray import data

    settle()
    files = _files(path, format)
    reading = recognise(_sample(files, kind), kind, layout, columns, with_extras)
    where: dict[str, Any] = {} if is_local(files.filesystem) else {"filesystem": files.filesystem}
    if files.format in ("jsonl", "text"):
        from rayrlhf.data.lines import Lines

        parse = partial(_parse_json if files.format == "jsonl" else _parse_text, reading=reading)
        return data.read_datasource(Lines(files.paths, parse, **where))
    if files.format == "csv":
        rows = data.read_csv(files.paths, **_csv_options(files), **where)
    else:
        rows = data.read_parquet(files.paths, **where)
    return rows.map_batches(partial(_checked, reading=reading, where=path), batch_format="pyarrow")


def check(
    path: str,
    format: str = "auto",
    kind: str = "text",
    layout: str = AUTO,
    columns: Mapping[str, str] | None = None,
    with_extras: bool = False,
) -> list[Row]:
    """The first rows at `path`, as `read` will give them, without Ray; of a hub set none.  DataError when it is
    missing, empty or of the wrong form."""
    if path.startswith(HUB):
        hub_name(path)
        return []
    files = resolve(path, format)
    sample = _sample(files, kind)
    if not sample:
        raise DataError(f"{path} is empty: {len(files.paths)} {files.format} file(s) without a single row")
    reading = recognise(sample, kind, layout, columns, with_extras)
    for where, row in sample:
        wrong = reading.wrong(row)
        if wrong:
            raise DataError(f"{where} {wrong}{others(kind) if reading.layout == OWN else ''}")
    return [reading(row) for _, row in sample]


def _sample(files: Files, kind: str) -> list[tuple[str, Any]]:
    """The first rows, each with its file and place."""
    rows: list[tuple[str, Any]] = []
    for name in files.paths:
        rows += itertools.islice(first_rows(files, name, kind), SAMPLE_ROWS - len(rows))
        if len(rows) >= SAMPLE_ROWS:
            break
    return rows


def _files(path: str, format: str) -> Files:
    """`resolve`, and for a hub set the file in the cache that holds it."""
    return resolve(hub_file(path), "parquet") if path.startswith(HUB) else resolve(path, format)


def resolve(path: str, format: str) -> Files:
    """The files `path` stands for; DataError when there are none or their format is not clear."""
    try:
        filesystem, where = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise DataError(f"{path} cannot be reached: {error}") from error
    if any(mark in where for mark in "*?["):
        paths = [name for name in filesystem.glob(where) if filesystem.isfile(name)]
    elif filesystem.isdir(where):
        paths = [name for name in filesystem.find(where) if posixpath.basename(name)[0] not in "._"]
        if format == "auto":
            paths = [name for name in paths if posixpath.splitext(name)[1].lower() in EXTENSIONS]
    elif filesystem.exists(where):
        paths = [where]
    else:
        raise DataError(f"no file or folder {path}. Relative paths start at the working directory.")
    if not paths:
        raise DataError(f"{path} holds no data file. Known extensions: {', '.join(EXTENSIONS)}.")
    return Files(filesystem, sorted(paths), _format(path, paths) if format == "auto" else format)


def _format(path: str, paths: list[str]) -> str:
    found = sorted({posixpath.splitext(name)[1].lower() for name in paths})
    formats = {EXTENSIONS.get(extension, "") for extension in found}
    if len(formats) != 1 or "" in formats:
        raise DataError(
            f"cannot tell the format of {path} from the extensions {found}. "
            f"Set `format` to one of {sorted(set(EXTENSIONS.values()))}, or name files of one kind."
        )
    return formats.pop()


def is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _parse_json(line: str, reading: Reading) -> Row:
    return reading(from_json(line))


def _parse_text(line: str, reading: Reading) -> Row:
    return reading(_text_row(line, reading.kind))


def _text_row(line: str, kind: str) -> Row:
    if kind not in ("text", "prompts"):
        raise ValueError(f"plain text has no columns, {kind} rows need {list(COLUMNS[kind])}: use JSONL or CSV")
    return {COLUMNS[kind][0]: line}


def _checked(batch: pa.Table, reading: Reading, where: str) -> pa.Table:
    """`batch` with the columns of the reading's kind; DataError at its first wrong row."""
    import pyarrow as pa

    rows, kind = [], reading.kind
    for row in batch.to_pylist():
        try:
            rows.append(reading(row))
        except ValueError as error:
            raise DataError(f"{where}: a row {error}") from error
    if not reading.is_plain:
        try:
            return pa.Table.from_pylist(rows, schema=reading.schema())
        except pa.ArrowException as error:
            raise DataError(
                f"{where}: a column mixes types ({error}). Make `prompt` strings, or messages, throughout."
            ) from error
    chosen = batch.select(list(COLUMNS[kind]))
    for index, name in enumerate(COLUMNS[kind]):
        if name in PARSED:
            values = [PARSED[name][0](value) for value in chosen.column(name).to_pylist()]
            chosen = chosen.set_column(index, name, pa.array(values))
    plain = [pa.string() if pa.types.is_large_string(field.type) else field.type for field in chosen.schema]
    return chosen.cast(pa.schema(list(zip(chosen.column_names, plain, strict=True))))


def _csv_options(files: Files) -> dict[str, Any]:
    """Every CSV column as a string (Arrow would guess), with line breaks inside quotes."""
    from pyarrow import csv as arrow_csv
    from pyarrow import string

    with files.filesystem.open(files.paths[0], "r", encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    return {
        "parse_options": arrow_csv.ParseOptions(newlines_in_values=True),
        "convert_options": arrow_csv.ConvertOptions(column_types={name: string() for name in header}),
    }


def first_rows(files: Files, name: str, kind: str) -> Iterator[tuple[str, Any]]:
    """(file and place, row) of one file as it stands there, without Ray."""
    if files.format == "parquet":
        yield from parquet_rows(files, name)
        return
    with files.filesystem.open(name, "rb") as file:
        if files.format == "csv":
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            yield from ((f"{name}, line {reader.line_num}", row) for row in reader)
            return
        if files.format == "jsonl" and name.endswith(".json") and is_array(file):
            yield from ((f"{name}, row {number}:", row) for number, row in parsed_elements(file, name, from_json))
            return
        parse = from_json if files.format == "jsonl" else partial(_text_row, kind=kind)
        yield from ((f"{name}, line {number}:", row) for number, row in parsed_lines(file, name, parse))


def parquet_rows(files: Files, name: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with files.filesystem.open(name, "rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=SAMPLE_ROWS):
                yield from ((f"{name}, row {number}", row) for number, row in enumerate(batch.to_pylist()))
    except pa.ArrowException as error:
        raise DataError(f"{name} is not a Parquet file: {error}") from error


def hub_name(path: str) -> tuple[str, str]:
    name, _, split = path[len(HUB) :].partition(":")
    if not name:
        raise DataError(f"{path!r} names no data set: write hf://name or hf://name:split")
    return name, split or "train"


def hub_file(path: str) -> str:
    """The set in the cache as one Parquet file, so that it streams like any other; downloaded once."""
    import datasets

    name, split = hub_name(path)
    try:
        loaded = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors, those of splits ValueErrors
        raise DataError(f"cannot load {path} from the Hugging Face hub: {error}") from error
    file = cache_dir() / "hub" / f"{digest(name, split, loaded._fingerprint)}.parquet"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".part{os.getpid()}")
        loaded.to_parquet(part)
        part.replace(file)
    return str(file)
