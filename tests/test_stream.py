"""Batches from any place on, and more than were foreseen."""

import contextlib

from rayrlhf.stream import Stream


def test_it_goes_on_beyond_what_was_foreseen_and_back():
    asked, closed, waits = [], [], []

    def batches(first, last):
        asked.append((first, last))
        try:
            yield from range(first, last)
        finally:
            closed.append((first, last))

    @contextlib.contextmanager
    def waiting():
        waits.append(1)
        yield

    stream = Stream(batches, 0, 3, waiting)
    assert asked == []
    assert [next(stream) for _ in range(4)] == [0, 1, 2, 3] and stream.used == 4
    assert asked == [(0, 3), (3, 6)] and closed == [(0, 3)] and len(waits) == 4
    stream.seek(4)  # is there already
    assert next(stream) == 4 and len(asked) == 2
    stream.seek(1)
    assert closed == [(0, 3), (3, 6)]
    assert [next(stream) for _ in range(3)] == [1, 2, 3] and asked[2:] == [(1, 3), (3, 6)]
    stream.close()
    assert closed[2:] == [(1, 3), (3, 6)]
    assert next(Stream(batches, 7, 3)) == 7 and asked[-1] == (7, 9)
