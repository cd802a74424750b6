"""The report and the summary of a run, whole and partial, read back as a browser would."""

import json
import math
from pathlib import Path

import pytest

from rayrlhf import environment
from rayrlhf.checkpoint import stage_hash
from rayrlhf.evaluation import report
from rayrlhf.run import RunConfig
from tests.evaluation.pages import NASTY, Page, add_rows, add_stage, lines


@pytest.fixture
def partial(tmp_path) -> Path:
    """A run with the beginnings of SFT and PPO."""
    run_dir = tmp_path / "try"
    metrics = {"loss": 1.25, "data/rows_read": 10.0, "data/rows_kept": 8.0, "data/rows_dropped_too_long": 2.0}
    add_stage(run_dir, "sft", 20, metrics=metrics, is_final=False, config={"run": {"name": NASTY}, "lr": 0.00012})
    add_rows(run_dir, "sft", {1: {"loss": 2.0}, 2: {"loss": math.nan, "optim/skipped_steps": 1.0}})
    add_rows(
        run_dir,
        "ppo",
        {
            0: {"eval/score": 0.5, "eval/kl": 0.0, "eval/gold": 0.25},
            1: {
                "other/</script>": 2.0,
                "objective/kl": 0.5,
                "objective/scores": 0.2,
                "time/step_s": 2.0,
                "time/policy_update_s": 1.5,
            },
            2: {"objective/kl": 0.321, "other/</script>": 1.0, "eval/score": 1.0, "eval/kl": 3.0, "eval/gold": 0.5},
        },
    )
    return run_dir


@pytest.fixture
def whole(partial) -> Path:
    """The same with PPO and evaluation finished."""
    sft = str(partial / "sft")
    ppo = add_stage(partial, "ppo", 80, parents={"policy": sft}, metrics={"eval/gold": 0.5, "x": math.nan})
    metrics = {
        "eval/policy/gold": 0.58,
        "eval/baseline/gold": 0.23,
        "eval/policy/kl": 13.0,
        "eval/baseline/kl": 0.001234567,
        "eval/win_rate_gold": 0.75,
        "eval/win_rate_gold_low": 0.7,
        "eval/win_rate_gold_high": 0.8,
    }
    sides = {"baseline_score": 0.5, "baseline_gold": -0.25, "policy_score": 1.5, "policy_gold": None}
    sample = {"prompt": NASTY, "baseline": "was dull", "policy": "was great", **sides}
    parents, files = {"policy": ppo, "baseline": sft}, {"state/samples.jsonl": lines([sample])}
    add_stage(partial, "evaluate", parents=parents, metrics=metrics, files=files)
    folder = partial / "ppo" / "samples"
    folder.mkdir()
    for step, text in ((0, "first words"), (40, "middle"), (80, "last words")):
        row = {"prompt": "The movie", "response": text, "score": step / 10, "gold": None}
        (folder / f"step_{step:06d}.jsonl").write_text(lines([row]))
    return partial


def page_of(run_dir: Path, **options) -> Page:
    assert report.write_report(str(run_dir), **options) == str(run_dir / "report.html")
    return Page((run_dir / "report.html").read_text())


def test_evaluation_samples_and_lineage(whole) -> None:
    page = page_of(whole)
    assert page.tables["evaluation"][1:] == [["gold", "0.23", "0.58"], ["kl", "0.001235", "13"]]
    assert page.tables["win-rates"][1] == ["gold", "0.75", "0.7 to 0.8"]
    prompt, baseline, policy = page.tables["samples"][1]
    assert prompt == NASTY, "shown as it is, not run"
    assert baseline == "was dullreward 0.5, gold -0.25" and policy == "was greatreward 1.5"
    assert page.tables["before-after"][1] == ["The movie", "first wordsreward 0", "last wordsreward 8"]
    lineage = {row[0].split()[0]: row for row in page.tables["lineage"][1:]}
    assert list(lineage) == ["sft", "ppo", "evaluate"]
    hash_of_ppo = stage_hash(f"{whole}/ppo/step_000080")
    assert lineage["ppo"][1:4] == ["80", "12.5", hash_of_ppo]
    assert f"{whole}/ppo/step_000080" in lineage["evaluate"][4] and hash_of_ppo in lineage["evaluate"][4]
    assert "stale" not in page.text and "unfinished" in lineage["sft"][0]


def test_samples_carry_what_they_are_sorted_by(whole) -> None:
    row = page_of(whole).rows["samples"][1]
    assert {name.removeprefix("data-"): value for name, value in row.items()} == {
        "policy-score": "1.5",
        "policy-gold": "",  # there is none: it comes last
        "policy-length": "9",
        "baseline-score": "0.5",
        "baseline-gold": "-0.25",
        "baseline-length": "8",
        "gain": "1",
    }


def test_stale_stages_stand_out(whole) -> None:
    manifest = whole / "sft" / "step_000020" / "stage.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 1.0}))
    lineage = {row[0].split()[0]: row for row in page_of(whole).tables["lineage"][1:]}
    assert "stale" in lineage["ppo"][0] and "policy has changed since" in lineage["ppo"][0]
    assert "changed since" in lineage["ppo"][4]
    assert "ppo is stale itself" in lineage["evaluate"][0]


def test_the_page_loads_nothing_and_its_links_lead_somewhere(whole) -> None:
    page = page_of(whole)
    assert page.loads == [], "nothing is loaded from elsewhere"
    assert len(page.links) > 5 and {link.removeprefix("#") for link in page.links} <= page.ids


def test_everything_is_escaped(tmp_path) -> None:
    run_dir, name = tmp_path / "try", "<script>alert(1)<script>"  # a slash would be a folder
    sample = {"prompt": NASTY, "baseline": NASTY, "policy": NASTY, "baseline_score": 1.0, "baseline_gold": 1.0}
    sample |= {"policy_score": 1.0, "policy_gold": 1.0}
    config = {"run": {"name": "try"}, NASTY: NASTY}
    add_stage(run_dir, name, config=config, metrics={NASTY: 1.0}, parents={NASTY: NASTY})
    files = {"state/samples.jsonl": lines([sample])}
    add_stage(run_dir, "evaluate", files=files, parents={"policy": f"{run_dir}/{name}"})
    add_rows(run_dir, name, {1: {NASTY: 1.0, f"time/{NASTY}_update_s": 1.0}, 2: {NASTY: 2.0, "optim/rollbacks": 1.0}})
    page = page_of(run_dir)
    html = (run_dir / "report.html").read_text()
    assert "<script>alert" not in html
    assert page.tables["lineage"][1][0] == name and NASTY in page.titles


def test_curves_frontier_and_events(whole) -> None:
    page = page_of(whole)
    assert "Curves: ppo" in page.text
    lines_of = [(line["name"], line["x"], line["y"]) for line in page.series]
    assert ("objective/kl", [1, 2], [0.5, 0.321]) in lines_of
    assert ("loss", [1], [2.0]) in lines_of, "NaN is left out"
    assert ("eval/score", [0, 3], [0.5, 1.0]) in lines_of and ("eval/gold", [0.5, 1.0], [0.25, 0.5]) in lines_of
    assert {"Reward against KL, one point an evaluation", "Gold against the reward it was trained on"} < set(
        page.titles
    )
    assert "other/</script>" in page.titles, "what no chart is made for has one as well"
    told = [text for line in page.series for text in line.get("hovertext") or ()]
    assert "step 2: skipped 1 optimizer step(s)" in told


def test_times_and_rows(whole) -> None:
    page = page_of(whole)
    assert page.tables["times"][1:] == [
        ["sft", "12.5", "33.3 %", "–", "–", "–"],
        ["ppo", "12.5", "33.3 %", "1", "2", "10.5"],
        ["evaluate", "12.5", "33.3 %", "–", "–", "–"],
    ]
    assert page.tables["calls-ppo"][1:] == [["learn", "policy", "update", "1.5", "1.5", "100.0 %"]]
    assert page.tables["rows-read"][1:] == [["sft", "training", "10", "8", "0", "2 longer than max_tokens"]]


def test_realised_mixtures(tmp_path) -> None:
    shares = {"rows": 30.0, "row_share": 0.75, "tokens": 100.0, "token_share": 0.2}
    add_stage(tmp_path / "try", "sft", metrics={f"data/mixture_{name}_web": value for name, value in shares.items()})
    assert page_of(tmp_path / "try").tables["mixtures"][1:] == [["sft", "web", "30", "75.0 %", "100", "20.0 %"]]


def test_configurations_against_their_defaults(tmp_path) -> None:
    run_dir = tmp_path / "try"
    add_stage(run_dir, "sft", config=RunConfig(name="try", seed=7).model_dump(mode="json"))
    add_stage(run_dir, "dpo", config={"name": "try", "of_another_version": 1})
    page = page_of(run_dir, config_class=lambda kind: RunConfig)
    assert page.tables["changes-sft"][1:] == [["name", "try", "none, has to be given"], ["seed", "7", "0"]]
    assert [row.get("class") for row in page.rows["changes-sft"][1:]] == [None, "changed"]
    assert "3 keys at their defaults" in page.text and "when_changed: refuse" in page.text
    assert "changes-dpo" not in page.tables and "of_another_version: 1" in page.text
    assert page.text.count("This version of rayrlhf does not take this configuration") == 1


def test_nothing_secret_is_shown(tmp_path) -> None:
    run_dir, source = tmp_path / "try", "memory://key:s3cr3t@bucket/x"
    config = {"run": {"name": "try"}, "data": source, "hf_token": "s3cr3t"}
    card = {"source": source, "licence": None, "files": [], "tables": {}, "samples": {}}
    files = {"state/data_card.json": json.dumps(card)}
    add_stage(run_dir, "prepare", config=config, parents={"source": source}, files=files)
    page = page_of(run_dir)
    report.write_summary(str(run_dir))
    for name in ("report.html", "summary.json"):
        assert "s3cr3t" not in (run_dir / name).read_text()
    assert page.text.count("memory://***@bucket/x") == 3, "the configuration, the parent, the card"


def test_environments(tmp_path, monkeypatch) -> None:
    run_dir = tmp_path / "try"
    monkeypatch.setenv(environment.COMMAND, "rayrlhf sft run.name=try")
    add_stage(run_dir, "sft")
    add_stage(run_dir, "dpo")
    add_stage(run_dir, "kto")
    monkeypatch.setenv(environment.COMMAND, "rayrlhf evaluate run.name=try")
    add_stage(run_dir, "evaluate")
    old = run_dir / "dpo" / "step_000000" / "stage.json"
    manifest = json.loads(old.read_text())
    del manifest["environment"]  # as earlier versions wrote it
    old.write_text(json.dumps(manifest))
    page = page_of(run_dir)
    tables = {(facts := dict(page.tables[f"environment-{n}"]))["command line"]: facts for n in (1, 2, 3)}
    assert "environment-4" not in page.tables and ("kto, sft" in page.text or "sft, kto" in page.text)
    old_one, sft = tables["not recorded"], tables["rayrlhf sft run.name=try"]
    assert "torch" in old_one["packages"] and "Python" not in old_one
    assert "cores" in sft["machine"] and sft["Python"] == tables["rayrlhf evaluate run.name=try"]["Python"]


def test_the_data_card(tmp_path) -> None:
    example = {"reason": "urls", "detail": "urls 0.9 > 0.2", "text": NASTY}
    step = {"name": "links", "rows_in": 7, "rows_out": 5, "dropped": {"urls": 2}, "rows_changed": 1}
    step |= {"chars_changed": 9, "dropped_examples": [example], "changed_examples": [{"before": "ab", "after": "b"}]}
    card = {
        "source": "own", "licence": "CC0", "files": [{"path": "own/a.jsonl", "bytes": 12, "sha256": "f00"}],
        "rows_read": 7, "rows_kept": 5, "bad_rows": {"count": 1, "examples": ["a.jsonl, line 3: not JSON"]},
        "steps": [step], "characters_read": [{"from": 2, "to": 3, "rows": 7}],
        "characters_kept": [{"from": 1, "to": 1, "rows": 1}, {"from": 2, "to": 3, "rows": 4}],
        "tables": {"text_train": 5}, "samples": {"train": ["one sample"]},
    }  # fmt: skip
    add_stage(tmp_path / "try", "prepare", files={"state/data_card.json": json.dumps(card)})
    page = page_of(tmp_path / "try")
    assert page.tables["cleaning-prepare"][1] == ["links", "7", "5", "urls 2", "1", "9"]
    assert page.tables["lengths-prepare"][1:] == [["1 to 1", "0", "1"], ["2 to 3", "7", "4"]]
    for words in ("licence: CC0", "7 rows read, 1 that could not be read, 5 kept", NASTY, "a.jsonl, line 3: not JSON"):
        assert words in page.text
    assert "one sample" in page.text and "f00" in page.text


def test_a_partial_run_has_a_report(partial) -> None:
    page = page_of(partial)
    assert [row[0].split()[0] for row in page.tables["lineage"][1:]] == ["sft"]
    assert "evaluation" not in page.tables and "samples" not in page.tables
    assert "Curves: ppo" in page.text and page.tables["calls-ppo"], "from the log alone"


def test_a_run_without_anything(tmp_path) -> None:
    report.write_report(str(tmp_path))
    assert "No stage is finished yet." in Page((tmp_path / "report.html").read_text()).text
    report.write_summary(str(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text())["stages"] == {}


def test_summary(whole) -> None:
    assert report.write_summary(str(whole)) == str(whole / "summary.json")
    text = (whole / "summary.json").read_text()
    summary = json.loads(text)
    assert "NaN" not in text
    assert summary["run"] == "try" and summary["seconds"] == pytest.approx(37.5)
    ppo = summary["stages"]["ppo"]
    assert ppo["directory"] == f"{whole}/ppo/step_000080" and ppo["step"] == 80 and ppo["seconds"] == 12.5
    assert ppo["metrics"] == {"eval/gold": 0.5, "x": None}
    assert summary["evaluation"]["eval/win_rate_gold"] == 0.75
