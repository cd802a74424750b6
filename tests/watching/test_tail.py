"""A growing file is read once, a cut one from its start, on a disk and on an object store."""

from pathlib import Path

import fsspec
import pytest

from rayrlhf.watching import tail
from rayrlhf.watching.tail import Tail
from tests.watching.run_files import lines, row


class Counting:
    """A file system that counts the bytes it gives."""

    def __init__(self, filesystem) -> None:
        self.filesystem, self.num_bytes = filesystem, 0

    def info(self, path):
        return self.filesystem.info(path)

    def cat_file(self, path, start=None, end=None):
        data = self.filesystem.cat_file(path, start=start, end=end)
        self.num_bytes += len(data)
        return data


def follow(path: Path) -> tuple[Tail, Counting]:
    counting = Counting(fsspec.filesystem("file"))
    return Tail(counting, str(path)), counting


def steps(read: tuple) -> tuple[list[int], bool]:
    return [row["step"] for row in read[0]], read[1]


def test_only_what_is_new_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    many = lines(*(row("sft", n, n, loss=1.0) for n in range(100_000)))
    path.write_text(many)
    reader, counting = follow(path)
    rows, starts_over = reader.read()
    assert len(rows) == 100_000 and starts_over and counting.num_bytes < 1.01 * len(many)
    before = counting.num_bytes
    with path.open("a") as file:
        file.write(lines(row("sft", 100_000, 0.0)))
    assert steps(reader.read()) == ([100_000], False)
    assert steps(reader.read()) == ([], False)
    assert counting.num_bytes - before < 2_000


def test_a_half_written_line_waits_for_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = lines(row("sft", 1, 1.0), row("sft", 2, 2.0))
    path.write_text(whole[:-10])
    reader, _ = follow(path)
    assert steps(reader.read()) == ([1], True)
    path.write_text(whole)
    assert steps(reader.read()) == ([2], False)
    assert reader.num_unreadable == 0


def test_a_file_that_was_cut_in_place_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sft, ppo = [row("sft", n, n) for n in (1, 2)], [row("ppo", n, n) for n in (0, 1, 2, 3)]
    path.write_text(lines(*sft, *ppo))
    reader, _ = follow(path)
    reader.read()
    path.write_text(lines(*sft, *ppo[:2]))  # rolled back
    assert steps(reader.read()) == ([1, 2, 0, 1], True)
    path.write_text(lines(*sft, *ppo[:1], *(row("ppo", n, 10.0 + n) for n in range(1, 9))))
    assert steps(reader.read()) == ([1, 2, *range(9)], True), "longer again by the next look"
    path.unlink()
    assert steps(reader.read()) == ([], True)
    path.write_text(lines(row("sft", 7, 7.0)))
    assert steps(reader.read()) == ([7], True)


def test_lines_that_are_no_rows_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    killed = '{"stage": "ppo", "st' + lines(row("ppo", 1, 1.0))
    path.write_text(killed + '[1]\n{"step": 3}\n' + lines(row("ppo", 2, 2.0)))
    reader, _ = follow(path)
    assert steps(reader.read()) == ([2], True)
    assert reader.num_unreadable == 3


@pytest.mark.parametrize("block", [200, 300])
def test_a_file_in_several_blocks_on_an_object_store(monkeypatch, block):
    monkeypatch.setattr(tail, "_BLOCK", block)
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/tail/metrics-sft.jsonl", lines(*(row("sft", n, n) for n in range(50))).encode())
    reader = Tail(filesystem, "/tail/metrics-sft.jsonl")
    assert steps(reader.read()) == (list(range(50)), True)
    filesystem.pipe_file("/tail/metrics-sft.jsonl", lines(*(row("sft", n, n) for n in range(60))).encode())
    assert steps(reader.read()) == (list(range(50, 60)), False)
