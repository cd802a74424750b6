"""Completions under other rows' prompts."""

from __future__ import annotations

import pytest

from rayrlhf.data import mismatched

ROWS = [{"input_ids": [n, 100 + n, 200 + n], "prompt_length": 1, "label": n % 2 == 0} for n in range(30)]


@pytest.mark.parametrize("rows_a_bucket", [10_000, 12])
def test_each_prompt_gets_another_rows_completion_whatever_the_blocks(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, rows_a_bucket: int
) -> None:
    from ray import data

    monkeypatch.setattr(mismatched, "_ROWS", rows_a_bucket)
    found = []
    for rows, blocks in ((ROWS, 1), (ROWS[::-1], 3)):
        ds = mismatched.with_mismatched(data.from_items(rows, override_num_blocks=blocks), max_tokens=8)
        found.append(sorted(ds.take_all(), key=lambda row: row["input_ids"][0]))
    assert found[0] == found[1]
    assert [{name: row[name] for name in ROWS[0]} for row in found[0]] == ROWS
    assert [row["kl_ids"][0] for row in found[0]] == list(range(30)), "its own prompt"
    others = [row["kl_ids"][1] - 100 for row in found[0]]
    assert sorted(others) == list(range(30)), "each completion once"
    assert all(
        other != n and row["kl_ids"][2] == 200 + other
        for n, (other, row) in enumerate(zip(others, found[0], strict=True))
    )


def test_a_mismatched_completion_is_cut_and_a_lone_row_meets_itself(ray_local: None) -> None:
    from ray import data

    cut = mismatched.with_mismatched(data.from_items(ROWS), max_tokens=2).take_all()
    assert {len(row["kl_ids"]) for row in cut} == {2}
    alone = mismatched.with_mismatched(data.from_items(ROWS[:1]), max_tokens=8).take_all()
    assert [row["kl_ids"] for row in alone] == [ROWS[0]["input_ids"]]


def test_a_pair_gives_a_good_and_a_bad_row(ray_local: None) -> None:
    from ray import data

    pair = {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4], "prompt_length": 1}
    found = sorted(mismatched.labelled(data.from_items([pair])).take_all(), key=lambda row: row["label"])
    assert found == [
        {"input_ids": [1, 4], "prompt_length": 1, "label": False},
        {"input_ids": [1, 2, 3], "prompt_length": 1, "label": True},
    ]
