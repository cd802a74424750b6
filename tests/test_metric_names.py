"""The list of metrics is what the stages write, no more and no less.

No more: here, from the source.  No less: tests/jobs/conftest.py, on what each real run of the jobs' tests logged.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rayrlhf import metric_names
from rayrlhf.metric_names import METRICS, Metric, described, find
from rayrlhf.redaction import is_secret

ROOT = Path(__file__).parents[1]


class Words:
    """Every string, name of a function or attribute, and f-string in the source."""

    def __init__(self) -> None:
        self.whole: set[str] = {""}
        self.patterns: set[str] = set()
        files = [path for layer in ("rayrlhf", "actors", "jobs") for path in (ROOT / layer).rglob("*.py")]
        for path in files:
            if path.name != "metric_names.py":
                self._read(ast.parse(path.read_text()))

    def _read(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.whole.add(node.value)
            elif isinstance(node, ast.Attribute | ast.FunctionDef | ast.AsyncFunctionDef):
                self.whole.add(node.attr if isinstance(node, ast.Attribute) else node.name)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else None for p in node.values]  # type: ignore[arg-type]
                if not any(part and " " in part for part in parts) and any(parts):
                    self.patterns |= {"".join(p or hole for p in parts) for hole in ("(.*?)", "(.*)")}

    def make(self, text: str, depth: int = 3) -> bool:
        """Whether the source can put `text` together."""
        if text in self.whole or text == "*":
            return True
        found = (re.fullmatch(pattern, text) for pattern in self.patterns if depth)
        return any(match and all(self.make(part, depth - 1) for part in match.groups()) for match in found)


def test_something_writes_every_metric():
    words = Words()
    # what is reduced over ranks as NAME_max may lose the ending
    made = [name for name in (m.name for m in METRICS) if words.make(name) or words.make(f"{name}_max", 1)]
    assert made == [metric.name for metric in METRICS]
    assert not words.make("objective/never") and not words.make("optim/policy_never"), "it can tell"


def test_names_are_unique_also_as_gauges_and_stages_are_jobs():
    for names in ([metric.name for metric in METRICS], [metric.gauge for metric in METRICS]):
        assert len(set(names)) == len(names)
    assert all((ROOT / "jobs" / f"{stage}.py").is_file() for metric in METRICS for stage in metric.stages)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("objective/kl", "objective/kl"),
        ("data/rows_read", "data/rows_read"),
        ("data/web.text_rows_dropped_too_long", "data/*_rows_dropped_too_long"),
        ("data/validation_rows_read", "data/validation_rows_read"),
        ("data/mixture_rows_web", "data/mixture_rows_*"),
        ("objective/klx", None),
        ("xobjective/kl", None),
        ("data/_rows_read", None),
    ],
)
def test_find(name, expected):
    found = find(name)
    assert (found.name if found else None) == expected


def test_gauges_and_what_is_said_of_them():
    assert find("objective/kl").gauge == "rayrlhf_objective_kl"
    assert find("data/mixture_rows_web").gauge == "rayrlhf_data_mixture_rows_.+"
    assert described("objective/kl") == "objective/kl: log-ratio to the reference, summed over a sequence [nats]"
    assert described("my/own") == "my/own"
    assert Metric("a/b", "", "mean", "c").group == "a"


def test_the_document_is_the_generated_one():
    assert (ROOT / "docs" / "metrics.md").read_text() == metric_names.document(), "python -m rayrlhf.metric_names"


def test_no_metric_s_name_looks_like_a_secret():
    """Or its values would be masked where they are written."""
    assert [metric.name for metric in METRICS if is_secret(metric.name)] == []
