"""order: one stream, whatever the blocks."""

from collections import Counter

import pytest

from rayrlhf.data.order import by_content, in_order

ROWS = [{"id": i // 2, "ids": list(range(i % 5))} for i in range(60)]  # some are equal


def test_the_order_does_not_depend_on_blocks(ray_local: None) -> None:
    from ray import data

    streams = []
    for blocks, rows in ((1, ROWS), (7, ROWS[::-1]), (30, ROWS[30:] + ROWS[:30])):
        streams.append(in_order(data.from_items(rows, override_num_blocks=blocks), epochs=3, seed=5).take_all())
    assert streams[0] == streams[1] == streams[2]
    epochs = [streams[0][start : start + 60] for start in (0, 60, 120)]
    key = repr
    for epoch in epochs:  # each epoch has every row once, in an order of its own
        assert Counter(map(key, epoch)) == Counter(map(key, ROWS))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != ROWS


@pytest.mark.slow
def test_the_seed_counts_and_batches_keep_the_order(ray_local: None) -> None:
    from ray import data

    ds = data.from_items([{"id": i} for i in range(200)], override_num_blocks=9)
    first = [row["id"] for row in in_order(ds, 2, seed=0).iter_rows()]
    other = [row["id"] for row in in_order(ds, 2, seed=1).iter_rows()]
    assert first != other and sorted(first) == sorted(other)
    mapped = in_order(ds, 2, seed=0).map_batches(lambda batch: batch, batch_size=7)
    assert [i for batch in mapped.iter_batches(batch_size=32) for i in batch["id"]] == first
    assert [row["id"] for row in by_content(ds).iter_rows()] == first[:200]


def test_no_epoch_is_an_error(ray_local: None) -> None:
    from ray import data

    with pytest.raises(ValueError, match="epochs=0"):
        in_order(data.range(3), epochs=0, seed=0)
