"""The files of raw text: their formats by extension, compressed ones too."""

from __future__ import annotations

import io
import lzma
import posixpath
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from rayrlhf.data import sources
from rayrlhf.data.json_array import is_array
from rayrlhf.errors import DataError

EXTENSIONS = sources.EXTENSIONS | {".tsv": "csv"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


def resolve(path: str, format: str) -> sources.Files:
    """The files `path` stands for, as `sources.resolve`, with those that are compressed (a.jsonl.gz) and .tsv."""
    if format != "auto":
        return sources.resolve(path, format)
    files = sources.resolve(path, "text")  # all that are there
    names = files.paths
    if files.filesystem.isdir(fsspec.core.url_to_fs(path)[1]):
        names = [name for name in names if extension(name) in EXTENSIONS]
    found = sorted({extension(name) for name in names})
    formats = {EXTENSIONS.get(one, "") for one in found}
    if len(formats) == 1 and "" not in formats:
        return sources.Files(files.filesystem, names, formats.pop())
    known = (
        f"Known extensions: {', '.join(EXTENSIONS)}, each also with {', '.join(COMPRESSIONS)} after it (Parquet not)."
    )
    if not names:
        raise DataError(f"{path} holds no data file. {known}")
    raise DataError(
        f"cannot tell the format of {path} from the extensions {found}. {known} Set `format` to one of "
        f"{sorted(set(EXTENSIONS.values()))}, or name files of one kind."
    )


def extension(name: str) -> str:
    """What tells the format: .jsonl of a.jsonl.gz; a compressed Parquet file has none that is known."""
    stem, last = posixpath.splitext(name.lower())
    if last not in COMPRESSIONS:
        return last
    inner = posixpath.splitext(stem)[1]
    return inner if inner != ".parquet" else inner + last


def delimiter(name: str) -> str:
    """What stands between the columns of a CSV file."""
    return "\t" if extension(name) == ".tsv" else ","


def is_compressed(name: str) -> bool:
    """Whether only reading from its beginning makes sense of a file."""
    return posixpath.splitext(name.lower())[1] in COMPRESSIONS


@contextmanager
def opened(files: sources.Files, name: str) -> Iterator[Any]:
    """The bytes of a file as they were before it was compressed; DataError where they are not all there."""
    compression = COMPRESSIONS.get(posixpath.splitext(name.lower())[1])
    if compression is None:
        with files.filesystem.open(name, "rb") as file:
            yield file
        return
    import pyarrow as pa

    try:
        if compression == "zstd":  # fsspec has it only with another library
            with (
                files.filesystem.open(name, "rb") as raw,
                pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as file,
            ):
                yield io.BufferedReader(file)
        else:
            with files.filesystem.open(name, "rb", compression=compression) as file:
                yield io.BufferedReader(file)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} cannot be read to its end as {compression}: {error}") from error


def is_json_array(files: sources.Files, name: str) -> bool:
    """Whether a file is one JSON array, by its extension and first bytes."""
    if files.format != "jsonl" or extension(name) != ".json":
        return False
    with opened(files, name) as file:
        return is_array(io.BufferedReader(file) if not hasattr(file, "peek") else file)
