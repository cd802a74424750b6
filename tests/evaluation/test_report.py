"""The report and the summary of a run, whole and partial, read back as a browser would."""

import json
import math
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from rayrlhf.checkpoint import StageWriter, stage_hash
from rayrlhf.evaluation import report

NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Collects tables by id, the text outside scripts, and everything the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.loads: list[str] = []
        self.text = ""
        self._table = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        values = dict(attributes)
        self.loads += [f"{tag} {k}={v}" for k, v in attributes if k in ("src", "href", "action", "data")]
        self._open.append(tag)
        if tag == "table":
            self._table = values.get("id") or "other"
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.tables[self._table][-1][-1] += data


def add_stage(run_dir, name: str, step: int, parents: dict, metrics: dict, samples=(), is_final=True) -> str:
    writer = StageWriter(f"{run_dir}/{name}", step)
    (run_dir / name / f"step_{step:06d}" / "model" / "config.json").write_text("{}")
    if samples:
        lines = "".join(json.dumps(row) + "\n" for row in samples)
        (run_dir / name / f"step_{step:06d}" / "state" / "samples.jsonl").write_text(lines)
    config = {"run": {"name": NASTY}, "lr": 0.00012}
    return writer.finish(name, config, parents, metrics, is_final=is_final, seconds=12.5)


@pytest.fixture
def partial(tmp_path):
    """A run with an SFT stage and the beginning of PPO."""
    run_dir = tmp_path / "try"
    run_dir.mkdir()
    add_stage(run_dir, "sft", 20, {}, {"loss": 1.25}, is_final=False)
    rows = [
        {"stage": "sft", "step": 1, "time_s": 1.0, "loss": 2.0},
        {"stage": "sft", "step": 2, "time_s": 2.0, "loss": None},
        {"stage": "ppo", "step": 1, "time_s": 3.0, "objective/kl": 99.0, "objective/scores": 0.1},
        {"stage": "ppo", "step": 1, "time_s": 4.0, "objective/kl": 0.0, "objective/scores": 0.2},
        {"stage": "ppo", "step": 2, "time_s": 5.0, "objective/kl": 0.321, "other/</script>": 1.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "ppo", "st'
    (run_dir / "metrics.jsonl").write_text(text)
    return run_dir


@pytest.fixture
def whole(partial):
    """The same with PPO and evaluation finished."""
    sft = str(partial / "sft")
    ppo = add_stage(partial, "ppo", 80, {"policy": sft}, {"eval/gold": 0.5, "x": math.nan})
    metrics = {
        "eval/policy/gold": 0.58,
        "eval/baseline/gold": 0.23,
        "eval/policy/kl": 13.0,
        "eval/baseline/kl": 0.001234567,
        "eval/win_rate_gold": 0.75,
        "eval/win_rate_gold_low": 0.7,
        "eval/win_rate_gold_high": 0.8,
    }
    sides = {"baseline_score": 0.5, "baseline_gold": -0.25, "policy_score": 1.5, "policy_gold": 0.75}
    sample = {"prompt": NASTY, "baseline": "was dull", "policy": "was great", **sides}
    add_stage(partial, "evaluate", 0, {"policy": ppo, "baseline": sft}, metrics, [sample])
    folder = partial / "ppo" / "samples"
    folder.mkdir()
    for step, text in ((0, "first words"), (40, "middle"), (80, "last words")):
        row = {"prompt": "The movie", "response": text, "score": step / 10, "gold": None}
        (folder / f"step_{step:06d}.jsonl").write_text(json.dumps(row) + "\n")
    return partial


def test_the_whole_report(whole) -> None:
    path = report.write_report(str(whole))
    assert path == str(whole / "report.html")
    html = (whole / "report.html").read_text()
    page = Page(html)
    assert page.tables["evaluation"][1:] == [["gold", "0.23", "0.58"], ["kl", "0.001235", "13"]]
    assert page.tables["win-rates"][1] == ["gold", "0.75", "0.7 to 0.8"]
    prompt, baseline, policy = page.tables["samples"][1]
    assert prompt == NASTY, "shown as it is, not run"
    assert baseline == "was dullreward 0.5, gold -0.25" and policy == "was greatreward 1.5, gold 0.75"
    assert page.tables["before-after"][1] == ["The movie", "first wordsreward 0", "last wordsreward 8"]
    lineage = {row[0]: row for row in page.tables["lineage"][1:]}
    assert set(lineage) == {"sft", "ppo", "evaluate"}
    assert lineage["ppo"][2] == "12.5" and lineage["ppo"][3] == stage_hash(f"{whole}/ppo/step_000080")
    assert f"{whole}/ppo/step_000080" in lineage["evaluate"][4]
    assert stage_hash(f"{whole}/ppo/step_000080") in lineage["evaluate"][4]
    assert "lr: 0.00012" in page.text


def test_the_report_is_one_file_and_escapes_everything(whole) -> None:
    report.write_report(str(whole))
    html = (whole / "report.html").read_text()
    page = Page(html)
    assert page.loads == [], "nothing is loaded from elsewhere"
    assert "<script>alert" not in html
    assert html.count(get_plotlyjs()[:200]) == 1, "plotly itself is there once"
    assert html.count('class="plotly-graph-div"') == 3, "loss of sft; reward and KL of ppo"


def test_the_data_card(tmp_path) -> None:
    writer = StageWriter(f"{tmp_path}/try/prepare", 0)
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
    (tmp_path / "try/prepare/step_000000/state/data_card.json").write_text(json.dumps(card))
    writer.finish("prepare", {}, {}, {})
    report.write_report(str(tmp_path / "try"))
    html = (tmp_path / "try" / "report.html").read_text()
    page = Page(html)
    assert page.tables["cleaning-prepare"][1] == ["links", "7", "5", "urls 2", "1", "9"]
    assert page.tables["lengths-prepare"][1:] == [["1 to 1", "0", "1"], ["2 to 3", "7", "4"]]
    for words in ("licence: CC0", "7 rows read, 1 that could not be read, 5 kept", NASTY, "a.jsonl, line 3: not JSON"):
        assert words in page.text
    assert "<script>alert" not in html and "one sample" in page.text and "f00" in page.text


def test_charts_show_the_numbers_of_the_log(partial) -> None:
    rows = report.read_run(str(partial)).rows
    assert [row["objective/kl"] for row in rows["ppo"]] == [0.0, 0.321], "a step done again counts once"
    fragments = report.charts(rows["ppo"])
    assert len(fragments) == 2
    reward, kl = fragments
    assert '"x":[1,2],"y":[0.0,0.321]' in kl.replace(" ", "")
    assert '"x":[1],"y":[0.2]' in reward.replace(" ", "")
    (loss,) = report.charts(rows["sft"])
    assert '"x":[1],"y":[2.0]' in loss.replace(" ", ""), "null (a NaN) is left out"


def test_a_partial_run_has_a_report(partial) -> None:
    report.write_report(str(partial))
    page = Page((partial / "report.html").read_text())
    assert [row[0] for row in page.tables["lineage"][1:]] == ["sft"]
    assert page.tables["lineage"][1][1] == f"{partial}/sft/step_000020 unfinished"
    assert "evaluation" not in page.tables and "samples" not in page.tables
    assert "Curves: ppo" in page.text


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (13.0, "13"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (-2, "-2"),
        (1e12, "1e+12"),
    ],
)
def test_numbers_for_people(value, text) -> None:
    assert report.shown(value) == text
