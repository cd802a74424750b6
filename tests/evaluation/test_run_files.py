"""A run read back: what its stages were made from and whether that still holds; what is no run."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest

from rayrlhf.checkpoint import StageWriter, stage_hash
from rayrlhf.errors import CheckpointError
from rayrlhf.evaluation.run_files import check_run, metric_names, read_run
from tests.evaluation.pages import add_rows, add_stage, lines


@pytest.fixture
def chain(tmp_path, monkeypatch) -> Path:
    """raw.txt -> prepare -> sft -> ppo in runs/try, with paths relative to the working directory, as jobs give them."""
    monkeypatch.chdir(tmp_path)
    Path("raw.txt").write_text("words")
    run, config = Path("runs/try"), {"run": {"name": "try", "root": "runs"}}
    add_stage(run, "prepare", config=config, parents={"source": "raw.txt"})
    data = {"data": f"{tmp_path}/runs/try/prepare/step_000000/state"}  # workers are given absolute paths
    add_stage(run, "sft", 20, config=config, parents=data)
    add_stage(run, "ppo", 5, config=config, parents={"policy": "runs/try/sft/latest", "prompts": "hf://imdb"})
    return run


def parents(run: str) -> dict[str, tuple[str, str | None]]:
    return {f"{s.name} {p.role}": (p.now, p.stage) for s in read_run(run).stages for p in s.parents}


def test_every_parent_is_what_it_was(chain) -> None:
    run = read_run(str(chain))
    assert [stage.name for stage in run.stages] == ["prepare", "sft", "ppo"], "none before what it was made from"
    assert parents("runs/try") == {
        "prepare source": ("same", None),
        "sft data": ("same", "prepare"),
        "ppo policy": ("same", "sft"),
        "ppo prompts": ("unknown", None),  # a hub's data set has no hash
    }
    assert {stage.name: stage.hash for stage in run.stages}["sft"] == stage_hash("runs/try/sft")
    assert not any(stage.stale for stage in run.stages)


def test_a_run_that_was_moved_is_not_stale(chain, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere" / "kept"
    shutil.copytree(chain, elsewhere)
    shutil.rmtree(chain)
    assert parents(str(elsewhere))["ppo policy"] == ("same", "sft"), "what lies in the run has moved with it"
    assert parents(str(elsewhere))["sft data"] == ("same", "prepare"), "absolute paths too"


def test_a_parent_that_changed_makes_what_follows_stale(chain) -> None:
    Path("raw.txt").write_text("other words")
    stages = {stage.name: stage for stage in read_run("runs/try").stages}
    assert parents("runs/try")["prepare source"] == ("changed", None)
    assert stages["prepare"].stale == "source has changed since"


def test_a_stage_made_anew_makes_those_after_it_stale(chain) -> None:
    config = {"run": {"name": "try", "root": "runs"}}
    add_stage(chain, "evaluate", config=config, parents={"policy": "runs/try/ppo/latest"})
    manifest = chain / "sft/step_000020/stage.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 99.0}))
    stages = {stage.name: stage for stage in read_run("runs/try").stages}
    assert stages["ppo"].stale == "policy has changed since"
    assert stages["evaluate"].stale == "ppo is stale itself", "its own parent is what it was"
    assert stages["sft"].stale == ""


def test_a_parent_that_is_gone(chain) -> None:
    Path("raw.txt").unlink()
    shutil.move("runs/try/sft", "runs/try/sft_1")
    assert parents("runs/try") == {
        "prepare source": ("missing", None),
        "sft_1 data": ("same", "prepare"),
        "ppo policy": ("moved", "sft_1"),
        "ppo prompts": ("unknown", None),
    }


def test_a_run_of_the_same_name_elsewhere_is_another(chain, tmp_path) -> None:
    other = add_stage(tmp_path / "other/runs/try", "base")
    config = {"run": {"name": "try", "root": "runs"}}
    add_stage(chain, "dpo", config=config, parents={"model": other})
    assert parents("runs/try")["dpo model"] == ("same", None)


def test_an_older_step_that_is_kept_is_known_by_its_hash(chain) -> None:
    older = "runs/try/sft/step_000020"
    config = {"run": {"name": "try", "root": "runs"}}
    add_stage(chain, "evaluate", config=config, parents={"policy": older})
    add_stage(chain, "sft", 40, config=config)
    assert parents("runs/try")["evaluate policy"] == ("same", "sft")
    assert parents("runs/try")["ppo policy"] == ("changed", "sft"), "`latest` means another step now"


def test_secrets_are_masked_where_they_are_written_and_where_they_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "memory://key:secret@bucket/x"
    config = {"run": {"name": "try"}, "data": {"train": source, "hf_token": "abc"}}
    add_stage(Path("runs/try"), "sft", config=config, parents={"data": source})
    manifest = Path("runs/try/sft/step_000000/stage.json")
    assert "secret" not in manifest.read_text() and "abc" not in manifest.read_text()
    manifest.write_text(manifest.read_text().replace("***@", "key:secret@"))  # as an older version left it
    [stage] = read_run("runs/try").stages
    assert stage.manifest["config"]["data"] == {"train": "memory://***@bucket/x", "hf_token": "***"}
    assert stage.parents[0].path == "memory://***@bucket/x"
    assert "secret" not in json.dumps(stage.manifest)
    assert "secret" in manifest.read_text(), "what is read is left as it is"


def test_metrics_are_what_is_neither_step_nor_time(tmp_path) -> None:
    text = lines([
        {"stage": "ppo", "step": 2, "time_s": 1.0, "total_steps": 9, "loss": 0.5},
        {"stage": "ppo", "step": 1, "time_s": 1.0, "total_steps": 9, "loss": 0.75},
        {"stage": "ppo", "step": 2, "time_s": 2.0, "total_steps": 9, "loss": 0.25},
    ])  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "ppo", "st')
    rows = read_run(str(tmp_path)).rows["ppo"]
    assert [row["loss"] for row in rows] == [0.75, 0.25], "in order of step; of a step done again the later one"
    assert metric_names(rows) == ["loss"]


def test_a_run_in_an_object_store(tmp_path) -> None:
    root = f"memory://{tmp_path.name}/runs"
    config, run = {"run": {"name": "try", "root": root}}, f"{root}/try"
    for name, step, made_from in (("sft", 1, {}), ("ppo", 2, {"policy": f"{run}/sft/latest"})):
        StageWriter(f"{run}/{name}", step).finish(name, config, made_from, {"loss": 0.5})
    filesystem, where = fsspec.core.url_to_fs(run)
    filesystem.pipe_file(f"{where}/metrics-sft.jsonl", lines([{"stage": "sft", "step": 1, "loss": 0.5}]).encode())
    check_run(run)
    found = read_run(run)
    assert [(stage.name, stage.directory) for stage in found.stages] == [
        ("sft", f"{run}/sft/step_000001"),
        ("ppo", f"{run}/ppo/step_000002"),
    ]
    assert parents(run) == {"ppo policy": ("same", "sft")} and found.rows["sft"][0]["loss"] == 0.5


def test_what_is_no_run_is_refused(chain, tmp_path) -> None:
    check_run("runs/try/")
    for path, words in (
        ("runs/none", "no such folder"),
        ("runs/try/sft", "is a stage, not a run: give its run, runs/try"),
        ("runs/try/sft/step_000020", "is a step of a stage, not a run: give its run, runs/try"),
        ("runs", "neither a stage .* nor metrics.jsonl"),
        ("nosuch://a/b", "cannot be reached"),
    ):
        with pytest.raises(CheckpointError, match=words):
            check_run(path)
    add_rows(tmp_path / "young", "sft", {1: {"loss": 1.0}})
    check_run(str(tmp_path / "young"))
