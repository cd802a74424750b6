"""The prepare job: on a small corpus like the demo's, and on a user's text."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as pd
import pytest

from jobs import prepare
from rayrlhf.checkpoint import find_stage
from rayrlhf.data import demo, fetch
from rayrlhf.data.config import SourceConfig, TokenizerConfig
from rayrlhf.errors import DataError, ModelError
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
        data=SourceConfig(**data),
        tokenizer=TokenizerConfig(vocab_size=320, model_max_length=48),
    )


def _rows(stage: Path, kind: str, split: str) -> list[dict]:
    return pd.dataset(stage / "state" / kind / split).to_table().to_pylist()


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


def test_a_user_s_text_and_too_little_of_it(ray_local: None, tmp_path: Path) -> None:
    source = tmp_path / "own" / "b.jsonl"
    source.parent.mkdir()
    (tmp_path / "own" / "a.jsonl").write_text("\n")  # no row in it
    rows = [{"text": f"line {i} says\n\n\n\nsomething"} for i in range(100)] + [{"text": ""}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Path(prepare.run(_config(tmp_path / "runs", source=str(source.parent), validation_share=0.3)))
    assert sorted(path.name for path in (stage / "state").iterdir()) == ["text"]
    texts = [row["text"] for split in prepare.SPLITS for row in _rows(stage, "text", split)]
    assert sorted(texts) == sorted(f"line {i} says\n\nsomething" for i in range(100))

    with pytest.raises(DataError, match="no text row for train.*'too_short': 101"):
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


def test_the_arithmetic_task(ray_local: None, tmp_path: Path) -> None:
    config = prepare.PrepareConfig(
        run=RunConfig(name="sums", root=str(tmp_path)),
        data=SourceConfig(source="demo:arithmetic", validation_share=0.05),
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
        prepare.PrepareConfig(run=config.run, data=SourceConfig(source="demo:arithmetic", min_chars=3))
