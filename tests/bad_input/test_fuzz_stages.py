"""Whatever became of a stage's files, they are read or refused with a UserError: by the next stage, by the stage itself
when it is run again, by `watch` and by `report`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.sft import SFTConfig
from rayrlhf import checkpoint, lineage
from rayrlhf.config import load
from rayrlhf.errors import CheckpointError
from rayrlhf.evaluation.report import write_summary
from rayrlhf.evaluation.run_files import read_run
from rayrlhf.model_folder import model_folder, virtual_tokens
from rayrlhf.models.causal_lm import check_known, load_tokenizer
from rayrlhf.watching.draw import draw
from rayrlhf.watching.run import WatchedRun
from tests.bad_input.fuzzing import anything, examples, mutated, refused, torn
from tests.bad_input.registry import SFT
from tests.bad_input.workshop import Workshop, workshops

STEP = "runs/done/sft/step_000003"


@pytest.fixture(scope="module")
def here() -> Iterator[Workshop]:
    with workshops() as opened, opened() as workshop:
        workshop.own_runs()
        yield workshop


def read_by_all(folder: Path) -> None:
    """Everything that reads a run."""
    root = str(folder / "runs/done/sft")
    for path in (root, f"{root}/latest", f"{root}/best", f"{root}/step_000003"):
        found = refused(checkpoint.find_stage, path)
        assert not isinstance(found, Exception) or isinstance(found, CheckpointError)
        refused(model_folder, path)
        refused(checkpoint.stage_hash, path)
        refused(virtual_tokens, path)
    config = load(SFTConfig, None, [one for one in SFT[1:] if "run.name" not in one] + ["run.name=done"])
    refused(lineage.check, root, config, {"model": root})
    refused(lineage.standing, root, config, {"model": root})
    watched = refused(WatchedRun, str(folder / "runs/done"))
    view = refused(watched.view) if isinstance(watched, WatchedRun) else None
    for stage in getattr(view, "stages", ()):
        samples = refused(watched.samples, stage.name)
        if not isinstance(samples, Exception):
            refused(draw, view, stage, samples, 0.0, watched.roles(stage.name))
    run = refused(read_run, str(folder / "runs/done"))
    if not isinstance(run, Exception):
        refused(write_summary, str(folder / "runs/done"))
        (folder / "runs/done/summary.json").unlink(missing_ok=True)


@examples(80)
@given(data=st.data())
@example(data={"created": "026-11-23T01:20:22Z"})
@example(data={"metrics": {"eval/loss": {}}})
@example(data={"files": {"model/config.json": None}})
def test_fuzz_stage_json(here: Workshop, data: st.DataObject | dict) -> None:
    path = here.folder / STEP / "stage.json"
    before = path.read_bytes()
    try:
        if isinstance(data, dict):
            path.write_text(json.dumps(json.loads(before) | data))
            read_by_all(here.folder)
            return
        changed = data.draw(mutated(json.loads(before)) | anything)
        path.write_bytes(data.draw(torn(before)) if data.draw(st.booleans()) else json.dumps(changed).encode())
        read_by_all(here.folder)
    finally:
        path.write_bytes(before)


@examples(40)
@given(
    pointer=st.binary(max_size=20)
    | st.sampled_from([b"step_000003", b"step_3", b"../..", b"step_" + b"9" * 5000, b"step_\xff"])
)
@example(pointer=b"\xff\xfe")
@example(pointer=b"step_\xc2\xb2")
def test_fuzz_pointers(here: Workshop, pointer: bytes) -> None:
    path = here.folder / "runs/done/sft/latest"
    before = path.read_bytes()
    try:
        path.write_bytes(pointer)
        (path.parent / "best").write_bytes(pointer)
        read_by_all(here.folder)
    finally:
        path.write_bytes(before)
        (path.parent / "best").unlink()


@examples(60)
@given(data=st.data())
def test_fuzz_torn_files(here: Workshop, data: st.DataObject) -> None:
    step = here.folder / STEP
    path = data.draw(st.sampled_from(sorted(one for one in step.rglob("*") if one.is_file())))
    before = path.read_bytes()
    try:
        if data.draw(st.integers(0, 4)) == 0:
            path.unlink()
        else:
            path.write_bytes(
                before[: data.draw(st.integers(0, len(before)))] if len(before) > 10_000 else data.draw(torn(before))
            )
        read_by_all(here.folder)
        changed = path.read_bytes() if path.exists() else None
        if path.name != "stage.json" and changed != before:
            assert isinstance(refused(checkpoint.find_stage, str(step)), CheckpointError), (
                "a torn stage counts as whole"
            )
    finally:
        path.write_bytes(before)


@examples(60)
@given(data=st.data())
def test_fuzz_torn_models(here: Workshop, data: st.DataObject) -> None:
    """A Hugging Face folder has no hashes: what is refused is told in time, what is not is loaded."""
    folder = here.folder / "mine"
    shutil.copytree(here.made / "llama", folder)
    try:
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        before = path.read_bytes()
        if path.suffix == ".json" and data.draw(st.booleans()) and path.name != "tokenizer.json":
            path.write_text(json.dumps(data.draw(mutated(json.loads(before)))))
        else:
            path.write_bytes(
                before[: data.draw(st.integers(0, len(before)))]
                if data.draw(st.booleans())
                else data.draw(torn(before))
            )
        refused(check_known, str(folder), "model=mine")
        refused(load_tokenizer, str(folder))
    finally:
        shutil.rmtree(folder)


ROW = {"stage": "sft", "step": 1, "time_s": 1.0, "total_steps": 3, "eval/loss": 1.0, "sync/logprob_gap": 0.1}


@examples(100)
@given(data=st.data())
@example(data=b'[1]\n3\n{"a": 1}\n')
@example(data=b'{"stage": "sft", "step": "x", "time_s": "y"}\n')
@example(data=b'{"stage": "sft", "step": 1, "time_s": 1e400}\n')
@example(data=b'{"stage": "sft", "step": 1, "time_s": 1, "total_steps": [3], "eval/loss": {}}\n')
def test_fuzz_metrics(here: Workshop, data: st.DataObject | bytes) -> None:
    path = here.folder / "runs/done/metrics.jsonl"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        lines = [json.dumps(ROW | {"step": step}).encode() + b"\n" for step in range(3)]
        lines.append(json.dumps(data.draw(mutated(ROW) | anything)).encode() + b"\n")
        content = b"".join(lines)
        path.write_bytes(data.draw(torn(content)) if data.draw(st.booleans()) else content)
    try:
        read_by_all(here.folder)
    finally:
        path.unlink()
