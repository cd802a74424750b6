"""Snapshots of what is served: hard links that outlive the step, each server's own, gone with their server."""

import errno
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import serve_snapshots
from jobs.serve_config import ServeConfig
from jobs.serve_follow import Follower
from jobs.serve_snapshots import FOLDER, STALE_S, Snapshots
from rayrlhf.checkpoint import StageWriter, find_stage, make_final, stage_hash
from rayrlhf.errors import CheckpointError
from rayrlhf.model_folder import model_folder
from rayrlhf.watching.run import WatchedRun


def write(run: Path, step: int, text: str = "", keep: int = 1, is_final: bool = True) -> Path:
    """A step of stage `ppo`; returns its folder."""
    writer = StageWriter(str(run / "ppo"), step)
    Path(writer.model_dir, "config.json").write_text("{}")
    Path(writer.model_dir, "original").mkdir()
    Path(writer.model_dir, "original", "weights").write_text(text or f"step {step}")
    Path(writer.state_dir, "optimizer").write_text("large")
    return Path(writer.finish("ppo", {}, {}, {}, keep=keep, is_final=is_final))


def owners(run: Path) -> list[str]:
    return sorted(os.listdir(run / FOLDER))


def test_a_snapshot_outlives_its_step_and_ends_with_its_server(tmp_path) -> None:
    step, said = write(tmp_path, 10), []
    with Snapshots(said.append) as one, Snapshots(said.append) as other:
        folder = Path(one.folder(str(tmp_path / "ppo")))
        others = Path(other.folder(str(tmp_path / "ppo")))
        assert folder != others and len(owners(tmp_path)) == 2 and folder.parts[-3:] == ("ppo", "step_000010", "model")
        assert os.path.samefile(folder / "original/weights", step / "model/original/weights")
        assert stage_hash(str(folder)) == stage_hash(str(step)) and not (folder.parent / "state").exists()
        write(tmp_path, 20)
        assert not step.exists() and (folder / "original/weights").read_text() == "step 10"
        assert model_folder(str(folder)) == str(folder)
        newer = one.folder(str(tmp_path / "ppo"))
        one.keep_only([newer])
        assert not folder.exists() and Path(newer).exists() and others.exists()
        assert [stage.name for stage in WatchedRun(str(tmp_path)).view().stages] == ["ppo"]
        assert find_stage(str(tmp_path / "ppo")).manifest["step"] == 20
    assert not (tmp_path / FOLDER).exists() and said == []


def test_the_same_model_is_the_same_snapshot_and_a_step_made_anew_is_another(tmp_path) -> None:
    write(tmp_path, 10, is_final=False)
    with Snapshots(print) as snapshots:
        first = snapshots.folder(str(tmp_path / "ppo" / "step_000010"))
        make_final(str(tmp_path / "ppo"), 10, 1.0)
        assert snapshots.folder(str(tmp_path / "ppo")) == first
        write(tmp_path, 10, "other weights")
        second = Path(snapshots.folder(str(tmp_path / "ppo")))
        assert str(second) != first and (second / "original/weights").read_text() == "other weights"
        assert Path(first, "original/weights").read_text() == "step 10"


def test_a_step_that_goes_away_while_it_is_linked_is_looked_up_again(tmp_path, monkeypatch) -> None:
    write(tmp_path, 10)
    link, left, newer = os.link, [1], itertools.count(20)

    def prune_meanwhile(source: str, target: str) -> None:
        if left[0] and source.endswith("weights"):
            left[0] -= 1
            write(tmp_path, next(newer))
        link(source, target)

    monkeypatch.setattr(serve_snapshots.os, "link", prune_meanwhile)
    with Snapshots(print) as snapshots:
        folder = snapshots.folder(str(tmp_path / "ppo"))
        assert find_stage(str(tmp_path / "ppo")).path.endswith("000020") and "000020" in folder
        write(tmp_path, next(newer))
        left[0] = 99
        with pytest.raises(CheckpointError, match="went away while it was linked"):
            snapshots.folder(str(tmp_path / "ppo"))


def test_a_step_made_anew_while_it_is_linked_is_no_mixture(tmp_path, monkeypatch) -> None:
    write(tmp_path, 10, "old")
    link, left = os.link, [1]

    def make_anew(source: str, target: str) -> None:
        link(source, target)
        if left[0] and source.endswith("config.json"):
            left[0] -= 1
            write(tmp_path, 10, "new")

    monkeypatch.setattr(serve_snapshots.os, "link", make_anew)
    with Snapshots(print) as snapshots:
        folder = Path(snapshots.folder(str(tmp_path / "ppo")))
        assert (folder / "original/weights").read_text() == "new"
        assert os.path.samefile(folder / "config.json", tmp_path / "ppo/step_000010/model/config.json")


def test_where_no_links_can_be_made_it_is_said_once(tmp_path, monkeypatch) -> None:
    step, said = write(tmp_path, 10), list[str]()

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(serve_snapshots.os, "link", refuse)
    with Snapshots(said.append) as snapshots:
        for _ in range(2):
            assert snapshots.folder(str(tmp_path / "ppo")) == str(step / "model")
        plain = tmp_path / "plain"
        shutil.copytree(step / "model", plain)
        assert snapshots.folder(str(plain)) == str(plain), "no run's: nothing prunes it"
    assert len(said) == 1 and "Invalid cross-device link" in said[0]


def test_a_stage_given_as_a_uri_of_a_local_file_has_a_snapshot_too(tmp_path) -> None:
    step = write(tmp_path, 10)
    with Snapshots(print) as snapshots:
        folder = Path(snapshots.folder(f"file://{tmp_path}/ppo"))
        assert FOLDER in folder.parts and os.path.samefile(folder / "config.json", step / "model/config.json")


def test_a_link_that_fails_for_what_may_pass_is_tried_again_at_the_next_look(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.serve_follow.check_models", lambda config: None)
    step, said, link = write(tmp_path, 10), list[str](), os.link

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(serve_snapshots.os, "link", fill)
    with Snapshots(said.append) as snapshots:
        asked = list[str]()
        config = ServeConfig(models={"ppo": str(tmp_path / "ppo")}, follow_s=1)
        follower = Follower(config, lambda config: asked.append(config.served[0].model), said.append, snapshots)
        assert follower.pinned.served[0].model == str(step / "model") and "No space left on device" in said[0]
        follower.look()
        assert asked == [] and len(said) == 2 and "No space left on device" in said[1]
        monkeypatch.setattr(serve_snapshots.os, "link", link)
        follower.look()
        follower.look()
        assert len(asked) == 1 and FOLDER in asked[0] and follower.pinned.served[0].model == asked[0]


def test_a_lease_that_was_taken_while_the_server_slept_is_made_anew_and_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.serve_follow.check_models", lambda config: None)
    write(tmp_path, 10)
    said, asked = list[str](), list[Any]()
    with Snapshots(said.append) as snapshots:
        config = ServeConfig(models={"ppo": str(tmp_path / "ppo")}, follow_s=1)
        follower = Follower(config, asked.append, said.append, snapshots)
        folder = Path(follower.pinned.served[0].model)
        shutil.rmtree(folder.parents[3])
        snapshots.renew()
        snapshots.renew()
        assert folder.parents[3].is_dir() and len(said) == 1 and "was removed while it was in use" in said[0]
        follower.look()
        assert (folder / "original/weights").read_text() == "step 10" and asked == []
        shutil.rmtree(tmp_path / FOLDER)
        shutil.rmtree(tmp_path / "ppo")
        tmp_path.rmdir()
        snapshots.renew()
        assert not tmp_path.exists() and len(said) == 1, "a run that is gone is not made anew"
        tmp_path.mkdir()


def test_what_a_killed_server_left_goes_and_a_living_one_s_stays(tmp_path) -> None:
    write(tmp_path, 10)
    with Snapshots(print) as living:
        folder = living.folder(str(tmp_path / "ppo"))
        dead = tmp_path / FOLDER / "server-elsewhere-1-abc"
        shutil.copytree(Path(folder).parents[3], dead)
        late = time.time() - STALE_S - 60
        for home in (dead, Path(folder).parents[3]):
            os.utime(home, (late, late))
        living.renew()
        with Snapshots(print) as newer:
            newer.folder(str(tmp_path / "ppo"))
            assert not dead.exists() and Path(folder).exists() and len(owners(tmp_path)) == 2


def test_the_lease_is_renewed_while_the_server_is_busy(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(serve_snapshots, "RENEW_S", 0.01)
    write(tmp_path, 10)
    with Snapshots(print) as snapshots:
        home = Path(snapshots.folder(str(tmp_path / "ppo"))).parents[3]
        os.utime(home, (1, 1))
        deadline = time.monotonic() + 10
        while home.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert home.stat().st_mtime > 2


def test_the_follower_keeps_what_it_serves_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.serve_follow.check_models", lambda config: None)
    write(tmp_path, 10)
    config, asked = ServeConfig(models={"ppo": str(tmp_path / "ppo")}, follow_s=1), list[str]()

    def deploy(config: ServeConfig) -> None:
        asked.append(config.served[0].model)
        if "000030" in asked[-1]:
            raise OSError("the engine does not start")

    with Snapshots(print) as snapshots:
        follower = Follower(config, deploy, print, snapshots)
        first = follower.pinned.served[0].model
        write(tmp_path, 20)
        follower.look()
        second = follower.pinned.served[0].model
        assert asked == [second] and "000020" in second and not os.path.exists(first)
        write(tmp_path, 30)
        follower.look()
        assert asked[2:] == [second] and os.path.exists(second) and not os.path.exists(asked[1])
