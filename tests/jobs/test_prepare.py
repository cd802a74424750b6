"""The prepare job: on a small corpus like the demo's, and on a user's text."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as pd
import pytest

from jobs import ngram_model, prepare, quality_classifier
from rayrlhf.checkpoint import StageWriter, find_stage
from rayrlhf.config import load
from rayrlhf.data import demo, fetch
from rayrlhf.data.cleaning.classifier import Classifier, Features
from rayrlhf.data.cleaning.config import CleanConfig
from rayrlhf.data.cleaning.ngram_model import NgramModel, train
from rayrlhf.data.config import SourceConfig, TokenizerConfig
from rayrlhf.errors import ConfigError, DataError, ModelError
from rayrlhf.run import RunConfig

MOODS = {2.5: "wonderful", 0.5: "plain", -2.5: "terrible"}


@pytest.fixture
def snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A raw file of the demo's form in a cache of its own; the texts in it, one of them twice."""
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path / "cache"))
    lines = []
    for i in range(300):
        rating = list(MOODS)[i % 3]
        lines.append(f"{i}\t{rating}\tFilm {i} was a {MOODS[rating]} one    by {i % 17} of its makers.")
    content = "\n".join([*lines, lines[0]]).encode("utf-8-sig")
    path = fetch.snippets_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setattr(fetch, "SNIPPETS_SHA256", fetch.hashlib.sha256(content).hexdigest())
    return [demo.normal_form(line.split("\t")[2]) for line in lines]


def _config(root: Path, **data: object) -> prepare.PrepareConfig:
    return prepare.PrepareConfig(
        run=RunConfig(name="test", root=str(root)),
        data=prepare.RawTextConfig(**data),
        tokenizer=TokenizerConfig(vocab_size=320, model_max_length=48),
    )


def _rows(stage: Path, kind: str, split: str) -> list[dict]:
    return pd.dataset(stage / "state" / kind / split).to_table().to_pylist()


@pytest.mark.slow
def test_the_demo_s_stage(ray_local: None, snippets: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = _config(tmp_path / "runs")
    prepare.check(config)
    stage = find_stage(prepare.run(config), "prepare")
    folder = Path(stage.path)
    texts = {split: [row["text"] for row in _rows(folder, "text", split)] for split in prepare.SPLITS}
    assert sorted(texts["train"] + texts["validation"]) == sorted(snippets)
    assert all(demo.split_of(text) == split for split in prepare.SPLITS for text in texts[split])
    for split in prepare.SPLITS:
        joined = {row["prompt"] + row["completion"] for row in _rows(folder, "prompt_completion", split)}
        assert joined and joined <= set(texts[split])
        pairs = _rows(folder, "preference", split)
        assert pairs and {row[name] for row in pairs for name in ("chosen", "rejected")} <= set(texts[split])
        assert all("terrible" not in row["chosen"] and "wonderful" not in row["rejected"] for row in pairs)
        assert stage.manifest["metrics"][f"data/preference_{split}_rows"] == len(pairs)
        labelled = _rows(folder, "labelled", split)
        assert {row["prompt"] + row["completion"] for row in labelled} <= set(texts[split])
        assert {row["label"] for row in labelled} == {True, False}
        assert all(("terrible" if row["label"] else "wonderful") not in row["completion"] for row in labelled)
    assert stage.manifest["metrics"]["data/clean_duplicate"] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.model_max_length == 48 and len(tokenizer) <= 320 and tokenizer.chat_template

    again = Path(prepare.run(_config(tmp_path / "again")))
    for kind in ("text", "prompt_completion", "preference", "labelled", "prompts"):
        for split in prepare.SPLITS:
            assert _rows(again, kind, split) == _rows(folder, kind, split)
    tokens = "model/tokenizer.json"
    assert json.loads((again / tokens).read_text()) == json.loads((folder / tokens).read_text())


@pytest.mark.slow
def test_a_user_s_text_and_too_little_of_it(ray_local: None, tmp_path: Path) -> None:
    source = tmp_path / "own" / "b.jsonl"
    source.parent.mkdir()
    (tmp_path / "own" / "a.jsonl").write_text("\n")  # no row in it
    rows = [{"text": f"line {i} says\n\n\n\nsomething"} for i in range(100)] + [{"text": ""}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Path(prepare.run(_config(tmp_path / "runs", source=str(source.parent), validation_share=0.3)))
    assert sorted(path.name for path in (stage / "state").iterdir()) == ["data_card.json", "text"]
    texts = [row["text"] for split in prepare.SPLITS for row in _rows(stage, "text", split)]
    assert sorted(texts) == sorted(f"line {i} says\n\nsomething" for i in range(100))

    with pytest.raises(DataError, match="no text row for train.*'too_short': 100.*'empty': 1"):
        prepare.run(_config(tmp_path / "none", source=str(source), min_chars=1000))
    assert not list((tmp_path / "none").rglob("stage.json"))


def test_a_tokenizer_that_is_there(
    ray_local: None, tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "own.txt"
    source.write_text("".join(f"{i} 今天很好 and so on\n" for i in range(100)))
    keys = {"from_folder": tiny_model("qwen3"), "fertility_texts": 5}
    given = {"run": {"name": "test", "root": str(tmp_path)}, "data": {"source": str(source)}, "tokenizer": keys}
    config = prepare.PrepareConfig.model_validate(given)
    prepare.check(config)
    stage = find_stage(prepare.run(config), "prepare")
    taken = AutoTokenizer.from_pretrained(stage.model_dir)
    assert taken.get_vocab() == AutoTokenizer.from_pretrained(tiny_model("qwen3")).get_vocab()
    assert stage.manifest["parents"].keys() == {"source", "tokenizer"}
    assert stage.manifest["metrics"]["data/tokenizer_han_tokens_per_char"] == 3
    assert "tokenizer of 259 tokens; on held-out texts tokens_per_char" in capsys.readouterr().out
    with pytest.raises(ModelError, match="no model at /nowhere"):
        prepare.check(prepare.PrepareConfig.model_validate(given | {"tokenizer": {"from_folder": "/nowhere"}}))


def test_check_needs_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYRLHF_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="python -m rayrlhf.data.fetch"):
        prepare.check(_config(tmp_path))
    with pytest.raises(DataError, match="no file or folder"):
        prepare.check(_config(tmp_path, source=str(tmp_path / "none.txt")))
    assert prepare.plan(_config(tmp_path)) == []


@pytest.mark.slow
def test_the_arithmetic_task(ray_local: None, tmp_path: Path) -> None:
    config = prepare.PrepareConfig(
        run=RunConfig(name="sums", root=str(tmp_path)),
        data=prepare.RawTextConfig(source="demo:arithmetic", validation_share=0.05),
        tokenizer=TokenizerConfig(vocab_size=259, model_max_length=32),
    )
    prepare.check(config)
    stage = find_stage(prepare.run(config), kind="prepare")
    metrics = stage.manifest["metrics"]
    assert metrics.pop("data/tokenizer_tokens_per_char") == 1, "bytes alone"
    assert metrics.pop("data/tokenizer_tokens_per_word") > 11 and metrics.pop("data/tokenizer_byte_share") == 0
    assert metrics.pop("data/tokenizer_unknown_share") == 0
    assert metrics == {
        f"data/{kind}_{split}_rows": float(count)
        for kind in ("text", "prompt_completion", "prompts")
        for split, count in (("train", 7695), ("validation", 405))
    } | {"data/vocab_size": 259.0}
    with pytest.raises(ValueError, match="no effect with data.source=demo:arithmetic"):
        prepare.PrepareConfig(run=config.run, data=prepare.RawTextConfig(source="demo:arithmetic", min_chars=3))


def _steps(*given: dict) -> CleanConfig:
    return CleanConfig.model_validate({"steps": given})


def test_own_steps_bad_rows_and_the_data_card(ray_local: None, tmp_path: Path) -> None:
    source = tmp_path / "own.jsonl"
    page = "<p>Page {0} says that this is about the river.</p><p>Write to a{0}@b.org</p>"
    rows = [json.dumps({"body": page.format(n), "n": n}) for n in range(40)] + ["broken", json.dumps({"body": "x"})]
    source.write_text("\n".join(rows))
    steps = _steps({"kind": "strip_html"}, {"kind": "privacy", "email": "[mail]"}, {"kind": "length", "min_chars": 9})
    config = _config(
        tmp_path / "runs",
        source=str(source),
        columns={"text": "body"},
        validation_share=0.3,
        max_bad_rows=1,
        licence="CC0-1.0",
    ).model_copy(update={"clean": steps.model_copy(update={"examples": 2})})
    prepare.check(config)
    stage = find_stage(prepare.run(config), "prepare")
    folder = Path(stage.path)
    texts = [row["text"] for split in prepare.SPLITS for row in _rows(folder, "text", split)]
    assert sorted(texts) == sorted(f"Page {n} says that this is about the river.\nWrite to [mail]" for n in range(40))
    assert not (folder / "work").exists(), "the shards between the passes are gone"
    card = json.loads((folder / "state" / "data_card.json").read_text())
    assert (card["licence"], card["rows_read"], card["rows_kept"], card["bad_rows"]["count"]) == ("CC0-1.0", 41, 40, 1)
    assert (card["text_column"], card["columns_left_out"]) == ("body", ["n"])
    assert "own.jsonl, line 41: not JSON" in card["bad_rows"]["examples"][0]
    assert card["files"] == [
        {"path": str(source), "bytes": source.stat().st_size, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    ]
    assert [(s["name"], s["rows_in"], s["rows_out"], s["rows_changed"]) for s in card["steps"]] == [
        ("strip_html", 41, 41, 40),
        ("privacy", 41, 41, 40),
        ("length", 41, 40, 0),
    ]
    assert [len(s["changed_examples"]) for s in card["steps"]] == [2, 2, 0], "clean.examples=2"
    assert "[mail]" in card["steps"][1]["changed_examples"][0]["after"]
    assert "@b.org" not in json.dumps(card), "not even before privacy has its turn"
    assert card["steps"][2]["dropped_examples"][0]["text"] == "x"
    assert sum(card["tables"].values()) == 40 and all(text in texts for text in card["samples"]["train"])
    assert stage.manifest["metrics"]["data/clean_too_short"] == 1.0


@pytest.mark.slow
def test_models_of_quality_are_trained_and_used(ray_local: None, tmp_path: Path) -> None:
    good = [
        f"The committee of town {n} met on Monday, and its members agreed that the plan was good." for n in range(80)
    ]
    bad = [f"xq zzk {n * 7919} !! qwv kjx win {n} $$ jjq vvx zqx" for n in range(80)]
    for name, texts in (("good", good), ("bad", bad), ("mixed", good[:60] + bad[:20])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    where = {"run": RunConfig(name="test", root=str(tmp_path / "runs"))}
    lm = ngram_model.NgramModelConfig(data=str(tmp_path / "good.txt"), order=4, validation_share=0.2, **where)
    judge = quality_classifier.QualityClassifierConfig(
        good=str(tmp_path / "good.txt"), bad=str(tmp_path / "bad.txt"), bits=14, validation_share=0.2, **where
    )
    for job, config in ((ngram_model, lm), (quality_classifier, judge)):
        job.check(config)
        job.run(config)
    metrics = {kind: find_stage(f"{tmp_path}/runs/test/{kind}").manifest["metrics"] for kind in
               ("ngram_model", "quality_classifier")}  # fmt: skip
    assert 1 < metrics["ngram_model"]["eval/perplexity"] < 5
    assert metrics["quality_classifier"]["eval/auc"] == 1.0 and metrics["quality_classifier"]["eval/accuracy"] == 1.0
    for kind, keys, reason in (
        ("ngram_perplexity", {"max_perplexity": 50}, "high_perplexity"),
        ("quality_classifier", {"min_score": 0.5}, "low_quality"),
    ):
        model = f"{tmp_path}/runs/test/{kind.replace('perplexity', 'model')}"
        config = _config(tmp_path / kind, source=str(tmp_path / "mixed.txt"), validation_share=0.3).model_copy(
            update={"clean": _steps({"kind": kind, "model": model, **keys})}
        )
        prepare.check(config)
        assert prepare.parents(config)[kind] == model, "a model trained anew makes the stage another one"
        found = find_stage(prepare.run(config)).manifest["metrics"]
        assert (found["data/clean_kept"], found[f"data/clean_{reason}"]) == (60.0, 20.0)
    with pytest.raises(DataError, match="no text of .*few.txt for"):
        (tmp_path / "few.txt").write_text("one\n")
        quality_classifier.run(
            judge.model_copy(
                update={"bad": str(tmp_path / "few.txt"), "run": RunConfig(name="few", root=str(tmp_path))}
            )
        )  # noqa: E501


@pytest.mark.slow
def test_a_causal_model_judges(ray_local: None, tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from rayrlhf.data.cleaning.causal_perplexity import Scorer
    from rayrlhf.data.cleaning.config import CausalPerplexity

    model = tiny_model("llama")
    texts = [f"text {n}" + " ab" * (n % 5) for n in range(20)]
    step = CausalPerplexity(kind="causal_perplexity", model=model, max_perplexity=1e9, max_tokens=16)
    scorer = Scorer(step)
    values = scorer.perplexities(texts)
    assert values == pytest.approx([_slow_perplexity(scorer, text, 16) for text in texts], rel=1e-4)
    middle = sorted(values)[10] * 1.0001
    (tmp_path / "a.txt").write_text("\n".join(texts))
    given = {"kind": "causal_perplexity", "model": model, "max_tokens": 16}
    config = _config(tmp_path / "runs", source=str(tmp_path / "a.txt"), validation_share=0.5)
    config = config.model_copy(
        update={"clean": _steps({"kind": "normalise"}, given | {"max_perplexity": middle, "num_actors": 1})}
    )
    prepare.check(config)
    stage = find_stage(prepare.run(config))
    kept = {row["text"] for split in prepare.SPLITS for row in _rows(Path(stage.path), "text", split)}
    assert kept == {text for text, value in zip(texts, values, strict=True) if value <= middle}
    assert scorer(["text 1 "])[0] == "text 1 "
    low = Scorer(step.model_copy(update={"max_perplexity": None, "min_perplexity": 1e9}))
    assert low(["text 1 "])[0][0] == "low_perplexity"
    with pytest.raises(ConfigError, match="max_tokens=512 is above the model's context"):
        prepare.check(config.model_copy(update={"clean": _steps(given | {"max_perplexity": 9, "max_tokens": 512})}))


def test_what_bounds_the_causal_model_s_memory(tiny_model: Callable[[str], str]) -> None:
    from rayrlhf.data.cleaning.causal_perplexity import Scorer
    from rayrlhf.data.cleaning.config import CausalPerplexity
    from rayrlhf.data.cleaning.operators import check

    step = CausalPerplexity(kind="causal_perplexity", model=tiny_model("llama"), max_perplexity=9, max_tokens=16)
    texts = ["one", "a longer text than one", "", "two"]
    whole = Scorer(step).perplexities(texts)
    assert whole[:2] == pytest.approx([_slow_perplexity(Scorer(step), text, 16) for text in texts[:2]], rel=1e-4)
    cut = Scorer(step.model_copy(update={"microbatch_tokens": 16})).perplexities(texts)
    assert cut == pytest.approx(whole, rel=1e-4) and whole[2] == 1.0
    with pytest.raises(ConfigError, match="max_tokens=16 does not fit microbatch_tokens=8"):
        check([step.model_copy(update={"microbatch_tokens": 8})])


def test_the_classifier_s_passes_rate_and_share(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayrlhf.data.cleaning import classifier

    for name in ("good", "bad"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} text {n}" for n in range(100)))
    seen: dict[str, Any] = {}

    def fit(model: Any, rows: Any, share_good: float, lr: float) -> None:
        seen.update(rows=list(rows), share_good=share_good, lr=lr)

    monkeypatch.setattr(classifier, "fit", fit)
    config = quality_classifier.QualityClassifierConfig(
        run=RunConfig(name="x", root=str(tmp_path)), good=str(tmp_path / "good.txt"), bad=str(tmp_path / "bad.txt"),
        epochs=2, lr=0.25, validation_share=0.4, bits=8,
    )  # fmt: skip
    metrics = quality_classifier._learn(config, classifier.Classifier(classifier.Features(8, 1, 1)))
    once = metrics["data/good_rows"] + metrics["data/bad_rows"]
    assert len(seen["rows"]) == 2 * once and once + metrics["data/validation_rows"] == 200
    assert 50 < metrics["data/validation_rows"] < 110 and seen["lr"] == 0.25
    assert seen["share_good"] == metrics["data/good_rows"] / once
    first = seen["rows"][: int(once)]
    assert set(first) == set(seen["rows"][int(once) :]) and first != seen["rows"][int(once) :], "shuffled anew"
    assert metrics["eval/auc"] == 0.5, "nothing was learned"


def _slow_perplexity(scorer: Any, text: str, max_tokens: int) -> float:
    import torch

    ids = [scorer.tokenizer.bos_token_id, *scorer.tokenizer.encode(text, add_special_tokens=False)][:max_tokens]
    with torch.no_grad():
        logprobs = scorer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = [-float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    return math.exp(sum(nats) / len(nats))


def test_keys_without_effect_are_refused(tmp_path: Path) -> None:
    run = RunConfig(name="x", root=str(tmp_path))
    length = _steps({"kind": "length", "min_chars": 2})
    for data, clean, message in (
        ({"source": "a", "min_chars": 3}, length, "belong to the default steps"),
        ({"source": "demo:arithmetic"}, length, "clean.. has no effect with data.source=demo:arithmetic"),
        ({"columns": {"text": "x"}}, CleanConfig(), "data.columns has no effect with data.source=demo:snippets"),
        ({"max_bad_rows": 3}, CleanConfig(), "data.max_bad_rows has no effect with data.source=demo:snippets"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare.PrepareConfig(run=run, data=prepare.RawTextConfig(**data), clean=clean)
    with pytest.raises(ValueError, match="Python knows no encoding 'utf-9'"):
        SourceConfig(encoding="utf-9")
    with pytest.raises(ValueError, match="prepare reads one column"):
        prepare.RawTextConfig(columns={"prompt": "x"})
    with pytest.raises(ValueError, match="lines of utf-16 cannot be told apart"):
        SourceConfig(encoding="utf-16")


def test_the_configuration_of_docs_data_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("clean.yaml").write_text(block)
    for name in set(re.findall(r"data/[\w/]+\.\w+", block)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text('{"text": "one two three four five six seven eight nine ten"}\n')
    for kind, save in (
        ("ngram_model", NgramModel.save), ("quality_classifier", Classifier.save),
    ):  # fmt: skip
        folder = Path(f"runs/quality/{kind}/step_000000/model")
        writer = StageWriter(f"runs/quality/{kind}", 0)
        save(train(iter([["abc"]]), 2, 1) if kind == "ngram_model" else Classifier(Features(8, 1, 1)), str(folder))
        writer.finish(kind, {}, {}, {})
    config = load(prepare.PrepareConfig, "clean.yaml", [])
    prepare.check(config)
    assert len(config.steps) > 12
