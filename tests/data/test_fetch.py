"""fetch: whole or not at all, from an archive like the package's, without a network."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from rayrlhf.data import fetch
from rayrlhf.errors import DataError

CONTENT = b"1\t2.5\tGood.\n"


def _tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip that writes the archive; the list has its calls."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(_tar(fetch._ARCHIVE, _tar(fetch._MEMBER, CONTENT)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return calls


def test_fetches_once_and_stores_what_is_inside(
    cache: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SNIPPETS_SHA256", fetch.hashlib.sha256(CONTENT).hexdigest())
    path = fetch.fetch()
    assert path.read_bytes() == CONTENT and cache in path.parents
    assert fetch.fetch() == path and len(pip) == 1


def test_another_file_is_refused_and_not_stored(cache: Path, pip: list[list[str]]) -> None:
    with pytest.raises(DataError, match="has sha256 .* expected c8293b0d"):
        fetch.fetch()
    assert not list(cache.rglob("*.txt*"))


def test_a_damaged_file_in_the_cache_is_an_error(cache: Path) -> None:
    fetch.snippets_path().parent.mkdir(parents=True)
    fetch.snippets_path().write_bytes(CONTENT)
    with pytest.raises(DataError, match="Remove it"):
        fetch.require()


def test_without_a_network_pip_s_words_are_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(DataError, match="exit 1.*(?s:.*)No matching distribution"):
        fetch.fetch()
    assert fetch.main() == 2
    assert not fetch.snippets_path().exists()


def test_not_fetched_yet_names_the_command(cache: Path) -> None:
    with pytest.raises(DataError, match="python -m rayrlhf.data.fetch"):
        fetch.require()
