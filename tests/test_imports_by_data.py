"""Python that a file names is not imported: only what the user's own command line or configuration names is."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs import evaluate, generate, ppo, serve
from jobs.stage_configs import config_class
from rayrlhf.checkpoint import StageWriter, find_stage
from rayrlhf.data.cleaning.reading import plain_rows
from rayrlhf.errors import DataError
from rayrlhf.evaluation.comparison import compare
from rayrlhf.evaluation.report import write_report
from rayrlhf.lineage import standing
from rayrlhf.score_function import load_function

NAMED = "planted_module:score"
KEYS = ("run", "policy_model", "prompts", "reward_function", "gold")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported and leaves a mark where it is."""
    mark = tmp_path / "mark"
    (tmp_path / "planted_module.py").write_text(
        f"open({str(mark)!r}, 'w').close()\ndef score(prompts, responses):\n    return [0.0] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)
    return mark


def stage_of(root: Path, kind: str, model: str) -> str:
    """A finished stage of `kind` whose stage.json, model's config and rows name the planted function."""
    writer = StageWriter(str(root / kind), 1)
    shutil.copytree(model, writer.model_dir, dirs_exist_ok=True)
    config_file = Path(writer.model_dir, "config.json")
    named = {"reward_function": NAMED, "gold": NAMED, "custom_generate": NAMED}
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | named))
    config = {"run": {"name": root.name, "root": str(root.parent)}, "policy_model": model, "prompts": {"train": "x"}}
    return writer.finish(kind, config | named, {}, {"eval/score": 1.0})


def test_neither_a_stage_nor_a_row_can_name_code(
    planted: Path, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "given"
    stages = {kind: stage_of(root, kind, tiny_model("llama")) for kind in ("ppo", "evaluate", "unheard_of")}
    stage, rows = stages["ppo"], tmp_path / "rows.jsonl"
    assert find_stage(stage).manifest["config"]["reward_function"] == NAMED
    rows.write_text(json.dumps({"prompt": "a", "reward_function": NAMED, "__reduce__": NAMED}) + "\n")
    serve.check(serve.ServeConfig(model=stage))
    generate.Generator(generate.GenerateConfig(model=stage))
    models = {key: stage for key in ("policy", "baseline", "base")}
    judged = {"run": {"name": "mine"}, "prompts": str(rows), "reward_function": "tests.jobs.rewards:vowels"}
    evaluate.check(evaluate.EvaluateConfig.model_validate(judged | models | {"max_prompt_tokens": 9, "num_prompts": 1}))
    write_report(str(root), config_class)
    shutil.copytree(root, tmp_path / "copy")
    compare([str(root), str(tmp_path / "copy")], config_class)
    recorded = find_stage(stage).manifest["config"]
    standing(f"{root}/ppo", ppo.PPOConfig.model_validate({k: v for k, v in recorded.items() if k in KEYS}), {})
    assert not planted.exists()
    load_function(NAMED, "reward_function")
    assert planted.exists(), "the test would see an import"


class Touches:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("shape", ["plain", "list", "struct", "struct of lists"])
def test_a_pickle_in_a_parquet_column_is_not_loaded(tmp_path: Path, shape: str) -> None:
    import ray.data  # noqa: F401  # it registers the type whose values are unpickled
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    pickled = ArrowPythonObjectArray.from_objects([Touches(f"{tmp_path}/ran")])
    offsets = pa.array([0, 1], pa.int32())
    column = {
        "plain": lambda: pickled,
        "list": lambda: pa.ListArray.from_arrays(offsets, pickled),
        "struct": lambda: pa.StructArray.from_arrays([pickled], ["x"]),
        "struct of lists": lambda: pa.StructArray.from_arrays([pa.ListArray.from_arrays(offsets, pickled)], ["x"]),
    }[shape]()
    path = f"{tmp_path}/rows.parquet"
    parquet.write_table(pa.table({"text": ["a"], "more": column}), path)
    with pytest.raises(DataError, match=r"column \w+ holds pickled Python objects"):
        list(plain_rows(path))
    assert not (tmp_path / "ran").exists()
    parquet.read_table(path)["more"].to_pylist()
    assert (tmp_path / "ran").exists(), "the test would see it"
