"""The arithmetic task: its rows, its split, its reward."""

import pytest

from rayrlhf.data.arithmetic import COUNT, reward, tables


def test_rows_and_split(ray_local: None) -> None:
    found = {split: tables(split, 1000 / COUNT) for split in ("train", "validation")}
    texts = {split: [row["text"] for row in found[split]["text"].take_all()] for split in found}
    assert (len(texts["train"]), len(texts["validation"])) == (7100, 1000)
    assert len(set(texts["train"] + texts["validation"])) == COUNT
    assert "Q:23+48=A:71" in texts["train"] + texts["validation"]
    pairs = found["validation"]["prompt_completion"].take_all()
    assert {row["prompt"] + row["completion"] for row in pairs} == set(texts["validation"])
    assert reward([row["prompt"] for row in pairs], [row["completion"] for row in pairs]) == [1.0] * 1000
    assert sorted(row["prompt"] for row in found["validation"]["prompts"].take_all()) == sorted(
        row["prompt"] for row in pairs
    )


def test_the_reward_is_exact() -> None:
    prompt = "Q:23+48=A:"
    assert reward([prompt] * 5, ["71", "71 ", "071", "70", ""]) == [1.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="'What is 2' asks for no sum"):
        reward(["What is 2"], ["2"])
