"""Pretraining, SFT and the reward model as jobs, on a real local Ray with tiny models."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs import dpo, kto, pretrain, reward_model, sft
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import ConfigError, DataError, DivergenceError, ModelError

TWO = ["train.num_workers=2", "train.engine.zero_stage=2", "train.microbatch_tokens=300"]
TRAIN = ["train.minibatch=8", "train.microbatch_tokens=256", "train.engine.lr=3e-3", "data.max_tokens=64"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """40 rows of each kind; of a pair the one that ends in "good" is chosen, as it is labelled."""
    words = ["red", "green", "blue", "seven", "a longer group of words"]
    names = ("text", "pairs", "completions", "labelled", "ranked", "scored")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for n in range(40):
        prompt = f"{words[n % 5]} {n}"
        rows["text"].append({"text": f"{prompt} is {words[(n + 1) % 5]}"})
        rows["completions"].append({"prompt": prompt, "completion": f" is {words[(n + 1) % 5]}"})
        rows["labelled"].append({"prompt": prompt, "completion": " bad" if n % 3 else " good", "label": n % 3 == 0})
        rows["ranked"].append({"prompt": prompt, "ranked": [" good", " fair", " bad", " none"][: 2 + n % 3]})
        rows["scored"].append({"prompt": prompt, "completion": " bad" if n % 3 else " good", "score": n % 3 or -1.5})
        pair = {"prompt": prompt, "chosen": " good", "rejected": " bad" + "!" * (n % 4)}
        rows["pairs"].append(pair | {"margin": 4})
    folder = tmp_path_factory.mktemp("rows")
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def logged(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def fine_tune(job: Any, cls: Any, root: Path, name: str, model: str, train: str, *more: str) -> str:
    data = [f"data.train={train}", f"data.validation={train}"]
    given = [f"run.name={name}", f"run.root={root}", f"model={model}", *data, *TRAIN, *more]
    config = load(cls, None, given)
    job.check(config)
    assert [role.ranks for role in job.plan(config)] == [config.train.num_workers]
    return str(job.run(config))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_sft_is_the_same_with_one_worker_as_with_two_and_smaller_passes(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    checkpoints = ["train.save_every=8", "train.keep=5"]
    shared = [tiny_model("llama"), files["completions"], "train.epochs=4", "train.validate_every=10", *checkpoints]
    stages, logs = [], []
    for name, more in (("one", []), ("two", TWO)):
        stages.append(fine_tune(sft, sft.SFTConfig, tmp_path, name, *shared, *more))
        logs.append(logged(tmp_path, name))
    one, two = logs
    assert [row["step"] for row in one] == list(range(1, 21))
    assert [r["loss/train"] for r in two] == pytest.approx([r["loss/train"] for r in one], abs=1e-4)
    assert [r["step"] for r in one if "eval/loss" in r] == [10, 20]
    assert one[-1]["eval/loss"] == pytest.approx(two[-1]["eval/loss"], abs=1e-4)
    assert one[-1]["loss/train"] < 0.8 * one[0]["loss/train"]
    names = {"optim/lr", "optim/grad_norm", "perf/tokens_per_s", "time/step_s", "data/tokens"}
    assert names <= one[0].keys()
    weights = [find_stage(stage, "sft").model_dir for stage in stages]
    resumes_exactly(tmp_path, shared)
    resumes_elsewhere(tmp_path, shared, ["train.num_workers=1", "train.engine.zero_stage=0"])
    resumes_elsewhere(tmp_path, shared, ["train.num_workers=3", "train.engine.zero_stage=3"])
    assert find_stage(stages[0]).manifest["metrics"]["eval/loss"] == one[-1]["eval/loss"]
    compare(*weights, tolerance=1e-3)


def resumes_exactly(root: Path, shared: list[str]) -> None:
    stage = root / "two" / "sft"
    before, weights = logged(root, "two"), weights_of(str(stage))
    cut_and_resumed(root, shared, TWO)
    after = logged(root, "two")
    assert [row["step"] for row in after] == list(range(1, 21))
    assert [row["time_s"] for row in after[:16]] == [row["time_s"] for row in before[:16]]
    for name in ("loss/train", "optim/grad_norm", "optim/lr", "data/tokens"):
        assert [row[name] for row in after] == [row[name] for row in before]
    again = weights_of(str(stage))
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    manifest = find_stage(str(stage)).manifest
    assert manifest["is_final"] and manifest["metrics"]["eval/loss"] == before[-1]["eval/loss"]


def cut_and_resumed(root: Path, shared: list[str], more: list[str]) -> None:
    """Take the run "two" back to where a kill after step 18 would have left it, and let it go on."""
    stage, before = root / "two" / "sft", logged(root, "two")
    assert sorted(p.name for p in stage.glob("step_*")) == ["step_000008", "step_000016", "step_000020"]
    shutil.rmtree(stage / "step_000020")
    (stage / "latest").write_text("step_000016")
    (root / "two" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before[:18]))
    fine_tune(sft, sft.SFTConfig, root, "two", *shared, *more)


def resumes_elsewhere(root: Path, shared: list[str], more: list[str]) -> None:
    """With other workers and another ZeRO stage: the same rows, the same numbers within float rounding."""
    before = logged(root, "two")
    cut_and_resumed(root, shared, more)
    after = logged(root, "two")
    assert [row["data/tokens"] for row in after] == [row["data/tokens"] for row in before]
    assert [row["optim/lr"] for row in after] == [row["optim/lr"] for row in before]
    assert [row["loss/train"] for row in after] == pytest.approx([row["loss/train"] for row in before], abs=1e-4)


def compare(first: str, second: str, tolerance: float) -> None:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (first, second)]
    with torch.no_grad():
        one, two = (model(input_ids=torch.arange(30)[None]).logits for model in models)
    torch.testing.assert_close(one, two, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_any_causal_lm_becomes_sft_and_reward_model(
    kind: str, tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    sft_stage = fine_tune(sft, sft.SFTConfig, tmp_path, "run", tiny_model(kind), files["completions"])
    losses = [row["loss/train"] for row in logged(tmp_path, "run")]
    assert len(losses) == 5 and losses[-1] < losses[0]

    early = ["metric=eval/accuracy", "goal=max", "patience=2"]
    stopping = [f"train.early_stopping.{key}" for key in early]
    more = ["train.epochs=40", "train.validate_every=5", "train.engine.zero_stage=3", *stopping]
    cls = reward_model.RewardModelConfig
    stage = fine_tune(reward_model, cls, tmp_path, "run", sft_stage, files["pairs"], *more)
    rows = [row for row in logged(tmp_path, "run") if row["stage"] == "reward_model"]
    found = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    assert max(found) >= 0.95
    best = found.index(max(found))
    assert len(found) == best + 3  # two validations without improvement end it, long before 200 steps
    assert len(rows) == 5 * len(found) < 200
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= rows[0].keys()

    root = tmp_path / "run" / "reward_model"
    assert (root / "best").read_text() == f"step_{5 * (best + 1):06d}"
    newest = max(path.name for path in root.glob("step_*"))
    assert newest == (root / "best").read_text() == (root / "latest").read_text()
    stops_again(root, rows, lambda: fine_tune(reward_model, cls, tmp_path, "run", sft_stage, files["pairs"], *more))
    parents = find_stage(stage, "reward_model").manifest["parents"]
    assert parents["model"]["hash"] and parents["data"]["path"] == files["pairs"]
    model = AutoModelForSequenceClassification.from_pretrained(find_stage(stage).model_dir)
    assert model.config.num_labels == 1


def stops_again(root: Path, rows: list[dict[str, Any]], run: Callable[[], str]) -> None:
    """A run cut off after its best validation waits as long as before, and ends with the same step."""
    manifest = root / (root / "best").read_text() / "stage.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"is_final": true', '"is_final": false'))
    assert run() == str(manifest.parent) and json.loads(manifest.read_text())["is_final"]
    again = [row for row in logged(root.parent.parent, root.parent.name) if row["stage"] == root.name]
    assert [row["loss/train"] for row in again] == [row["loss/train"] for row in rows]
    stamp = manifest.stat().st_mtime_ns
    assert run() == str(manifest.parent) and manifest.stat().st_mtime_ns == stamp, "what is finished is left alone"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_that_diverges_rolls_back_and_stops_with_a_report(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    """At this learning rate every second step finds a model whose loss is not finite."""
    more = ["train.engine.lr=1e30", "train.rollback.max_rollbacks=1", "train.engine.guard.max_skips=2"]
    shared = tiny_model("llama"), files["completions"], "train.epochs=3"
    with pytest.raises(DivergenceError, match=r"4 in the whole run\), and train.rollback.max_rollbacks=1") as told:
        fine_tune(sft, sft.SFTConfig, tmp_path, "run", *shared, *more)
    assert "rolled back to the start" in str(told.value) and "Traceback" not in str(told.value)
    rows = logged(tmp_path, "run")
    assert [row["optim/skipped_steps"] for row in rows] == [0, 1, 2, 2, 3, 4]
    assert [row["optim/rollbacks"] for row in rows] == [0, 0, 1, 1, 1, 1]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("loss", "rows", "more", "first"),
    [
        ("pairwise", "pairs", ["margin=0.5"], math.log(1 + math.exp(2))),  # scores start near 0: half of margin 4
        pytest.param(
            "ranking",
            "ranked",
            ["train.num_workers=2", "train.engine.zero_stage=3"],
            math.log(2),
            marks=pytest.mark.slow,
        ),
        pytest.param("regression", "scored", ["train.num_workers=2"], None, marks=pytest.mark.slow),
        pytest.param("binary", "labelled", [], math.log(2), marks=pytest.mark.slow),
    ],
)
def test_each_loss_of_a_reward_model_learns(
    loss: str, rows: str, more: list[str], first: float | None, tiny_model: Callable[[str], str],
    files: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    cls, shared = reward_model.RewardModelConfig, [f"loss={loss}", "train.epochs=6", "train.engine.lr=1e-2", *more]
    if loss == "ranking":
        shared += [f"demonstrations={files['completions']}", "num_demonstrations=40"]
    stage = fine_tune(reward_model, cls, tmp_path, "run", tiny_model("llama"), files[rows], *shared)
    found = logged(tmp_path, "run")
    if first is not None:
        assert found[0]["loss/train"] == pytest.approx(first, abs=0.15)
    last = found[-1]
    if loss == "regression":
        assert last["eval/mae"] < 0.5 < found[0]["rewards/absolute_error"] and last["eval/loss"] < 0.4
    else:
        assert last["eval/accuracy"] > 0.9 and last["eval/loss"] < found[0]["loss/train"] / 2
    if loss == "pairwise":
        assert last["eval/margin"] > 2, "the lead that the rows ask for"
    if loss == "ranking":
        assert {"model", "data", "demonstrations"} <= set(find_stage(stage).manifest["parents"])
        assert demonstration_mean(find_stage(stage).model_dir, files["completions"]) == pytest.approx(0, abs=1e-5)
        assert 0 < last["eval/demonstration_noise"] < abs(last["eval/demonstration_score"])


def demonstration_mean(folder: str, path: str) -> float:
    """The mean score that plain transformers gives the rows of a file."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    texts = [tokenizer.bos_token + row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
    with torch.no_grad():
        scores = [model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits for text in texts]
    return float(torch.cat(scores).mean())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_dpo_starts_at_the_reference_and_learns_the_preference(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    shared = [tiny_model("llama"), files["pairs"], "beta=0.5", "train.num_workers=2", "train.engine.zero_stage=2"]
    stage = fine_tune(dpo, dpo.DPOConfig, tmp_path, "run", *shared, "train.epochs=4")
    rows = logged(tmp_path, "run")
    # before the first update policy and reference are one model: margin 0, loss log 2
    assert rows[0]["loss/train"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["eval/accuracy"] > 0.9 and rows[-1]["eval/margin"] > 0.1
    assert set(find_stage(stage, "dpo").manifest["parents"]) == {"model", "data", "validation"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_ipo_against_another_reference_starts_at_the_margin_between_the_two(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    more = [f"reference={tiny_model('qwen3')}", "loss=ipo", "train.max_steps=1"]
    stage = fine_tune(dpo, dpo.DPOConfig, tmp_path, "other", tiny_model("llama"), files["pairs"], *more)
    assert abs(logged(tmp_path, "other")[0]["rewards/margins"]) > 1e-3
    assert "reference" in find_stage(stage, "dpo").manifest["parents"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
def test_kto_starts_at_the_reference_and_learns_the_labels(
    paired: bool, tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    shared = [tiny_model("llama"), files["pairs" if paired else "labelled"], f"paired={paired}", "beta=0.5"]
    weights = ["desirable_weight=1.5", "undesirable_weight=0.5"]
    more = ["train.num_workers=2", "train.engine.zero_stage=2", "train.epochs=4", "train.validate_every=20"]
    stage = fine_tune(kto, kto.KTOConfig, tmp_path, "run", *shared, *weights, *more)
    rows = logged(tmp_path, "run")
    assert len(rows) == (40 if paired else 20)
    # before the first update all log-ratios are 0: each of the 8 gives its weight times 1 - sigmoid(0)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    possible = [(1.5 * good + 0.5 * (8 - good)) / 16 for good in range(9)]
    assert min(abs(rows[0]["loss/train"] - loss) for loss in possible) < 1e-5
    assert rows[-1]["eval/margin"] > 0.1 and rows[-1]["eval/loss"] < rows[0]["loss/train"]
    assert rows[-1]["rewards/margins"] == pytest.approx(
        rows[-1]["rewards/chosen"] - rows[-1]["rewards/rejected"], abs=1e-5
    )
    assert find_stage(stage, "kto").manifest["metrics"]["eval/margin"] == rows[-1]["eval/margin"]


@pytest.mark.usefixtures("ray_local")
def test_pretraining_from_scratch_and_continued(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    size = ["hidden=32", "heads=2", "kv_heads=1", "layers=2", "intermediate=64", "context=64"]
    shared = [f"run.root={tmp_path}", f"data.train={files['text']}", *TRAIN]
    given = [*shared, "run.name=new", f"model.tokenizer={tiny_model('gpt2')}", *(f"model.{s}" for s in size)]
    config = load(pretrain.PretrainConfig, None, [*given, "train.epochs=2", "train.max_steps=7"])
    pretrain.check(config)
    stage = pretrain.run(config)
    rows = logged(tmp_path, "new")
    assert len(rows) == 7 and rows[-1]["loss/train"] < rows[0]["loss/train"]
    parameters = sum(t.numel() for t in weights_of(stage).values())
    assert parameters == config.model.num_parameters(259)

    more = ["run.name=on", f"model.from_folder={stage}", "train.engine.optimizer=sgd", "train.engine.lr=1e-9"]
    config = load(pretrain.PretrainConfig, None, [*shared, *more])
    pretrain.check(config)
    again = weights_of(pretrain.run(config))
    for name, tensor in weights_of(stage).items():
        torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=0)


def weights_of(stage: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(find_stage(stage).model_dir) / "model.safetensors")


@pytest.mark.usefixtures("ray_local")
def test_what_a_worker_finds_wrong_is_one_error(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    more = ["train.early_stopping.metric=eval/acuracy", "train.validate_every=1"]
    data = [f"data.train={files['completions']}", f"data.validation={files['completions']}"]
    given = ["run.name=run", f"run.root={tmp_path}", f"model={tiny_model('llama')}", *data, *TRAIN, *more]
    config = load(sft.SFTConfig, None, given)
    message = "'eval/acuracy', which no validation gives; there are eval/loss"
    with pytest.raises(ConfigError, match=message):
        sft.check(config)
    with pytest.raises(ConfigError, match=message):
        sft.run(config)  # as if it had not been found before
    assert not list((tmp_path / "run").glob("sft/step_*"))


@pytest.mark.usefixtures("ray_local")
def test_fewer_rows_than_a_minibatch(tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path) -> None:
    args = tmp_path, "run", tiny_model("llama")
    with pytest.raises(DataError, match=r"has 40 rows: that makes 40, fewer than train.minibatch=41"):
        fine_tune(sft, sft.SFTConfig, *args, files["completions"], "train.minibatch=41")
    many = tmp_path / "many.jsonl"  # more than the first rows that are looked at before anything starts
    many.write_text(Path(files["completions"]).read_text() * 3)
    with pytest.raises(DataError, match=r"gives 120 rows in 1 epoch\(s\).*train.minibatch=121"):
        fine_tune(sft, sft.SFTConfig, *args, str(many), "train.minibatch=121")
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (["model=/nowhere"], ModelError, "/nowhere"),
        (["data.train=/nowhere.jsonl"], DataError, "/nowhere.jsonl"),
        (["data.max_tokens=129"], ConfigError, "context of 128"),
        (["train.microbatch_tokens=127"], ConfigError, "train.microbatch_tokens=127"),
        (["train.minibatch=0"], ConfigError, "train.minibatch"),
        (["train.minibatch=1", "train.num_workers=2"], ConfigError, "without a row"),
        (["train.early_stopping.patience=1"], ConfigError, "validate_every"),
        (["train.early_stopping.patience=1", "train.validate_every=1"], ConfigError, "data.validation"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(
    changes: list[str], kind: type[Exception], message: str, tiny_model: Callable[[str], str], files: dict[str, str]
) -> None:
    given = ["run.name=x", f"model={tiny_model('llama')}", f"data.train={files['pairs']}", "data.max_tokens=64"]
    with pytest.raises(kind, match=message):
        reward_model.check(load(reward_model.RewardModelConfig, None, [*given, *changes]))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (["margin=1"], DataError, "line 1: has no chosen and no rejected and no margin"),
        (["loss=ranking"], DataError, "has no ranked"),
        (["loss=regression"], DataError, "has no score"),
        (["loss=binary"], DataError, "has no label"),
        (["loss=binary", "margin=1"], ConfigError, "margin=1 has no effect with loss=binary"),
        (["num_demonstrations=20"], ConfigError, "num_demonstrations=20 has no effect without"),
        (["loss=regression", "demonstrations=x.jsonl"], ConfigError, "a zero of their own"),
        (["data.train=PAIRS", "demonstrations=/nowhere.jsonl"], DataError, "/nowhere.jsonl"),
        (["data.train=PAIRS", "demonstrations=PAIRS"], DataError, "has no completion"),
    ],
)
def test_rows_that_a_reward_models_loss_cannot_take(
    changes: list[str], kind: type[Exception], message: str, tiny_model: Callable[[str], str], files: dict[str, str]
) -> None:
    given = ["run.name=x", f"model={tiny_model('llama')}", f"data.train={files['completions']}", "data.max_tokens=64"]
    changes = [change.replace("PAIRS", files["pairs"]) for change in changes]
    with pytest.raises(kind, match=message):
        reward_model.check(load(reward_model.RewardModelConfig, None, [*given, *changes]))


def test_a_model_without_tokenizer_or_a_wrong_table(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    data = f"data.train={files['pairs']}"
    with pytest.raises(ModelError, match="has no tokenizer"):
        sft.check(load(sft.SFTConfig, None, ["run.name=x", f"model={tmp_path}", data]))
    with pytest.raises(DataError, match="completion"):
        model = f"model={tiny_model('gpt2')}"
        sft.check(load(sft.SFTConfig, None, ["run.name=x", model, data, "data.max_tokens=64"]))


def titles(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()[:1])
    return ""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_worker_killed_at_a_random_moment_changes_no_number(
    tiny_model: Callable[[str], str], files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two ranks one dies: new ones go on from the newest checkpoint."""
    more = ["train.epochs=3", "train.save_every=4", "train.keep=5", "run.trackers=[]", *TWO]
    given = [tiny_model("llama"), files["completions"], *more]
    fine_tune(sft, sft.SFTConfig, tmp_path, "whole", *given)
    log = tmp_path / "killed" / "metrics.jsonl"
    step = random.randrange(1, 12)

    def kill_one() -> None:
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            time.sleep(0.005)
        own = psutil.Process().children(recursive=True)  # this session's Ray
        random.choice([process for process in own if "RayTrainWorker" in titles(process)]).kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    fine_tune(sft, sft.SFTConfig, tmp_path, "killed", *given)
    killer.join()
    printed = capfd.readouterr().out
    assert "beginning sft anew in 2 s (restart 1 of 3 in a row)" in printed, f"killed after step {step}"
    whole, killed = logged(tmp_path, "whole"), logged(tmp_path, "killed")
    assert [row["step"] for row in killed] == list(range(1, 16))
    names = [name for name in whole[-1] if not name.startswith(("time", "perf"))]
    assert [[row.get(name) for name in names] for row in killed] == [[row.get(name) for name in names] for row in whole]
    one, two = (weights_of(str(tmp_path / name / "sft")) for name in ("whole", "killed"))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
