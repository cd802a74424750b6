"""The Grafana dashboard's JSON."""

from __future__ import annotations

import json
from pathlib import Path

from cluster import dashboards
from rayrlhf.metric_names import METRICS, find

ROOT = Path(__file__).parents[2]


def test_the_file_is_the_generated_one():
    assert dashboards.FILE.read_text() == dashboards.text(), "python -m cluster.dashboards --write"


def test_a_panel_a_metric_below_its_group_and_none_over_another():
    made = dashboards.dashboard()
    panels, group, seen, taken = made["panels"], "", [], set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            group = panel["title"]
        else:
            name, _, meaning = panel["title"].partition(": ")
            assert name.startswith(f"{group}/") and meaning == find(name).meaning
            seen.append(name)
    assert seen == [m.name for group in dict.fromkeys(m.group for m in METRICS) for m in METRICS if m.group == group]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [variable["name"] for variable in made["templating"]["list"]] == ["datasource", "run", "stage"]


def test_queries_and_units():
    by_name = {p["title"].partition(": ")[0]: p for p in dashboards.dashboard()["panels"]}

    def told(name):
        panel = by_name[name]
        return panel["targets"][0]["expr"], panel["fieldConfig"]["defaults"]["unit"]

    chosen = 'run=~"$run", stage=~"$stage"'
    assert told("objective/kl") == (f"max by (run, stage) (ray_rayrlhf_objective_kl{{{chosen}}})", "suffix: nats")
    assert told("time/step_s")[1] == "s" and told("rollout/finished_share")[1] == "percentunit"
    pattern = f'{{__name__=~"ray_rayrlhf_data_mixture_rows_.+", {chosen}}}'
    assert told("data/mixture_rows_*")[0] == f"max by (__name__, run, stage) ({pattern})"
    others = '__name__!~"ray_rayrlhf_data_validation_rows_cut"'
    assert f'"ray_rayrlhf_data_.+_rows_cut", {others}, run' in told("data/*_rows_cut")[0], "they have a panel"


def test_it_goes_where_ray_has_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert dashboards.main([]) == 2 and "head node" in capsys.readouterr().err
    folder = tmp_path / "ray" / "session_latest" / "metrics" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    assert dashboards.main([]) == 0
    assert json.loads((folder / "rayrlhf.json").read_text())["uid"] == "rayrlhf"
    monkeypatch.setenv("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", "/elsewhere")
    assert dashboards.folder_of() == Path("/elsewhere")
    assert dashboards.main([str(tmp_path)]) == 0 and (tmp_path / "rayrlhf.json").is_file()
