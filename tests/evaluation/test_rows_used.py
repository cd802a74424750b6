"""Rows read and dropped, and mixtures, from the metrics that stages leave."""

from rayrlhf.data import tally
from rayrlhf.evaluation.rows_used import RowsRead, SourceGave, data_metrics, mixture, rows_read
from rayrlhf.evaluation.run_files import Stage
from rayrlhf.training.supervised import mixture_metrics

COUNTS = {tally.READ: 10, tally.KEPT: 7, tally.CUT: 2, tally.TOO_LONG: 3, tally.EQUAL: 0, tally.EMPTY: 0}


def test_rows_by_source() -> None:
    metrics = tally.metrics(COUNTS) | tally.metrics(COUNTS | {tally.EMPTY: 1}, "validation_") | {"data/tokens": 5.0}
    assert rows_read("sft", metrics | mixture_metrics({"kept": (1, 1)})) == [
        RowsRead("sft", "", 10.0, 7.0, 2.0, {"longer than max_tokens": 3.0}),
        RowsRead("sft", "validation", 10.0, 7.0, 2.0, {"longer than max_tokens": 3.0, "without an answer": 1.0}),
    ]


def test_what_a_mixture_gave() -> None:
    found = mixture("sft", mixture_metrics({"web": (30, 100), "own_rows": (10, 300)}))
    assert found == [SourceGave("sft", "own_rows", 10, 300, 0.25, 0.75), SourceGave("sft", "web", 30, 100, 0.75, 0.25)]
    assert mixture("sft", {"data/tokens": 1.0}) == []


def test_the_manifest_counts_over_the_log() -> None:
    rows = [{"step": 1, "data/tokens": 3.0, "data/rows_read": 9.0}, {"step": 2, "data/tokens": 6.0, "loss": 1.0}]
    stage = Stage("sft", "d", "h", {"metrics": {"data/tokens": 5.0, "loss": 2.0}})
    assert data_metrics(stage, rows) == {"data/tokens": 5.0, "data/rows_read": 9.0}
