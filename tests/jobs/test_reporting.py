"""`rayrlhf report` and `rayrlhf compare`: files, the table, exit codes; and that every kind of stage is known."""

import importlib

import pytest

from jobs import cli, stage_configs
from rayrlhf.config import Section
from tests.evaluation.pages import Page, add_rows, add_stage


@pytest.fixture
def runs(tmp_path):
    for name, gold in (("one", 0.25), ("two", 0.5)):
        config = {"run": {"name": name}, "policy": "p", "baseline": "b", "base": "c", "prompts": "d"}
        config |= {"reward_model": "e", "num_prompts": 9}
        add_stage(tmp_path / name, "evaluate", config=config, metrics={"eval/policy/gold": gold, "eval/[red]": 1.0})
        add_rows(tmp_path / name, "evaluate", {0: {"eval/policy/gold": gold}})
    return tmp_path


def test_report_is_written_anew(runs, capsys) -> None:
    assert cli.main(["report", f"{runs}/one"]) == 0
    assert f"report: {runs}/one/report.html" in capsys.readouterr().out
    page = Page((runs / "one/report.html").read_text())
    assert ["num_prompts", "9", "500"] in page.tables["changes-evaluate"], "the job's own defaults"
    assert (runs / "one/summary.json").is_file()


def test_compare_writes_a_page_and_shows_a_table(runs, capsys, monkeypatch) -> None:
    monkeypatch.chdir(runs)
    assert cli.main(["compare", "one", "two"]) == 0
    assert Page((runs / "comparison.html").read_text()).tables["evaluation"][2] == [
        "policy/gold",
        "0.25",
        "0.5",
        "+0.25",
    ]
    out = capsys.readouterr().out
    assert "0.5 (+0.25)" in out and "[red]" in out and "comparison: comparison.html" in out
    assert "0 keys of the configuration differ; of 1 hashes of data and models 1 are equal" in out
    assert cli.main(["compare", "one", "--output", "c.html", "two"]) == 0
    assert (runs / "c.html").is_file()


def test_runs_without_an_evaluation_are_compared_by_time(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("one", 2.0), ("two", 3.0)):
        add_stage(tmp_path / name, "sft", seconds=seconds)
    assert cli.main(["compare", "one", "two"]) == 0
    assert "3 (+1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "one"], "two runs or more, got 1"),
        (["compare", "one", "none"], "none is no run: there is no such folder"),
        (["compare", "one", "one/evaluate"], "is a stage, not a run"),
        (["compare", "one", "two", "--output", "."], "--output=. is a folder"),
        (["compare", "one", "two", "--output", "no/c.html"], "there is no folder"),
        (["compare", "one", "two", "--out", "c.html"], "unrecognized arguments"),
        (["report", "none"], "none is no run"),
        (["report"], "required: RUN"),
    ],
)
def test_errors_end_with_2_and_write_nothing(runs, arguments, words, capsys, monkeypatch) -> None:
    monkeypatch.chdir(runs)
    assert cli.main(arguments) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(runs.glob("**/*.html"))


def test_every_kind_of_stage_has_its_configuration() -> None:
    no_stages = {"generate", "serve", "pipeline"}
    assert set(stage_configs.CLASSES) == set(cli.JOBS) - no_stages
    for kind in stage_configs.CLASSES:
        found = stage_configs.config_class(kind)
        assert found is not None and issubclass(found, Section) and "run" in found.model_fields
        assert found.__name__ in importlib.import_module(f"jobs.{kind}").main.__code__.co_names, "the job's own"
    assert stage_configs.config_class("of another version") is None
