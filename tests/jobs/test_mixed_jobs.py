"""Mixtures and packed rows in whole jobs: as many workers as you like, cut off and resumed, in lineage and metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import pairs, ppo, pretrain, reward_model, sft
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import ConfigError, DataError

SIZE = ["hidden=32", "heads=2", "kv_heads=1", "layers=2", "intermediate=64", "context=64"]
TWO = ["train.num_workers=2", "train.engine.zero_stage=2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    rows: dict[str, list[dict[str, Any]]] = {
        "stories": [{"text": f"story {n} " + "and so on " * (n % 9)} for n in range(60)],
        "notes": [{"text": f"note {n}" + "!" * (n % 5)} for n in range(90)],
        "sft": [{"prompt": f"question {n}", "completion": " answer"} for n in range(40)],
        "pairs": [{"prompt": f"q{n}", "chosen": " yes", "rejected": " no"} for n in range(20)],
        "prompts": [{"prompt": f"q{n}"} for n in range(20)],
    }
    folder = tmp_path_factory.mktemp("rows")
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def logged(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def weights_of(stage: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(find_stage(str(stage)).model_dir) / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_a_packed_mixture_is_the_same_with_two_workers_and_goes_on_exactly(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mixed = f"[{{path: {files['stories']}, weight: 2}}, {{path: {files['notes']}, weight: 1, epochs: 2}}]"
    data = [f"data.train={mixed}", f"data.validation={files['notes']}", "data.max_tokens=48", "data.packing.overlap=4"]
    train = ["minibatch=8", "microbatch_tokens=96", "epochs=2", "max_steps=14", "save_every=6", "engine.lr=3e-3"]
    given = [f"run.root={tmp_path}", *data, *(f"train.{key}" for key in train), *(f"model.{key}" for key in SIZE)]
    given.append("train.keep=5")
    given.append(f"model.tokenizer={tiny_model('gpt2')}")

    def fit(name: str, *more: str) -> Path:
        config = load(pretrain.PretrainConfig, None, [*given, f"run.name={name}", *more])
        pretrain.check(config)
        return Path(pretrain.run(config))

    stages = fit("one"), fit("two", *TWO)
    one, two = logged(tmp_path, "one"), logged(tmp_path, "two")
    assert [row["loss/train"] for row in two] == pytest.approx([row["loss/train"] for row in one], abs=1e-5)
    assert one[-1]["loss/train"] < one[0]["loss/train"] and one[-1]["eval/loss"] > 0
    last = one[-1]
    given_rows = [last[f"data/mixture_rows_{name}"] for name in ("stories", "notes")]
    assert sum(given_rows) == 8 * len(one) == 112, "more than one pass"
    assert last["data/mixture_row_share_stories"] == pytest.approx(2 / 3, abs=0.08)
    tokens = [last[f"data/mixture_tokens_{name}"] for name in ("stories", "notes")]
    assert sum(tokens) == last["data/tokens"] and 0.8 < two[0]["data/packing_fill"] <= 1
    manifest = find_stage(str(stages[0])).manifest
    assert manifest["metrics"]["data/mixture_rows_notes"] == given_rows[1]
    assert manifest["metrics"]["data/packing_fill"] == two[0]["data/packing_fill"]
    assert {"data_1", "data_2", "validation", "tokenizer"} == set(manifest["parents"])
    told = capfd.readouterr().out
    assert "pretrain: stories: " in told and "used up, so the pass ends here" in told and " filled" in told
    assert f"pretrain: trained on notes {given_rows[1]:.0f} rows" in told

    # as a kill after step 8 would have left it
    stage, before, weights = tmp_path / "two" / "pretrain", two, weights_of(stages[1])
    for path in stage.glob("step_*"):
        if int(path.name[5:]) > 6:
            shutil.rmtree(path)
    (stage / "latest").write_text("step_000006")
    (tmp_path / "two" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before[:8]))
    fit("two", *TWO)
    after = logged(tmp_path, "two")
    names = [name for name in before[0] if not name.startswith(("time", "perf"))]
    assert [[row.get(name) for name in names] for row in after] == [[row.get(name) for name in names] for row in before]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(stages[1]).items())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_sft_with_pretraining_text_and_pairs_of_two_sources(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    shared = [f"run.root={tmp_path}", "run.name=run", f"model={tiny_model('llama')}", "data.max_tokens=64"]
    shared += ["train.minibatch=5", "train.microbatch_tokens=256"]
    text = f"data.pretraining={{path: {files['stories']}, share: 0.2}}"
    config = load(sft.SFTConfig, None, [*shared, f"data.train={files['sft']}", text, "data.too_long=truncate"])
    sft.check(config)
    parents = find_stage(sft.run(config)).manifest["parents"]
    assert {"model", "data", "pretraining"} == set(parents) and parents["pretraining"]["hash"]
    last = logged(tmp_path, "run")[-1]
    assert (last["data/mixture_rows_sft"], last["data/mixture_rows_stories"]) == (40, 10)

    both = f"data.train=[{{path: {files['pairs']}}}, {{path: {files['pairs']}l, format: jsonl, max_rows: 5}}]"
    shutil.copy(files["pairs"], files["pairs"] + "l")
    config = load(reward_model.RewardModelConfig, None, [*shared, both])
    reward_model.check(config)
    assert {"data_1", "data_2"} <= set(find_stage(reward_model.run(config)).manifest["parents"])
    rows = [row for row in logged(tmp_path, "run") if row["stage"] == "reward_model"]
    assert len(rows) == 5 and rows[-1]["data/mixture_rows_pairs_1"] == 20


@pytest.mark.parametrize(
    ("job", "cls", "changes", "error", "message"),
    [
        (sft, sft.SFTConfig, ["data.train=[{path: SFT}, {path: /nowhere.jsonl}]"], DataError, "/nowhere.jsonl"),
        (sft, sft.SFTConfig, ["data.train=[{path: SFT}, {path: PAIRS}]"], DataError, "has no completion"),
        (sft, sft.SFTConfig, ["data.train=SFT", "data.pretraining={path: /no, share: 0.1}"], DataError, "/no"),
        (sft, sft.SFTConfig, ["data.train=SFT", "data.pretraining={path: SFT, share: 0.1}"], DataError, "has no text"),
        (sft, sft.SFTConfig, ["data.train=SFT", "data.packing.overlap=2"], ConfigError, "data.packing cuts texts"),
        (
            reward_model, reward_model.RewardModelConfig,
            ["data.train=PAIRS", "data.pretraining={path: STORIES, share: 0.1}"], ConfigError,
            "not into preference rows: leave it out",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_starts(
    job: Any, cls: Any, changes: list[str], error: type[Exception], message: str,
    tiny_model: Callable[[str], str], files: dict[str, str],
) -> None:  # fmt: skip
    for name in ("sft", "pairs", "stories"):
        changes = [change.replace(name.upper(), files[name]) for change in changes]
    with pytest.raises(error, match=message):
        job.check(load(cls, None, ["run.name=x", f"model={tiny_model('llama')}", "data.max_tokens=64", *changes]))


def test_packing_where_it_has_no_effect_and_mixtures_of_prompts(
    tiny_model: Callable[[str], str], files: dict[str, str]
) -> None:
    given = ["run.name=x", f"model.from_folder={tiny_model('llama')}", f"data.train={files['stories']}"]
    given += ["data.max_tokens=64", "data.packing.buffer=9"]
    pretrain.check(load(pretrain.PretrainConfig, None, given))
    text = f"data.pretraining={{path: {files['notes']}, share: 0.1}}"
    with pytest.raises(ConfigError, match="list its path under data.train"):
        pretrain.check(load(pretrain.PretrainConfig, None, [*given, text]))

    mixed = f"prompts.train=[{{path: {files['prompts']}}}, {{path: {files['pairs']}}}]"
    more = [f"prompts.validation={files['prompts']}", "prompts.max_tokens=32", "sampling.max_new_tokens=16"]
    more.append("reward_function=rayrlhf.data.demo:gold")
    with pytest.raises(ConfigError, match="prompts.train is a mixture, but every prompt is sampled once"):
        pairs.check(load(pairs.PairsConfig, None, ["run.name=x", f"model={tiny_model('llama')}", mixed, *more]))
    more.append("loop.evaluation_prompts=8")
    config = load(ppo.PPOConfig, None, ["run.name=x", f"policy_model={tiny_model('llama')}", mixed, *more])
    ppo.check(config)
    assert {"prompts_1": files["prompts"], "prompts_2": files["pairs"]}.items() <= ppo.parents(config).items()
    packed = [f"policy.pretraining={{data: {{train: {files['stories']}, max_tokens: 32, packing: {{}}}}, rows: 4}}"]
    with pytest.raises(ConfigError, match="policy.pretraining.data.packing has no effect"):
        given = ["run.name=x", f"policy_model={tiny_model('llama')}", mixed, *more, *packed]
        ppo.check(load(ppo.PPOConfig, None, given))
