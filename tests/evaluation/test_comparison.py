"""Runs side by side: numbers, configurations, data and models by content, curves."""

import math
from pathlib import Path

import pytest

from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.evaluation.charts import COLOURS
from rayrlhf.evaluation.comparison import Numbers, Texts, compare, html, labelled
from rayrlhf.run import RunConfig
from tests.evaluation.pages import NASTY, Page, add_rows, add_stage


def make(root: Path, name: str, lr: float, gold: float, tables: str = "rows", extra: dict | None = None) -> str:
    """A run of a prepare and an sft stage, with an evaluation."""
    run, source = root / name, root / f"{name}.txt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("the same words")
    given = {"run": {"name": name, "root": str(root)}}
    # Ray Data names the files of a table at random
    files = {
        f"state/text/train/{name}.parquet": tables,
        "state/text/validation/v.parquet": "held out",
        "model/t.json": "t",
    }
    prepare = add_stage(run, "prepare", config=given, files=files, parents={"source": str(source)})
    config = given | {"lr": lr, "data": f"{prepare}/state/text", "seed": 0} | (extra or {})
    files = {"model/w.bin": str(lr)}
    add_stage(run, "sft", 2, config=config, files=files, parents={"data": prepare}, metrics={"loss": lr * 2})
    metrics = {"eval/policy/gold": gold, "eval/policy/nan": math.nan}
    add_stage(run, "evaluate", config=given, metrics=metrics, parents={"policy": str(run / "sft")}, seconds=5.0)
    add_rows(
        run,
        "sft",
        {0: {"eval/kl": 0.0, "eval/score": 1.0}, 1: {"loss": lr, "odd/one": lr}, 2: {"loss": lr * 2, "odd/one": 0.0}},
    )
    return str(run)


def test_numbers_and_their_differences(tmp_path) -> None:
    found = compare([make(tmp_path, "a", 0.5, 0.25), make(tmp_path, "b", 0.25, 1.0)])
    assert found.labels == ("a", "b")
    gold, nan = found.evaluation
    assert gold == Numbers("eval/policy/gold", (0.25, 1.0)) and gold.differences == (0.75,)
    assert nan.values == (None, None) and nan.differences == (None,)
    assert found.metrics["sft"] == [Numbers("loss", (1.0, 0.5))]
    assert found.seconds == [
        Numbers("prepare", (12.5, 12.5)),
        Numbers("sft", (12.5, 12.5)),
        Numbers("evaluate", (5.0, 5.0)),
    ]


def test_keys_that_differ(tmp_path) -> None:
    paths = [
        make(tmp_path, "a", 0.5, 0.0),
        make(tmp_path, "b", 0.25, 0.0, extra={"peft": {"rank": 4}, "hf_token": "x"}),
    ]
    paths.append(make(tmp_path, "c", 0.5, 0.0))
    # where the run lies is no difference, neither is the data in it
    assert compare(paths).configs == [
        Texts("sft", "lr", ("0.5", "0.25", "0.5")),
        Texts("sft", "hf_token", (None, "***", None)),
        Texts("sft", "peft.rank", (None, "4", None)),
    ]


def test_a_key_that_came_later_counts_as_its_default(tmp_path) -> None:
    for name, config in (
        ("a", {"name": "x"}),
        ("b", {"name": "x", "root": "runs", "seed": 0, "when_changed": "refuse"}),
    ):
        add_stage(tmp_path / name, "sft", config=config)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert len(compare(paths).configs) == 3
    assert compare(paths, lambda kind: RunConfig).configs == []


def test_data_and_models_by_content(tmp_path) -> None:
    paths = [make(tmp_path, "a", 0.5, 0.0), make(tmp_path, "b", 0.25, 0.0, tables="other rows")]
    found = {(text.stage, text.name): text.are_equal for text in compare(paths).data}
    assert found == {
        ("prepare", "model"): True,
        ("prepare", "text/train"): False,
        ("prepare", "text/validation"): True,
        ("prepare", "input source"): True,
        ("sft", "model"): False,
        ("evaluate", "model"): True,
    }
    (tmp_path / "same").mkdir()
    again = make(tmp_path / "same", "a", 0.5, 0.0)
    assert all(text.are_equal for text in compare([paths[0], again]).data), "files' names and times do not count"


def test_curves_lie_over_one_another(tmp_path) -> None:
    found = compare([make(tmp_path, "a", 0.5, 0.0), make(tmp_path, "b", 0.25, 0.0)])
    main = {chart.title: {line.name: list(line.points) for line in chart.series} for chart in found.charts["sft"]}
    assert main == {
        "Reward against KL, one point an evaluation": {"a": [(0.0, 1.0)], "b": [(0.0, 1.0)]},
        "loss": {"a": [(1, 0.5), (2, 1.0)], "b": [(1, 0.25), (2, 0.5)]},
        "eval/score": {"a": [(0, 1.0)], "b": [(0, 1.0)]},
        "eval/kl": {"a": [(0, 0.0)], "b": [(0, 0.0)]},
    }
    assert [chart.title for chart in found.others["sft"]] == ["odd/one"]


def test_runs_of_one_name_are_told_apart(tmp_path) -> None:
    paths = [make(tmp_path / root, "a", 0.5, 0.0) for root in ("one", "two")]
    assert compare(paths).labels == ("a (one)", "a (two)")
    assert labelled(["a", "a", "b"], ["/x/one/r/a", "/x/two/r/a", "/b"]) == ("a (one/r)", "a (two/r)", "b")
    assert labelled(["a", "a"], ["/a", "/r/a"]) == ("a", "a (r)")


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    path = make(tmp_path, "a", 0.5, 0.0)
    with pytest.raises(ConfigError, match="two runs or more, got 1"):
        compare([path])
    with pytest.raises(ConfigError, match="are the same run"):
        compare([path, f"{tmp_path}/./a/"])
    with pytest.raises(CheckpointError, match="is a stage, not a run"):
        compare([path, f"{path}/sft"])


def test_the_page(tmp_path) -> None:
    paths = [make(tmp_path, "a", 0.5, 0.25), make(tmp_path, "b", 0.25, 1.0, extra={NASTY: NASTY})]
    text = html(compare(paths))
    page = Page(text)
    assert page.loads == [] and {link.removeprefix("#") for link in page.links} <= page.ids
    assert "<script>alert" not in text
    assert page.tables["evaluation"][1] == ["policy/gold", "0.25", "1", "+0.75"]
    assert page.tables["configs"][1:] == [["sft", "lr", "0.5", "0.25"], ["sft", NASTY, "–", NASTY]]
    assert ["sft", "model", "differs"] in [row[:3] for row in page.tables["hashes"]]
    assert ["prepare", "text/train", "equal"] in [row[:3] for row in page.tables["hashes"]]
    [first, second] = [line for line in page.series if line["y"] in ([0.5, 1.0], [0.25, 0.5])]
    assert (first["name"], first["line"]["color"]) == ("a", COLOURS[0])
    assert (second["name"], second["line"]["color"]) == ("b", COLOURS[1])
