"""Users' rows from files and from the hub, as a Ray Data stream of checked rows."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec

from rayrlhf.data.bad_rows import NONE, BadRows, check_bad
from rayrlhf.data.context import settle
from rayrlhf.data.fetch import cache_dir
from rayrlhf.data.formats import AUTO, OWN, Reading, others, recognise
from rayrlhf.data.row_files import file_rows
from rayrlhf.data.rows import COLUMNS, PARSED, Row, digest
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
    bad: BadRows = NONE,
) -> Dataset:
    """The rows at `path` as a lazy dataset with just the columns of `kind`, in the files' order.

    `path` is a file, a folder (searched through), a glob, each also as an fsspec URI, or
    `hf://name[[:config]:split]`.  Text files give a row a line, blank lines left out.  `layout`, `columns` and
    `with_extras` are `formats.recognise`'s, which looks at the first rows.  DataError at once for a missing path, an
    unknown extension or columns of no layout; when they are reached, for more wrong rows than `bad` allows.
    """
    from ray import data

    settle()
    files = _files(path, format)
    reading = recognise(_sample(files, kind), kind, layout, columns, with_extras)
    where: dict[str, Any] = {} if is_local(files.filesystem) else {"filesystem": files.filesystem}
    if files.format != "parquet":
        from rayrlhf.data.lines import Lines

        parse = partial(_parse_text, reading=reading) if files.format == "text" else reading
        return data.read_datasource(Lines(files.paths, parse, files.format, bad, **where))
    if path.startswith(HUB):
        where = _on_this_node()  # the cache may be of this machine alone
    rows = data.read_parquet(files.paths, **where)
    return rows.map_batches(partial(_checked, reading=reading, where=path, bad=bad), batch_format="pyarrow")


def _on_this_node() -> dict[str, Any]:
    """Arguments of a Ray Data reader whose tasks are to run here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"ray_remote_args": {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}}


def check(
    path: str,
    format: str = "auto",
    kind: str = "text",
    layout: str = AUTO,
    columns: Mapping[str, str] | None = None,
    with_extras: bool = False,
    max_bad_rows: int = 0,
) -> list[Row]:
    """The first rows at `path`, as `read` will give them, without Ray; of a hub set none.  DataError when it is
    missing, empty or of the wrong form, in more than `max_bad_rows` of them or in all."""
    if path.startswith(HUB):
        hub_name(path)
        return []
    files = resolve(path, format)
    sample = _sample(files, kind)
    if not sample:
        raise DataError(f"{path} is empty: {len(files.paths)} {files.format} file(s) without a single row")
    reading = recognise(sample, kind, layout, columns, with_extras)
    wrong = {where: reading.wrong(row) for where, row in sample}
    unread = {where for where, row in sample if isinstance(row, ValueError)}  # other columns would not help those
    hints = {where: others(kind) if reading.layout == OWN and where not in unread else "" for where in wrong}
    bad = [f"{where}: {why}{hints[where]}" for where, why in wrong.items() if why]
    check_bad(bad, max_bad_rows if len(bad) < len(sample) else 0)
    return [reading(row) for where, row in sample if not wrong[where]]


def _sample(files: Files, kind: str) -> list[tuple[str, Any]]:
    """The first rows, each with its file and place; of those that cannot be read the ValueError that says why."""
    rows: list[tuple[str, Any]] = []
    for name in files.paths:
        rows += itertools.islice(found_rows(files, name, kind), SAMPLE_ROWS - len(rows))
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


def _parse_text(line: str, reading: Reading) -> Row:
    return reading(_text_row(line, reading.kind))


def _text_row(line: str, kind: str) -> Row:
    if kind not in ("text", "prompts"):
        raise ValueError(f"plain text has no columns, {kind} rows need {list(COLUMNS[kind])}: use JSONL or CSV")
    return {COLUMNS[kind][0]: line}


def _checked(batch: pa.Table, reading: Reading, where: str, bad: BadRows = NONE) -> pa.Table:
    """`batch` with the columns of the reading's kind, without wrong rows, of which `bad` says what becomes."""
    import pyarrow as pa

    rows, kept, kind = list[Row](), list[int](), reading.kind
    given = batch.to_pylist()
    for number, row in enumerate(given):
        try:
            rows.append(reading(row))
            kept.append(number)
        except ValueError as error:
            # a batch does not know its place in the file, but is the same each time it is read
            bad.add(where, f"a row {error}", digest(where, repr(given[0]), repr(given[-1]), str(number)))
    batch = batch.take(kept) if len(kept) < batch.num_rows else batch
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


def first_rows(files: Files, name: str, kind: str) -> Iterator[tuple[str, Any]]:
    """(file and place, row) of one file as it stands there, without Ray; DataError at one that cannot be read."""
    for where, row in found_rows(files, name, kind):
        if isinstance(row, ValueError):
            raise DataError(f"{where}: {row}")
        yield where, row


def found_rows(files: Files, name: str, kind: str) -> Iterator[tuple[str, Any]]:
    """`first_rows`, with the ValueError that says what is wrong in the place of a row that cannot be read."""
    if files.format == "parquet":
        yield from parquet_rows(files, name)
        return
    with files.filesystem.open(name, "rb") as file:
        for where, row in file_rows(file, name, files.format):
            try:
                is_line = files.format == "text" and not isinstance(row, ValueError)
                found = _text_row(row, kind) if is_line else row
            except ValueError as error:
                found = error
            yield where, found


def parquet_rows(files: Files, name: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    start = 1
    try:
        with files.filesystem.open(name, "rb") as file:
            opened = parquet.ParquetFile(file)
            refuse_pickles(name, opened.schema_arrow)
            for batch in opened.iter_batches(batch_size=SAMPLE_ROWS):
                yield from ((f"{name}, row {number}", row) for number, row in enumerate(batch.to_pylist(), start))
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # OSError: of a part that cannot be decoded
        raise DataError(f"{name} is not a Parquet file: {error}") from error


def refuse_pickles(name: str, fields: Any) -> None:
    """DataError where a column of a Parquet file (`fields`: its schema, or a type with fields) is of Ray's type of
    Python objects: reading one loads a pickle, which runs whatever code is in it."""
    count = len(fields) if hasattr(fields, "names") else fields.num_fields
    for field in (fields.field(number) for number in range(count)):
        said = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
        if "pickled_object" in getattr(field.type, "extension_name", said):
            raise DataError(
                f"{name}: column {field.name} holds pickled Python objects, and reading one may run code that hides in "
                "it: write the file anew without that column, or with plain values in it"
            )
        refuse_pickles(name, field.type)


def hub_name(path: str) -> tuple[str, str | None, str]:
    """(name, configuration, split) of `hf://name[[:configuration]:split]`; DataError where it is not so."""
    name, *parts = path[len(HUB) :].split(":")
    if not name or len(parts) > 2 or not all(parts):
        raise DataError(
            f"{path!r} names no data set: write hf://name, hf://name:split or hf://name:configuration:split"
        )
    return name, parts[0] if len(parts) == 2 else None, parts[-1] if parts else "train"


def hub_file(path: str) -> str:
    """The set in this machine's cache as one Parquet file, so that it streams like any other; downloaded once."""
    import datasets

    name, configuration, split = hub_name(path)
    try:
        loaded = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors, those of splits ValueErrors
        raise DataError(f"cannot load {path} from the Hugging Face hub: {error}") from error
    file = cache_dir() / "hub" / f"{digest(name, configuration or '', split, loaded._fingerprint)}.parquet"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".part{os.getpid()}")
        loaded.to_parquet(part)
        part.replace(file)
    return str(file)
