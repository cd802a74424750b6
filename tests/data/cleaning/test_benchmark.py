"""The benchmark in small: what it plants is caught."""

from pathlib import Path

from benchmarks import data_cleaning


def test_what_is_planted_is_caught(ray_local: None, tmp_path: Path) -> None:
    pool = data_cleaning.sentences_here(1_500_000)
    planted = data_cleaning.build(tmp_path, 1_500_000, pool)
    assert planted.num_bytes >= 1_500_000 and set(planted.kinds.values()) == {"clean", *data_cleaning.SHARES}
    found = data_cleaning.score(data_cleaning.texts_left(data_cleaning.clean(tmp_path)), planted)
    assert found["recall"]["exact"] == found["recall"]["contaminated"] == found["recall"]["privacy"] == 1.0
    assert found["recall"]["near"] >= 0.9 and found["recall"]["noise"] >= 0.95
    assert found["precision"]["rows dropped"] >= 0.85 and found["precision"]["decoys left alone"] == 1.0
