"""TensorBoard's files hold what was logged, read back record by record."""

import struct
from pathlib import Path

import fsspec
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rayrlhf.metrics import MetricsLog
from rayrlhf.trackers import tensorboard


def events(data: bytes) -> list[Event]:
    """Of one file: length u64, its checksum u32, the event, its checksum u32."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


def values(found: list[Event]) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]


def purged(found: list[Event]) -> list[int]:
    """Steps from which on earlier files do not count."""
    return [event.step for event in found if event.session_log.status == SessionLog.START]


def written(folder: Path) -> list[Event]:
    return [event for path in sorted(folder.iterdir()) for event in events(path.read_bytes())]


def test_steps_that_are_taken_again_are_purged(tmp_path, monkeypatch):
    log = MetricsLog(str(tmp_path / "run"), "ppo", 3)
    for step in (0, 1, 2):
        log.log(step, {"objective/kl": 0.5 * step})
    log.rewind(0)
    log.log(1, {"objective/kl": 4.0})
    log.close()
    found = written(tmp_path / "run" / "tensorboard" / "ppo")
    assert sorted(values(found)) == [
        (0, "objective/kl", 0.0),
        (1, "objective/kl", 0.5),
        (1, "objective/kl", 4.0),
        (2, "objective/kl", 1.0),
    ]
    assert 1 in purged(found)


@pytest.mark.parametrize("wait_s", [0.0, 1000.0])
def test_on_an_object_store_the_files_are_uploaded(tmp_path, monkeypatch, wait_s):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorboard, "_UPLOAD_S", wait_s)
    root, filesystem = f"memory://boards/{wait_s:g}", fsspec.filesystem("memory")
    log = MetricsLog(root, "sft", 2)
    log.log(1, {"loss/train": 1.5})
    assert bool(filesystem.find(f"{root}/tensorboard/sft")) == (not wait_s)
    log.log(2, {"loss/train": 1.25})
    log.close()
    (path,) = filesystem.find(f"{root}/tensorboard/sft")
    assert values(events(filesystem.cat_file(path))) == [(1, "loss/train", 1.5), (2, "loss/train", 1.25)]
    assert list(tmp_path.iterdir()) == [], "nothing in the working directory"


def test_without_trackers_there_are_only_the_rows(tmp_path):
    log = MetricsLog(str(tmp_path), "sft", 1, trackers=())
    log.log(1, {"loss/train": 1.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
