"""Mixtures worked out by hand: rows a pass of each source."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rayrlhf.config import load
from rayrlhf.data.config import DataConfig
from rayrlhf.data.mixing_rates import described, names_of, parts
from rayrlhf.errors import ConfigError, DataError

A, B, C = "data/a.jsonl", "data/b.jsonl", "data/c.parquet"


def config(*sources: dict[str, Any], **more: Any) -> DataConfig:
    return DataConfig.model_validate({"train": list(sources), **more})


def quotas(data: DataConfig, *counts: int) -> list[int]:
    return [part.quota for part in parts(data, counts)]


def test_by_size_every_row_once_and_by_its_epochs() -> None:
    assert quotas(config({"path": A}, {"path": B}), 100, 1000) == [100, 1000]
    assert quotas(config({"path": A, "epochs": 3}, {"path": B}), 100, 1000) == [300, 1000]


def test_weights_end_a_pass_with_the_source_that_is_used_up_first() -> None:
    both = config({"path": A, "weight": 3}, {"path": B, "weight": 1})
    assert quotas(both, 600, 1000) == [600, 200], "600 are 3 of 4 parts of 800"
    assert quotas(both, 600, 100) == [300, 100], "and here b is what a pass ends with"
    assert quotas(config({"path": A, "weight": 1, "epochs": 2}, {"path": B, "weight": 1}), 100, 1000) == [200, 200]


def test_a_cap_by_hand() -> None:
    """Raffel et al. 2020: min(e_n, K) over the sum of them; K is 100 for b."""
    mixed = parts(config({"path": A}, {"path": B, "max_rows": 100}), [50, 1000])
    assert [part.quota for part in mixed] == [50, 100]
    assert [float(part.share) for part in mixed] == pytest.approx([1 / 3, 2 / 3])
    assert [part.quota for part in parts(config({"path": A}, {"path": B, "max_rows": 100}), [50, 70])] == [50, 70]


def test_temperature_by_hand() -> None:
    # square roots 10 and 100: shares 1/11 and 10/11; the 100 rows of a allow 1,100 in all
    assert quotas(config({"path": A}, {"path": B}, mixing={"temperature": 2}), 100, 10_000) == [100, 1000]
    assert quotas(config({"path": A}, {"path": B}, mixing={"temperature": math.inf}), 100, 10_000) == [100, 100]
    capped = config({"path": A}, {"path": B, "max_rows": 2500}, mixing={"temperature": 2})
    assert quotas(capped, 100, 10_000) == [100, 500], "the temperature is of what the cap has left: 10 to 50"


def test_a_wanted_length_and_what_is_short_of_it() -> None:
    sources = {"path": A, "weight": 1}, {"path": B, "weight": 1}, {"path": C, "weight": 2}
    assert quotas(config(*sources, mixing={"rows": 10}), 100, 100, 100) == [3, 2, 5], "halves go to the first"
    with pytest.raises(DataError, match="source a is to give 25 rows a pass, but with its epochs it has 20"):
        parts(config(*sources, mixing={"rows": 100}), [20, 100, 100])
    lower = config(*sources, mixing={"rows": 100, "short": "lower"})
    # a lacks 5 of its 25, which go to b and c as 1 to 2: 26.7 and 53.3
    mixed = parts(lower, [20, 100, 100])
    assert [part.quota for part in mixed] == [20, 27, 53]
    lines = described(mixed, 2)
    assert lines[0] == (
        "a: 20 of 20 rows a pass (20.0%), each 2 times in 2 pass(es); asked for 25.0%, its epochs allow no more"
    )
    assert "asked for 25.0%, it stands in for others" in lines[1]
    assert quotas(lower, 20, 20, 20) == [20, 20, 20], "there is no more"


def test_pretraining_text_comes_on_top_of_all_other_rows() -> None:
    text = {"path": C, "share": 0.2}
    assert quotas(DataConfig.model_validate({"train": A, "pretraining": text}), 80, 500) == [80, 20]
    both = config({"path": A}, {"path": B}, pretraining=text)
    mixed = parts(both, [80, 40, 500])
    assert [part.quota for part in mixed] == [80, 40, 30]
    assert [float(part.share) for part in mixed] == pytest.approx([0.8 * 2 / 3, 0.8 / 3, 0.2])
    with pytest.raises(DataError, match="source c is to give 30 rows a pass, but with its epochs it has 10"):
        parts(both, [80, 40, 10])
    assert quotas(config({"path": A}, {"path": B}, pretraining=text | {"epochs": 3}), 80, 40, 10) == [80, 40, 30]
    lower = config({"path": A}, {"path": B}, pretraining=text, mixing={"short": "lower"})
    assert quotas(lower, 80, 40, 10) == [80, 40, 10]


def test_a_source_without_rows_or_with_too_small_a_share() -> None:
    with pytest.raises(DataError, match="source b gives no row of at most data.max_tokens=256"):
        parts(config({"path": A}, {"path": B}), [10, 0])
    with pytest.raises(DataError, match="source a has a share of 0.001, which is less than one of the 10 rows"):
        parts(config({"path": A, "weight": 1}, {"path": B, "weight": 999}), [10, 10])


def test_names() -> None:
    paths = ["x/state/text/train/", "y/state/text/train", "hf://name:split", "*.txt", "one.jsonl.gz"]
    assert names_of(config(*({"path": path} for path in paths))) == ["train_1", "train_2", "name_split", "*", "one"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": [{"path": A, "weight": 0}]}, "data.train.0.weight: expected a value greater than 0"),
        ({"train": [{"path": A, "weight": -1}, {"path": B, "weight": 1}]}, "data.train.0.weight: .*greater than 0"),
        ({"train": [{"path": A, "weight": 2}, {"path": B}]}, "data: train gives some .* and .*b.jsonl none"),
        ({"train": [{"path": A, "weight": 2}]}, "one source, so its weight=2 has no effect"),
        ({"train": [{"path": A}, {"path": A}]}, "train lists data/a.jsonl twice"),
        ({"train": []}, "data.train: .*at least 1 item"),
        ({"train": [{"path": A, "max_rows": 3, "weight": 1}, {"path": B, "weight": 1}]}, "max_rows=3 limits a size"),
        ({"train": [{"path": A, "epochs": 0}]}, "data.train.0.epochs"),
        ({"train": [{"path": A, "wieght": 1}]}, "data.train.0.wieght: unknown key; did you mean data.train.0.weight"),
        ({"train": A, "mixing": {"temperature": 2}}, "temperature=2 has no effect with one source"),
        ({"train": [{"path": A, "weight": 1}, {"path": B, "weight": 1}], "mixing": {"temperature": 2}}, "with weights"),
        ({"train": A, "mixing": {"short": "lower"}}, "short=lower has no effect without"),
        ({"train": A, "pretraining": {"path": C, "share": 1}}, "data.pretraining.share"),
        ({"train": A, "packing": {}, "too_long": "truncate"}, "truncate has no effect with packing"),
        ({"train": A, "packing": {"overlap": 64}, "max_tokens": 64}, "packing.overlap=64 leaves nothing new"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    from jobs.sft import SFTConfig

    with pytest.raises(ConfigError, match=message):
        load(SFTConfig, None, ["run.name=x", "model=x", f"data={json.dumps(keys)}"])


def test_a_list_on_the_command_line_and_a_path_as_it_is() -> None:
    from jobs.sft import SFTConfig

    given = ["run.name=x", "model=x"]
    text = "data.train=[{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1, epochs: 3}]"
    found = load(SFTConfig, None, [*given, text]).data
    assert [(source.path, source.weight, source.epochs) for source in found.sources] == [
        ("a.jsonl", 2.0, 1),
        ("b.jsonl", 1.0, 3),
    ]
    for path in ("*.jsonl", "[ab].jsonl", "007", "hf://name:train", "a: b"):
        assert load(SFTConfig, None, [*given, f"data.train={path}"]).data.train == path
    assert not load(SFTConfig, None, [*given, "data.train=x"]).data.is_mixed
