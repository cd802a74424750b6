"""Stage directories: whole or not there at all."""

import errno
import json
import os

import pytest

from rayrlhf import checkpoint
from rayrlhf.checkpoint import StageWriter, find_stage, make_final, stage_hash, writing
from rayrlhf.errors import CheckpointError, ModelError
from rayrlhf.model_folder import model_folder


def write(root: str, step: int, text: str = "weights", **options) -> str:
    writer = StageWriter(root, step)
    with open(f"{writer.model_dir}/config.json", "w") as file:
        file.write(json.dumps({"text": text}))
    with open(f"{writer.state_dir}/optimizer.bin", "wb") as file:
        file.write(text.encode())
    return writer.finish("sft", {"lr": 1.0}, {}, {"eval/loss": 0.5}, **options)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_the_newest_is_found_through_latest_and_old_ones_go(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path / "cache"))
    root = f"{tmp_path}/run/sft" if kind == "local" else f"memory://{tmp_path.name}/run/sft"
    for step in (1, 2, 3):
        path = write(root, step, f"weights {step}", keep=2, is_best=step == 1)
    assert path == f"{root}/step_000003"
    assert find_stage(root).manifest["step"] == 3
    assert find_stage(f"{root}/best").manifest["step"] == 1, "the best is kept though it is old"
    assert find_stage(f"{root}/step_000002", kind="sft").manifest["metrics"] == {"eval/loss": 0.5}
    write(root, 4, keep=2)
    with pytest.raises(CheckpointError):
        find_stage(f"{root}/step_000002")
    with open(f"{find_stage(root).state_dir}/optimizer.bin", "rb") as file:
        assert file.read() == b"weights"


def test_without_the_manifest_the_older_one_counts(tmp_path):
    root = f"{tmp_path}/sft"
    write(root, 1)
    StageWriter(root, 2)  # killed before finish
    assert find_stage(root).manifest["step"] == 1
    with pytest.raises(CheckpointError, match="not a finished stage"):
        find_stage(f"{root}/step_000002")


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_a_torn_directory_is_refused(tmp_path, damage):
    path = write(f"{tmp_path}/sft", 1)
    victim = f"{path}/state/optimizer.bin"
    if damage == "missing":
        os.remove(victim)
    else:
        with open(victim, "r+b") as file:
            file.truncate(3) if damage == "shorter" else file.write(b"W")
    with pytest.raises(CheckpointError, match="torn: state/optimizer.bin"):
        find_stage(path)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_the_best_checkpoint_becomes_the_result(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path / "cache"))
    root = f"{tmp_path}/run/sft" if kind == "local" else f"memory://final-{tmp_path.name}/sft"
    for step in (1, 2, 3):
        write(root, step, f"weights {step}", keep=5, is_best=step == 2, is_final=False)
    assert not find_stage(root).manifest["is_final"]
    assert make_final(root, 2, 12.5) == f"{root}/step_000002"
    stage = find_stage(root)
    assert (stage.manifest["step"], stage.manifest["is_final"], stage.manifest["seconds"]) == (2, True, 12.5)
    assert open(f"{stage.model_dir}/config.json").read() == json.dumps({"text": "weights 2"})
    with pytest.raises(CheckpointError):
        find_stage(f"{root}/step_000003")


class Killed(BaseException):
    pass


def kill_at(monkeypatch, number: int) -> None:
    """The process ends before its `number`th write of a manifest or pointer."""
    write_file, calls = checkpoint._write, []

    def write_or_die(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise Killed
        write_file(*arguments)

    monkeypatch.setattr(checkpoint, "_write", write_or_die)


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_while_finishing_loses_neither_the_newest_nor_the_best(tmp_path, monkeypatch, number, kind):
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path / "cache"))
    root = f"{tmp_path}/run/sft" if kind == "local" else f"memory://killed-{tmp_path.name}/sft"
    write(root, 1, "weights 1", is_best=True, is_final=False, keep=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, number)  # manifest, best, latest
        write(root, 2, "weights 2", is_best=True, is_final=False, keep=1)
    resumed_from = find_stage(root).manifest["step"]
    assert resumed_from == 1, "latest is written last"
    assert find_stage(f"{root}/best").manifest["step"] == (1 if number < 3 else 2)
    write(root, 2, "again", is_best=True, is_final=False, keep=1)
    write(root, 3, "worse", is_final=False, keep=1)
    make_final(root, 2, 1.0)
    assert find_stage(root).manifest["step"] == 2 and find_stage(root).manifest["is_final"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_kill_while_declaring_the_result_leaves_a_stage_to_resume(tmp_path, monkeypatch, number):
    root = f"{tmp_path}/run/sft"
    for step in (1, 2):
        write(root, step, is_best=step == 1, is_final=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, number)  # latest, manifest
        make_final(root, 1, 1.0)
    assert not find_stage(root).manifest["is_final"]
    make_final(root, 1, 1.0)
    assert find_stage(root).manifest["is_final"] and find_stage(root).manifest["step"] == 1


def test_steps_are_ordered_as_numbers(tmp_path):
    root = f"{tmp_path}/run/sft"
    for step in (999_999, 1_000_000, 1_000_001):
        write(root, step, keep=2)
    assert sorted(os.listdir(root)) == ["latest", "step_1000000", "step_1000001"]


def test_a_stage_that_is_not_finished_is_no_model_unless_its_step_is_named(tmp_path):
    root = f"{tmp_path}/run/sft"
    path = write(root, 6, is_final=False)
    for name in (root, f"{root}/latest"):
        with pytest.raises(CheckpointError, match="is not finished: its newest checkpoint is of step 6"):
            model_folder(name)
    assert model_folder(path) == f"{path}/model"


def test_the_hash_of_files_follows_their_contents(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("12345")
    pattern, folder = f"{tmp_path}/*.jsonl", str(tmp_path)
    before = stage_hash(pattern), stage_hash(folder), stage_hash(f"{tmp_path}/a.jsonl")
    (tmp_path / "a.jsonl").write_text("12346")
    after = stage_hash(pattern), stage_hash(folder), stage_hash(f"{tmp_path}/a.jsonl")
    assert all(before) and all(a != b for a, b in zip(before, after, strict=True))
    assert stage_hash("hf://some/set:train") == "" == stage_hash(f"{tmp_path}/none*")


def test_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a 'sft' stage, but a 'reward_model' stage"):
        find_stage(write(f"{tmp_path}/sft", 1), kind="reward_model")


def test_model_folder_takes_stages_and_plain_folders(tmp_path):
    path = write(f"{tmp_path}/sft", 1)
    assert model_folder(f"{tmp_path}/sft") == f"{path}/model"
    assert model_folder(f"{path}/model") == f"{path}/model"
    with pytest.raises(ModelError, match="no model at"):
        model_folder(f"{tmp_path}/nowhere")


def test_the_hash_of_a_stage_is_that_of_its_manifest_from_wherever_it_is_named(tmp_path):
    root = f"{tmp_path}/sft"
    path = write(root, 1, is_best=True)
    assert len({stage_hash(p) for p in (root, f"{root}/latest", f"{root}/best", path, f"{path}/model")}) == 1
    older = stage_hash(root)
    write(root, 2)
    assert stage_hash(root) != older == stage_hash(f"{root}/best")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    plain = stage_hash(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    assert "" != plain != stage_hash(str(tmp_path / "rows.jsonl"))
    assert stage_hash(str(tmp_path / "nothing")) == ""


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path):
    root = tmp_path / "sft"
    write(str(root), 1)
    (root / "latest.part").symlink_to("/dev/full")  # where `latest` is first written: every byte is one too many
    with pytest.raises(
        CheckpointError, match=r"step_000002 cannot be written: No space left on device; \d+.* make room"
    ):
        write(str(root), 2)
    assert find_stage(str(root)).manifest["step"] == 1


def test_a_step_that_cannot_even_begin_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "makedirs", full)
    with pytest.raises(CheckpointError, match="step_000001 cannot be written: No space left"):
        StageWriter(f"{tmp_path}/sft", 1)


def test_words_of_other_libraries_about_a_full_disk_are_understood_and_other_errors_left(tmp_path):
    with pytest.raises(CheckpointError, match="No space left on device"), writing(f"{tmp_path}/not/there/yet"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="shapes differ"), writing(str(tmp_path)):
        raise RuntimeError("shapes differ")
    with pytest.raises(CheckpointError, match="Read-only file system.*let it be written to"), writing(str(tmp_path)):
        raise OSError(errno.EROFS, "x")


def test_what_is_discarded_is_gone_and_what_is_whole_stays(tmp_path):
    writer = StageWriter(f"{tmp_path}/sft", 3)
    writer.discard()
    assert not (tmp_path / "sft" / "step_000003").exists()
    writer = StageWriter(f"{tmp_path}/sft", 4)
    path = writer.finish("sft", {}, {}, {})
    writer.discard()
    assert find_stage(path)
